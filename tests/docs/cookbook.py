"""The commands that documents show, with the answers they show, and whether another answer is the same. Pure.

A code block is read as a terminal: `$ ` begins a command, what follows up to the next one is its answer.
A block without `$ ` lists commands, and a block of JSON next in its section answers the last one. `^C` at the
end of an answer says that the command goes on until Ctrl-C; `2$ ` begins what was typed at a second terminal
meanwhile.
"""

import re
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass

PROGRAMS = ("grpcurl", "cloudhubctl")

_NAMED = re.compile(rf"(?<![\w-])(?:{'|'.join(PROGRAMS)})(?=\s|$)")
_ALONE = re.compile(rf"(?:[\w./-]+/)?(?:{'|'.join(PROGRAMS)})\s")
_INLINE = re.compile(r"`grpcurl -[^`]*`")
_VARYING = re.compile(r"<!-- varying -->(.*?)<!-- /varying -->", re.DOTALL)

# Values that no two runs have in common, by how they look.
_FORMS = (
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "@uuid@"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "@id@"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z"), "@time@"),
    (re.compile(r"\b\d\d:\d\d:\d\d(?:\.\d+)?\b"), "@time@"),
    (re.compile(r"\b127\.0\.0\.1:\d+\b"), "@address@"),
    (re.compile(r"\b1[6-9]\d{11}\b"), "@ms@"),
    (re.compile(r"\b1[6-9]\d{14}\b"), "@us@"),
    (re.compile(r"\b\d+(?:\.\d+)? (?:ms|s|min|h|d)\b(?: ago)?"), "@age@"),
)
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\.\.\.|[\w@/+-]+(?:\.[\w@/+-]+)*|\S')
_ELLIPSIS = "..."


@dataclass(frozen=True, slots=True)
class Command:
    """What a reader types, and sees."""

    line: int
    """Of the document, from 1."""
    text: str
    """For the shell."""
    answers: tuple[str, ...]
    """What it writes; of several, each but the last is there before the next of `meanwhile` is typed."""
    meanwhile: tuple[str, ...] = ()
    """Commands of the second terminal."""
    interrupted: bool = False
    """It goes on until Ctrl-C."""
    lines: int = 1
    """Of the document that name a program of PROGRAMS in it or in `meanwhile`."""

    @property
    def answer(self) -> str:
        """All of it."""
        return "\n".join(self.answers)


@dataclass(slots=True)
class _Block:
    line: int
    kind: str
    lines: list[str]
    section: int
    """The line of the heading above it."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def _blocks(document: str) -> Iterator[_Block]:
    block: _Block | None = None
    section = 0
    for number, line in enumerate(document.splitlines(), 1):
        if block is None and line.startswith("#"):
            section = number
        elif block is None and line.startswith("```"):
            block = _Block(number + 1, line[3:].strip(), [], section)
        elif block is not None and line.startswith("```"):
            yield block
            block = None
        elif block is not None:
            block.lines.append(line)


def _goes_on(text: str) -> bool:
    """Whether the shell would ask for another line."""
    if text.rstrip().endswith(("\\", "|")):
        return True
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return True
    return False


def _names(text: str) -> int:
    """Lines that name a program."""
    return sum(1 for line in text.splitlines() if _NAMED.search(line))


def _take(lines: list[str], at: int, prompt: str) -> tuple[str, int]:
    """The command that begins in a line, and the line after it."""
    text = lines[at].removeprefix(prompt)
    at += 1
    while _goes_on(text) and at < len(lines):
        text += "\n" + lines[at]
        at += 1
    return text, at


def _terminal(block: _Block) -> Iterator[Command]:
    lines, at = block.lines, 0
    while at < len(lines):
        if not lines[at].startswith("$ "):
            at += 1
            continue
        line = block.line + at
        text, at = _take(lines, at, "$ ")
        answers, meanwhile, interrupted = [""], [], False
        while at < len(lines) and not lines[at].startswith("$ "):
            if lines[at].startswith("2$ "):
                other, at = _take(lines, at, "2$ ")
                meanwhile.append(other)
                answers.append("")
                continue
            interrupted = interrupted or lines[at] == "^C"
            answers[-1] += "" if lines[at] == "^C" else lines[at] + "\n"
            at += 1
        named = _names("\n".join((text, *meanwhile)))
        yield Command(line, text, tuple(answers), tuple(meanwhile), interrupted, named)


def _listed(block: _Block) -> Iterator[Command]:
    """The commands of a block that shows nothing else."""
    at = 0
    while at < len(block.lines) and _ALONE.match(block.lines[at]):
        line = block.line + at
        text, at = _take(block.lines, at, "")
        yield Command(line, text, (_ELLIPSIS,), lines=_names(text))


def commands_of(document: str) -> list[Command]:
    """Every command that a document shows, in order."""
    found: list[Command] = []
    alone: Command | None = None
    section = 0
    for block in _blocks(document):
        if any(line.startswith("$ ") for line in block.lines):
            found.extend(command for command in _terminal(block) if command.lines)
            alone = None
        elif _ALONE.match(block.text):
            found.extend(_listed(block))
            alone, section = found[-1], block.section
        else:
            if alone is not None and (block.kind, block.section) == ("json", section):
                found[-1] = Command(alone.line, alone.text, (block.text,), lines=alone.lines)
            alone = None
    return found


def overlooked(document: str) -> list[str]:
    """What names a program in a way that `commands_of` does not read: nobody would run it."""
    missing = list(_INLINE.findall(document))
    read = sum(command.lines for command in commands_of(document))
    answers = sum(_names(command.answer) for command in commands_of(document))
    named = sum(_names(block.text) for block in _blocks(document))
    if named != read + answers:
        missing.append(f"{named} lines of code blocks name {' or '.join(PROGRAMS)}, {read} are commands")
    return missing


def varying_of(document: str) -> frozenset[str]:
    """The fields whose values a document says to differ from run to run."""
    return frozenset(
        name for passage in _VARYING.findall(document) for name in re.findall(r"`(\w+)`", passage)
    )


def _formed(text: str) -> str:
    for form, name in _FORMS:
        text = form.sub(name, text)
    return text


def _tokens(text: str, varying: Collection[str]) -> list[str]:
    tokens = _TOKEN.findall(_formed(text))
    for at in range(len(tokens) - 2):
        if tokens[at + 1] == ":" and tokens[at][1:-1] in varying and tokens[at].startswith('"'):
            value = tokens[at + 2]
            if value.startswith('"'):
                tokens[at + 2] = '"@text@"'
            elif re.fullmatch(r"-?[\d.]+(?:e-?\d+)?", value):
                tokens[at + 2] = "@number@"
    return tokens


def same(shown: str, real: str, varying: Collection[str] = (), *, so_far: bool = False) -> bool:
    """Whether an answer is the one shown: `...` stands for anything; ids made by the hub, times, epochs and
    ports are compared by their form, and so are the fields in `varying`; white space does not count.

    With `so_far` more may follow.
    """
    pattern = ""
    for token in _tokens(shown, varying):
        pattern += "(?:.*\n)*?" if token == _ELLIPSIS else re.escape(token) + "\n"
    if so_far:
        pattern += "(?:.*\n)*"
    text = "".join(token + "\n" for token in _tokens(real, varying))
    return re.fullmatch(pattern, text) is not None
