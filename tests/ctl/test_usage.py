"""What is wrong with a command line is told before any service is asked."""

import io
import json
import os
from pathlib import Path

import pytest

from ctl.__main__ import main
from ctl.faults import ExitCode
from ctl.output import asks_for_json

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, no hub, and the folder that the paths below are in."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for name in list(os.environ):
        if name.startswith("CLOUDHUBCTL_"):
            monkeypatch.delenv(name)
    for service in ("DISPATCHER", "SESSIONS", "CONNECTOR"):
        monkeypatch.setenv(f"CLOUDHUBCTL_{service}", "127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("explain edge-1", "name either an OBJECT or a message"),
        ("explain edge-1 a --message b", "name either an OBJECT or a message"),
        ("purge edge-1", "name an OBJECT, or give --all"),
        ("purge edge-1 --all", "Give --yes, since nobody can be asked here"),
        ("drain", "Give --yes, since nobody can be asked here"),
        ("limits --project pilot", "'pilot' should be PROJECT=NODES"),
        ("limits --total -1", "Invalid value for '--total'"),
        ("sessions --state lost", "'lost' should be one of opening, active"),
        ("publish -f nowhere.yaml --all", "nowhere.yaml cannot be read: No such file"),
        ("publish -f README.md --all", "README.md, document 1: should be an object with kind and metadata"),
        ("publish -f examples/manifests", "say to whom: --node"),
        ("publish -f examples/manifests --all -n edge-1", "say to whom: --node"),
        ("--sessions nowhere sessions", "--sessions: should be HOST:PORT with a port"),
        ("--ca a.crt sessions", "--ca, --cert and --key go together"),
        ("--ca a.crt --cert b.crt --key c.key sessions", "b.crt"),
        ("--sessions hub.example.com:50052 sessions", "is not a loopback address"),
        ("frobnicate", "No such command 'frobnicate'"),
        ("--timeout 0 nodes", "Invalid value for '--timeout'"),
        ("session", "Missing argument 'NODE'"),
        ("publish --all", "Missing option '--file'"),
    ],
)
def test_a_wrong_command_line_is_told_in_a_sentence(
    arguments: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cloudhubctl", *arguments.split()])

    with pytest.raises(SystemExit) as ended:
        main()

    out, err = capsys.readouterr()
    assert told in err
    assert out == ""
    assert ended.value.code == ExitCode.USAGE


@pytest.mark.parametrize("service", ["dispatcher", "sessions", "connector"])
def test_an_address_that_may_hold_a_password_is_not_shown(
    service: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cloudhubctl", f"--{service}", "https://u:S3cret@hub:1", "nodes"])

    with pytest.raises(SystemExit) as ended:
        main()

    err = capsys.readouterr().err
    assert f"--{service}: should be HOST:PORT" in err
    assert "not shown" in err
    assert "S3cret" not in err
    assert ended.value.code == ExitCode.USAGE


@pytest.mark.parametrize(
    "arguments", ["purge {} --all", "delete-node {}", "revoke-node {}", "limits --project {}"]
)
def test_what_was_typed_is_repeated_in_part(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of any length."""
    monkeypatch.setattr("sys.argv", ["cloudhubctl", *arguments.format("n" * 20_000).split()])

    with pytest.raises(SystemExit):
        main()

    err = capsys.readouterr().err
    assert "nnn..." in err
    assert len(err) < 2_500


@pytest.mark.parametrize(
    ("words", "asked"),
    [([], False), (["nodes"], False), (["nodes", "-o", "json"], True), (["-o"], False), (["-ojson"], True)],
)
def test_who_asks_for_json_is_known_before_the_words_are_read(words: list[str], asked: bool) -> None:
    assert asks_for_json(words) is asked


def test_help_names_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cloudhubctl", "--help"])

    with pytest.raises(SystemExit) as ended:
        main()

    text = (ROOT / "docs" / "cloudhubctl.md").read_text()
    listed = capsys.readouterr().out.partition("Commands:\n")[2].split("\n")
    commands = [line.split()[0] for line in listed if line.startswith("  ") and line[2:3] != " "]
    assert len(commands) == 22
    assert [command for command in commands if f"`{command}" not in text] == []
    assert ended.value.code == ExitCode.OK


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("purge edge-1 -o json", "name an OBJECT, or give --all"),
        ("session --output json", "Missing argument 'NODE'"),
        ("frobnicate -ojson", "No such command 'frobnicate'"),
        ("limits --total -1 --output=json", "--total"),
    ],
)
def test_with_json_what_is_wrong_is_json_too(
    arguments: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cloudhubctl", *arguments.split()])

    with pytest.raises(SystemExit) as ended:
        main()

    out, err = capsys.readouterr()
    error = json.loads(err)["error"]
    assert (ended.value.code, out) == (ExitCode.USAGE, "")
    assert told in error.pop("message")
    assert error == {"code": "INVALID_ARGUMENT", "reason": "", "exit_code": 2}


def test_with_json_a_service_that_is_away_is_told_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cloudhubctl", "instances", "-o", "json"])

    with pytest.raises(SystemExit) as ended:
        main()

    out, err = capsys.readouterr()
    error = json.loads(err)["error"]
    assert (ended.value.code, out) == (ExitCode.UNREACHABLE, "")
    assert (error["code"], error["exit_code"]) == ("UNAVAILABLE", 3)
    assert "sessions at 127.0.0.1:1 cannot be reached" in error["message"]
