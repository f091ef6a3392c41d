"""scripts/get_tools.py: a program is got once, whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from scripts import get_tools
from scripts.get_tools import Tool, ToolFault
from tests.support.tools import program


class Maker:
    """Makes the files that it is told to, or fails."""

    def __init__(self, *files: str) -> None:
        self.files = files
        self.calls = 0
        self.fault = ""

    def __call__(self, into: Path, version: str) -> None:
        self.calls += 1
        for file in self.files:
            (into / file).write_text(version)
        if self.fault:
            raise ToolFault(self.fault)


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    made = Maker("a", "b")
    monkeypatch.setenv("CLOUDHUB_TOOLS", str(tmp_path / "tools"))
    monkeypatch.setattr(get_tools, "TOOLS", {"thing": Tool("v1", ("a", "b"), made)})
    return made


def test_a_tool_is_made_once(maker: Maker, tmp_path: Path) -> None:
    folder = get_tools.get("thing")
    assert folder == tmp_path / "tools" / "thing-v1"
    assert {file.name: file.read_text() for file in folder.iterdir()} == {"a": "v1", "b": "v1"}
    assert get_tools.get("thing") == folder
    assert maker.calls == 1


def test_two_that_want_it_at_once_make_it_once(maker: Maker) -> None:
    threads = [threading.Thread(target=get_tools.get, args=("thing",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert maker.calls == 1


def test_what_failed_half_way_is_not_taken_for_the_tool(maker: Maker) -> None:
    maker.fault = "no compiler"
    with pytest.raises(ToolFault, match="no compiler"):
        get_tools.get("thing")
    assert not get_tools.path_of("thing").exists()
    maker.fault = ""
    assert (get_tools.get("thing") / "a").exists()


def test_a_tool_that_comes_without_its_program_is_none(maker: Maker) -> None:
    maker.files = ("a",)
    with pytest.raises(ToolFault, match="thing v1 came without b"):
        get_tools.get("thing")
    assert not get_tools.path_of("thing").exists()


def test_the_command_ends_with_one_sentence(maker: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    maker.fault = "no compiler"
    assert get_tools.main(["thing"]) == 1
    assert capsys.readouterr().err == "thing: no compiler\n"
    maker.fault = ""
    assert get_tools.main(["thing"]) == 0


def test_a_program_that_is_missing_skips_a_test_here_and_fails_it_in_ci(
    maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(get_tools.TOOLS, "jaeger", Tool("v0", ("jaeger",), maker))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"by `python -m scripts\.get_tools jaeger`"):
        program("jaeger", "jaeger")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"by `python -m scripts\.get_tools jaeger`"):
        program("jaeger", "jaeger")


def test_a_command_that_fails_or_is_absent_says_how() -> None:
    with pytest.raises(ToolFault, match="no-such-program is not installed"):
        get_tools._run("no-such-program")
    with pytest.raises(ToolFault, match="false failed"):
        get_tools._run("false")


def test_a_client_is_built_anew_when_its_source_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a build by hand leaves in the folder is no source."""
    monkeypatch.setattr(get_tools, "ROOT", tmp_path)
    folder = tmp_path / "examples" / "client"
    folder.mkdir(parents=True)
    (folder / "main.go").write_text("package main")
    first = get_tools._source_version("client")
    (folder / "client").write_text("a program")
    (folder / "target").mkdir()
    (folder / "target" / "generated.rs").write_text("")
    assert get_tools._source_version("client") == first
    (folder / "go.sum").write_text("a sum")
    second = get_tools._source_version("client")
    (folder / "main.go").write_text("package main\n")
    assert len({first, second, get_tools._source_version("client")}) == 3


@pytest.mark.parametrize("version", ["cargo 1.84.1 (66221abde 2024-11-19)", "no toolchain"])
def test_where_no_cargo_is_new_enough_the_sentence_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    cargo = tmp_path / "cargo"
    cargo.write_text(f"#!/bin/sh\necho '{version}'\n")
    cargo.chmod(0o755)
    with pytest.raises(ToolFault, match=r"no cargo of 1\.85 or newer is here.* PEERS=edge-go"):
        get_tools._cargo()
    cargo.write_text("#!/bin/sh\necho 'cargo 1.85.0 (d73d2caf9 2024-12-31)'\n")
    assert get_tools._cargo() == str(cargo)
