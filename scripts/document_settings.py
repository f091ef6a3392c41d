"""Writes the settings tables of docs/operations/settings.md from the settings classes; with --check, fails
when they are not current.

A table stands between `<!-- settings: NAME -->` and `<!-- end of settings: NAME -->`.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from services.connector.settings import ConnectorSettings
from services.dispatcher.settings import DispatcherSettings
from services.enrolment.settings import EnrolmentSettings
from services.runtime.settings import ServiceSettings
from services.sessions.settings import SessionsSettings

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "operations" / "settings.md"
SERVICES: dict[str, type[ServiceSettings]] = {
    "sessions": SessionsSettings,
    "dispatcher": DispatcherSettings,
    "connector": ConnectorSettings,
    "enrolment": EnrolmentSettings,
}
_BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def _number(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _values(field: FieldInfo) -> str:
    """What a field may be: its words, or the bounds of its number."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(field.annotation))
    bounds = [
        text.format(_number(getattr(rule, name)))
        for rule in field.metadata
        for name, text in _BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join(bounds)


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value == "":
        return ""
    if isinstance(value, int | float):
        return _number(value)
    return f"`{value}`"


def table(settings: type[ServiceSettings]) -> str:
    """The Markdown table of one service's settings."""
    prefix = str(settings.model_config.get("env_prefix", ""))
    shared = set(ServiceSettings.model_fields)
    fields = settings.model_fields
    own_first = [name for name in fields if name not in shared] + [name for name in fields if name in shared]
    lines = ["| flag | variable | default | values | meaning |", "| --- | --- | --- | --- | --- |"]
    for name in own_first:
        field = fields[name]
        lines.append(
            f"| `--{name.replace('_', '-')}` | `{(prefix + name).upper()}` | {_default(field)} "
            f"| {_values(field)} | {field.description} |"
        )
    return "\n".join(lines)


def rendered(text: str) -> str:
    """`text` with every settings table made anew; ValueError if a service has no place for its table."""
    for name, settings in SERVICES.items():
        begin, end = f"<!-- settings: {name} -->", f"<!-- end of settings: {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        body = f"{begin}\n{table(settings)}\n{end}"
        text, found = pattern.subn(body.replace("\\", r"\\"), text)
        if found != 1:
            raise ValueError(f"the lines {begin} and {end} should stand once, found {found}")
    return text


def _differences(old: str, new: str) -> Iterator[str]:
    known = set(old.splitlines())
    return (line for line in new.splitlines() if line not in known)


def main() -> None:
    """Rewrites the document, or with --check compares it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if something would change")
    check = parser.parse_args().check
    old = DOCUMENT.read_text()
    try:
        new = rendered(old)
    except ValueError as error:
        raise SystemExit(f"docs/operations/settings.md: {error}") from None
    if not check:
        DOCUMENT.write_text(new)
    elif new != old:
        print("docs/operations/settings.md: the settings tables are not current;", file=sys.stderr)
        print("run python scripts/document_settings.py. Lines that would be new:", file=sys.stderr)
        for line in _differences(old, new):
            print(f"  {line}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
