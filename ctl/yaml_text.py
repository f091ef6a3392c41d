"""YAML of people, read within bounds: what is wrong is one sentence, whatever it is. Pure."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

MAX_TEXT_BYTES = 16 * 1024 * 1024
"""Of one file, or of the standard input."""
MAX_CONTENT_BYTES = 4 * 1024 * 1024
"""Of one object as JSON: no message is larger. Anchors are written out there wherever they are used."""
MAX_DEPTH = 100
"""Of an object; what reads and writes it takes some frames of the stack for each level."""
_MAX_MERGED = 100_000
_MERGE = "tag:yaml.org,2002:merge"
_MOST_SHOWN = 60

# What PyYAML's constructors raise of values that are none: endless numbers, senseless dates, wrong tags.
_NO_VALUE = (ValueError, OverflowError, IndexError, KeyError, AttributeError, TypeError)


class YamlFault(Exception):
    """The text cannot be read; the sentence begins behind the name of the file."""


class _Loader(yaml.SafeLoader):
    """Names values that are none with their place. Merges (`<<`) do not grow beyond a bound: each may repeat
    what the one before it repeats."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Raises YAMLError, whatever the conversion of a value fails with."""
        try:
            return super().construct_object(node, deep=deep)
        except _NO_VALUE:
            shown = f"{node.value[:_MOST_SHOWN]!r} is" if isinstance(node, yaml.ScalarNode) else "this is"
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{shown} no {kind}, or one too long; quote it if it is text",
                problem_mark=node.start_mark,
            ) from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuses before anything is copied."""
        pairs = 0
        for key, value in node.value:
            if key.tag != _MERGE:
                continue
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(part, yaml.MappingNode):
                    self.flatten_mapping(part)
                    pairs += len(part.value)
                if pairs > _MAX_MERGED:
                    raise yaml.MarkedYAMLError(
                        problem=f"merges come to more than {_MAX_MERGED} fields", problem_mark=node.start_mark
                    )
        super().flatten_mapping(node)


def documents(text: str) -> Iterator[Any]:
    """What each document of a text holds, one after the other. Raises YamlFault."""
    number = 1
    try:
        for body in yaml.load_all(text, _Loader):
            yield body
            number += 1
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise YamlFault(f"is no YAML: {error.problem}{place}") from None
    except yaml.YAMLError as error:
        raise YamlFault(f"is no YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise YamlFault(f"document {number}: is nested deeper than {MAX_DEPTH} levels") from None


@dataclass(slots=True)
class _Open:
    """A mapping or list that is being measured."""

    value: dict[Any, Any] | list[Any]
    rest: Iterator[Any]
    bytes: int
    depth: int = 1


def _opened(value: dict[Any, Any] | list[Any]) -> _Open:
    if isinstance(value, list):
        return _Open(value, iter(value), len(value))
    keys = sum(len(key) if isinstance(key, str) else 1 for key in value)
    return _Open(value, iter(value.values()), keys + 4 * len(value))


def check_extent(value: Any) -> None:
    """Raises YamlFault for what is too large or too deep as JSON, before it is written out.

    What anchors repeat is measured once, however often it comes.
    """
    measured: dict[int, tuple[int, int]] = {}  # bytes and levels by identity: all lives as long as `value`
    ways = [_opened([value])]
    above = {id(ways[0].value)}
    while ways:
        way = ways[-1]
        for one in way.rest:
            if not isinstance(one, dict | list):
                way.bytes += len(one) if isinstance(one, str) else 1
            elif id(one) in above:
                raise YamlFault("contains itself, by an anchor")
            elif id(one) in measured:
                _add(way, *measured[id(one)])
            else:
                ways.append(_opened(one))
                above.add(id(one))
                break
        else:
            ways.pop()
            above.discard(id(way.value))
            measured[id(way.value)] = way.bytes, way.depth
            if ways:
                _add(ways[-1], way.bytes, way.depth)
        if way.bytes > MAX_CONTENT_BYTES:
            raise YamlFault(f"comes to more than {MAX_CONTENT_BYTES} bytes with its anchors written out")
        if max(way.depth, len(ways)) > MAX_DEPTH:
            raise YamlFault(f"is nested deeper than {MAX_DEPTH} levels")


def _add(way: _Open, size_bytes: int, depth: int) -> None:
    way.bytes += size_bytes
    way.depth = max(way.depth, depth + 1)


def json_bytes(value: Any) -> bytes:
    """A value as JSON in UTF-8, every character as it is. Raises YamlFault for what JSON cannot say."""
    check_extent(value)
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise YamlFault("has half of a surrogate pair, which is no character") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise YamlFault(
            f"has a value that JSON cannot say ({str(error)[: 2 * _MOST_SHOWN]}); quote it"
        ) from None
