"""Images of others are named by digest, and `scripts/pin_images.py` brings those up to date."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import pin_images
from tests.deploy.manifests import ROOT

OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "a" * 64


def images() -> dict[str, str]:
    """Every image of others with its digest, if it has one."""
    return {
        found["name"]: found["digest"] or ""
        for path in pin_images.files()
        for found in pin_images.IMAGE.finditer(path.read_text())
    }


def test_every_image_of_others_has_a_digest() -> None:
    found = images()
    assert len(found) == 6
    assert [name for name, digest in found.items() if not digest] == []


def test_no_image_of_others_is_overlooked() -> None:
    """Whatever names an image is either found by the script or is one of ours."""
    lines = [line.strip() for path in pin_images.files() for line in path.read_text().splitlines()]
    named = [line for line in lines if line.startswith(("image: ", "- image: ", "ARG BUILD", "ARG RUN"))]
    assert len(named) > 10
    assert [line for line in named if "cloudhub/" not in line and not pin_images.IMAGE.search(line)] == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("image: docker.io/prom/prometheus:v3\n", f"image: docker.io/prom/prometheus:v3@{NEW}\n"),
        (f"  image: docker.io/a/b:1@{OLD}\n", f"  image: docker.io/a/b:1@{NEW}\n"),
        ("ARG RUN_IMAGE=gcr.io/a/b-c:nonroot\n", f"ARG RUN_IMAGE=gcr.io/a/b-c:nonroot@{NEW}\n"),
        ("image: cloudhub/edge:0.1.0\n", "image: cloudhub/edge:0.1.0\n"),
        ("# image of docker.io/a/b:1\n", "# image of docker.io/a/b:1\n"),
    ],
)
def test_a_digest_is_added_or_replaced(text: str, wanted: str) -> None:
    assert pin_images.pinned(text, lambda image: NEW) == wanted


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """With nothing on the path but what the folder has."""
    return subprocess.run(
        [sys.executable, "-m", "scripts.pin_images", *flags],
        cwd=ROOT,
        env={**os.environ, "PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def registry(folder: Path, program: str, script: str) -> None:
    (folder / program).write_text(f"#!/bin/sh\n{script}\n")
    (folder / program).chmod(0o755)


def test_without_a_program_that_asks_registries_it_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, "--check")
    assert (done.returncode, done.stderr) == (1, "pin-images: neither crane nor skopeo is installed\n")


def test_a_registry_that_does_not_answer_is_told(tmp_path: Path) -> None:
    registry(tmp_path, "crane", "echo 'no such host' >&2; exit 1")
    done = run(tmp_path, "--check")
    assert done.returncode == 1
    assert done.stderr == f"pin-images: {next(iter(images()))}: no such host\n"


def test_a_check_tells_what_is_not_current_and_writes_nothing(tmp_path: Path) -> None:
    before = [path.read_text() for path in pin_images.files()]
    registry(tmp_path, "crane", f"echo {NEW}")
    done = run(tmp_path, "--check")
    assert done.returncode == 1
    assert "deploy/docker/compose.yaml is not current" in done.stdout
    assert [path.read_text() for path in pin_images.files()] == before


def test_skopeo_gives_the_digest_of_all_platforms_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the index is the sum of its bytes."""
    registry(tmp_path, "skopeo", 'printf "%s" "$*"')
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = hashlib.sha256(b"inspect --raw docker://docker.io/a/b:1").hexdigest()
    assert pin_images.current_digest("docker.io/a/b:1") == f"sha256:{wanted}"
