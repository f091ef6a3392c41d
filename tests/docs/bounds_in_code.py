"""What bounds something, and what grows, as the code of `services` and `edge` says it."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_BOUND = re.compile(
    r"(^|_)(max|most|limit|limits|burst|backlog|pool|queue|queued|congested|at_once|look_at|attempts|per|rows"
    r"|steps|loaded|reserved|part|parts|trimmed|buffer|wal|waiting|held|large|turn|turns|credit|total|portions|lines"
    r"|unfit|share|depth|kept|remembered|bounds)(_|$)",
    re.IGNORECASE,
)
_OF_BOUNDS = re.compile(r"(Limits|Bounds|Quotas|Window|PolicySettings|UpstreamSettings)$")
_GROWING = re.compile(
    r"(\{\}|\[\]|set\(\)|deque\(|OrderedDict\(|defaultdict\(|dict\(\)|list\(\)|bytearray\(|(asyncio\.)?\w*Queue\()"
)
_GROWING_FIELD = re.compile(r"default_factory=(list|dict|set|deque|OrderedDict|defaultdict|bytearray)\b")
_WRITES_FILES = re.compile(
    r"O_CREAT|\.open\('([wax]|r\+)|\bopen\([^)]*, '[wax]|write_text\(|write_bytes\(|\.mkdir\(|mkdtemp\("
    r"|TemporaryDirectory\(|NamedTemporaryFile\(|mkstemp\(|sqlite3\.connect\(|FileHandler\("
)


@dataclass(frozen=True, slots=True)
class Module:
    """One file of the product."""

    name: str
    """`dispatcher.outbox.writer`, `edge.store`."""
    tree: ast.Module


@cache
def modules() -> tuple[Module, ...]:
    """All of `services` and `edge`; migrations are history."""
    found = []
    for path in sorted([*(ROOT / "services").rglob("*.py"), *(ROOT / "edge").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "migrations" not in parts and parts[1:] != ("__init__",):
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            name = ".".join(parts if parts[0] == "edge" else parts[1:])
            found.append(Module(name, ast.parse(path.read_text())))
    return tuple(found)


_OPTION = re.compile(r"(?P<constant>[\w.]+)\[(?P<option>[\w.]+)\]")


def value_of(name: str) -> object:
    """Of a constant, a default, a cache's size or an option of gRPC's: `module.CONSTANT`,
    `module.Class.field`, `module.function`, `module.CONSTANT[grpc.option]`. Raises AssertionError."""
    if option := _OPTION.fullmatch(name):
        pairs = value_of(option["constant"])
        assert isinstance(pairs, list)
        return dict(pairs)[option["option"]]
    parts = name.split(".")
    known = {module.name for module in modules()}
    cut = max((size for size in range(len(parts)) if ".".join(parts[:size]) in known), default=0)
    assert cut, f"{name}: no such module"
    module = ".".join(parts[:cut])
    found: object = importlib.import_module(module if parts[0] == "edge" else f"services.{module}")
    for part in parts[cut:]:
        if isinstance(found, type) and not part.isupper():
            found = inspect.signature(found).parameters[part].default
        else:
            assert hasattr(found, part), f"{name}: there is no {part}"
            found = getattr(found, part)
    return found.cache_parameters()["maxsize"] if hasattr(found, "cache_parameters") else found


def _is_number(node: ast.expr) -> bool:
    """A number, arithmetic of numbers and constants, or several."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and node.value not in (0, 1)
    if isinstance(node, ast.BinOp):
        return True
    return isinstance(node, ast.Tuple) and any(map(_is_number, node.elts))


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for node in body:
        if isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            yield node.target.id, node.value
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
                elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    for one, value in zip(target.elts, node.value.elts, strict=True):
                        if isinstance(one, ast.Name):
                            yield one.id, value


def _classes(module: Module) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef))


def constants() -> Iterator[str]:
    """Constants of modules that are bounds by their name, and functions with a cache."""
    for module in modules():
        for name, value in _assigned(module.tree.body):
            if name.isupper() and _BOUND.search(name) and _is_number(value):
                yield f"{module.name}.{name}"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef) and any(
                re.search(r"\b(lru_cache|cache)\b", ast.unparse(one)) for one in node.decorator_list
            ):
                yield f"{module.name}.{node.name}"


def defaults() -> Iterator[str]:
    """Fields of classes and parameters of their making that are bounds and have a number as default."""
    for module in modules():
        for kind in _classes(module):
            of_bounds = bool(_OF_BOUNDS.search(kind.name))
            for name, value in _assigned(kind.body):
                if not name.isupper() and (of_bounds or _BOUND.search(name)) and _is_number(value):
                    yield f"{module.name}.{kind.name}.{name}"
            for method in kind.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    given = method.args
                    placed = given.args[len(given.args) - len(given.defaults) :]
                    for argument, default in [
                        *zip(placed, given.defaults, strict=True),
                        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
                    ]:
                        if default is not None and _BOUND.search(argument.arg) and _is_number(default):
                            yield f"{module.name}.{kind.name}.{argument.arg}"


def options() -> Iterator[str]:
    """Options of gRPC's that are bounds, in lists that are constants."""
    for module in modules():
        for name, value in _assigned(module.tree.body):
            for pair in ast.walk(value):
                if (
                    isinstance(pair, ast.Tuple)
                    and isinstance(option := pair.elts[0], ast.Constant)
                    and isinstance(option.value, str)
                    and re.match(
                        r"grpc\..*\b(absolute_)?max_(?!reconnect|pings|connection)", str(option.value)
                    )
                ):
                    yield f"{module.name}.{name}[{option.value}]"


def growing() -> Iterator[str]:
    """Classes that hold something that grows."""
    for module in modules():
        for kind in _classes(module):
            made = [
                ast.unparse(node.value)
                for method in kind.body
                if isinstance(method, ast.FunctionDef)
                for node in ast.walk(method)
                if isinstance(node, ast.Assign | ast.AnnAssign)
                and node.value is not None
                and re.match(
                    r"self\.", ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
                )
            ]
            fields = [
                ast.unparse(node.value)
                for node in kind.body
                if isinstance(node, ast.AnnAssign) and node.value is not None
            ]
            if any(map(_GROWING.match, made)) or any(map(_GROWING_FIELD.search, fields)):
                yield f"{module.name}.{kind.name}"


def writers_of_files() -> Iterator[str]:
    """Modules that make files or folders."""
    for module in modules():
        if _WRITES_FILES.search(ast.unparse(module.tree)):
            yield module.name
