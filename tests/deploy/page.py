"""The commands of docs/deployment.md that make certificates and secrets, carried out without a cluster."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.deploy.manifests import ROOT

PAGE = ROOT / "docs" / "deployment.md"


def commands() -> list[list[str]]:
    """The words of every command of the page's blocks that makes certificates or secrets."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    known = ("python -m edge.certificates ", "kubectl -n cloudhub create secret ")
    return [shlex.split(line) for line in lines if line.startswith(known)]


def secrets(folder: Path) -> dict[str, dict[str, bytes]]:
    """Every secret that the page makes, with its keys; the files come into `folder`."""
    found: dict[str, dict[str, bytes]] = {}
    for words in commands():
        if words[0] == "python":
            made = subprocess.run(
                [sys.executable, *words[1:]],
                cwd=folder,
                env={"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert made.returncode == 0, made.stderr
            continue
        kind, name, *options = words[words.index("secret") + 1 :]
        given = [option.split("=", 1) for option in options]
        if kind == "tls":
            files = dict(given)
            found[name] = {
                "tls.crt": (folder / files["--cert"]).read_bytes(),
                "tls.key": (folder / files["--key"]).read_bytes(),
            }
            continue
        keys: dict[str, bytes] = {}
        for option, value in given:
            key, _, content = value.partition("=")
            assert option in ("--from-file", "--from-literal"), option
            keys[key] = (folder / content).read_bytes() if option == "--from-file" else content.encode()
        found[name] = keys
    return found
