"""What the Dockerfile makes of each target, as a tree of this machine's own files: no image is built."""

import json
import re
import sys
from dataclasses import dataclass
from functools import cache

from tests.deploy.manifests import DOCKER, ROOT

HOME = "/opt/cloudhub"
"""Of the interpreter and its packages, in the image."""
SOURCE = "/opt/source"
"""Of the repository's packages, which an image has installed among the others."""


@dataclass(frozen=True)
class Image:
    """One target: what is started, with which variables, where, as whom unless a pod says otherwise."""

    entrypoint: list[str]
    variables: dict[str, str]
    folder: str
    packages: list[str]
    """Folders of the repository that it carries."""

    def read_only(self) -> dict[str, str]:
        """What of this machine stands for its files: path here and path there."""
        base = sys.base_prefix
        tree = {"/usr": "/usr", base: base, sys.prefix: HOME}
        return tree | {str(ROOT / name): f"{SOURCE}/{name}" for name in self.packages}


@cache
def _stages() -> dict[str, tuple[str, list[str]]]:
    """Name of a stage, the one that it begins with, and its lines."""
    text = re.sub(r"\\\n", " ", (DOCKER / "Dockerfile").read_text())
    found: dict[str, tuple[str, list[str]]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = re.fullmatch(r"FROM (\S+) AS (\S+)", line)
        if head:
            lines = []
            found[head[2]] = (head[1], lines)
        lines.append(line)
    return found


def image(target: str) -> Image:
    """The image of one target of the Dockerfile."""
    stages = _stages()
    lines: list[str] = []
    stage = target
    while stage in stages:
        stage, own = stages[stage]
        lines = own + lines
    assert lines, f"the Dockerfile has no target {target}"

    def last(word: str) -> str:
        return [line.removeprefix(word).strip() for line in lines if line.startswith(f"{word} ")][-1]

    variables = dict(part.split("=", 1) for part in last("ENV").split())
    packages = [name for name, to in re.findall(r"^COPY (\w+) (\w+)$", "\n".join(stages["build"][1]), re.M)]
    assert "services" in packages
    return Image(json.loads(last("ENTRYPOINT")), variables, last("WORKDIR"), packages)


def target_of(reference: str) -> str:
    """The Dockerfile's target behind an image of ours; empty: it is somebody else's."""
    match = re.fullmatch(r"cloudhub/(\w+):\S+", reference)
    return match[1] if match else ""
