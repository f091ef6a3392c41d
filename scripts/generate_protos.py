"""Generates cloudhub/v1 from protos/; with --check, fails when the committed code is not current."""

import argparse
import filecmp
import sys
import sysconfig
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def generate(out: Path) -> None:
    """Writes messages, stubs and their types under `out`; exits when protoc refuses."""
    well_known = Path(sysconfig.get_path("purelib")) / "grpc_tools" / "_proto"
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    plugins = Path(sys.executable).parent
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={well_known}",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out={out}",
            f"--mypy_grpc_out={out}",
            *sources,
        ]
    )
    if status:
        raise SystemExit(f"protoc failed with status {status}")
    for package in (out / "cloudhub", out / "cloudhub" / "v1"):
        (package / "__init__.py").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = sorted(path.relative_to(fresh) for path in fresh.rglob("*.py*"))
        stale = [
            str(n) for n in names if not (ROOT / n).exists() or not filecmp.cmp(fresh / n, ROOT / n, False)
        ]
    if stale:
        raise SystemExit("generated code is not current, run `make protos`: " + ", ".join(stale))


if __name__ == "__main__":
    main()
