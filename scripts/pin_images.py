"""Names the images of others in deploy/ by digest: `python -m scripts.pin_images`. It asks the registries by
crane or skopeo.

Every NAME:TAG gets the digest that its tag has now, and every NAME:TAG@sha256:... the one of its tag if that
has changed. With --check nothing is written, and a digest that is not current is a failure.
"""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
# A registry's name has a dot; images of our own have none.
IMAGE = re.compile(
    r"(?P<before>(?:\bimage: |\bARG \w+_IMAGE=))"
    r"(?P<name>[a-z0-9-]+(?:\.[a-z0-9-]+)+/[\w./-]+:[\w.-]+)(?P<digest>@sha256:[0-9a-f]{64})?"
)


class PinFault(Exception):
    """A digest could not be had; the text says why."""


def files() -> Iterator[Path]:
    """Where images are named."""
    yield DEPLOY / "docker" / "Dockerfile"
    yield from sorted(path for path in DEPLOY.rglob("*.yaml"))


def current_digest(image: str) -> str:
    """What the registry has for NAME:TAG, for all platforms together. Raises PinFault."""
    if crane := shutil.which("crane"):
        command = [crane, "digest", image]
    elif skopeo := shutil.which("skopeo"):
        command = [skopeo, "inspect", "--raw", f"docker://{image}"]
    else:
        raise PinFault("neither crane nor skopeo is installed")
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise PinFault(f"{image}: {done.stderr.decode(errors='replace').strip()}")
    if crane:
        return done.stdout.decode().strip()
    return f"sha256:{hashlib.sha256(done.stdout).hexdigest()}"


def pinned(text: str, digest_of: Callable[[str], str]) -> str:
    """The text with a current digest behind every image of others."""
    return IMAGE.sub(lambda found: f"{found['before']}{found['name']}@{digest_of(found['name'])}", text)


def main() -> int:
    """Pins, or checks; 1 with a sentence when something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a digest is not current")
    check = parser.parse_args().check
    digests: dict[str, str] = {}

    def digest_of(image: str) -> str:
        if image not in digests:
            digests[image] = current_digest(image)
        return digests[image]

    changed = False
    for path in files():
        text = path.read_text()
        try:
            new = pinned(text, digest_of)
        except PinFault as fault:
            print(f"pin-images: {fault}", file=sys.stderr)
            return 1
        if new != text:
            changed = True
            print(f"{path.relative_to(DEPLOY.parent)} {'is not current' if check else 'changed'}")
            if not check:
                path.write_text(new)
    return int(check and changed)


if __name__ == "__main__":
    sys.exit(main())
