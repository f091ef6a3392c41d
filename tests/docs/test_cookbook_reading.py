"""Commands are read out of documents as a reader would, and other answers than those shown are told apart."""

import pytest

from tests.docs.cookbook import Command, commands_of, overlooked, same, varying_of

TERMINAL = """\
Text with `grpcurl`.

```
$ grpcurl -d '{
    "a": "$ 1"
  }' host x/Y
{
  "b": 1
}
$ (echo a; cat) |
    grpcurl -d @ \\
      host x/Z
one
2$ grpcurl host x/W >/dev/null
two
^C
$ ls
```
"""

ALONE = """\
```
grpcurl host \\
  x/Y
```
And then:
```json
{"b": ...}
```
```json
{"of": "nobody"}
```
"""


def test_a_terminal_is_read_command_by_command() -> None:
    assert commands_of(TERMINAL) == [
        Command(4, 'grpcurl -d \'{\n    "a": "$ 1"\n  }\' host x/Y', ('{\n  "b": 1\n}\n',)),
        Command(
            10,
            "(echo a; cat) |\n    grpcurl -d @ \\\n      host x/Z",
            ("one\n", "two\n"),
            ("grpcurl host x/W >/dev/null",),
            True,
            2,
        ),
    ]
    assert overlooked(TERMINAL) == []


def test_a_block_may_list_commands() -> None:
    listed = commands_of("```\n.venv/bin/cloudhubctl nodes\ngrpcurl a \\\n  b\n```\n```json\n{}\n```\n")

    assert [(one.line, one.text, one.answer) for one in listed] == [
        (2, ".venv/bin/cloudhubctl nodes", "..."),
        (3, "grpcurl a \\\n  b", "{}"),
    ]


def test_json_of_another_section_is_no_answer() -> None:
    [command] = commands_of("```\ngrpcurl a\n```\n## Logs\n```json\n{}\n```\n")

    assert command.answer == "..."


def test_a_command_alone_has_the_json_after_it_as_its_answer() -> None:
    [command] = commands_of(ALONE)

    assert command.text == "grpcurl host \\\n  x/Y"
    assert command.answer == '{"b": ...}'
    assert overlooked(ALONE) == []


@pytest.mark.parametrize(
    "document",
    [
        "Run `grpcurl -plaintext host list` now.\n",
        "```\n# as root\ngrpcurl host list\n```\n",
        "```\n$ ls\n```\n```\nsudo cloudhubctl nodes\n```\n",
        "```\nsudo .venv/bin/cloudhubctl nodes\n```\n",
        "```\n.venv/bin/cloudhubctl nodes\n# and then\ngrpcurl host list\n```\n",
    ],
)
def test_a_command_that_nobody_would_run_is_told(document: str) -> None:
    assert overlooked(document)


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ('{"a": 1}', '{\n  "a":  1\n}\n'),
        ('{"a": 1, ...}', '{"a": 1, "b": {"c": []}}'),
        ('{"a": [\n...\n', '{"a": ["x"]}'),
        ('"1795479141145"', '"1801234567890"'),
        ('"id": "d64c7ab2-31b2-49a9-96b0-46676b3addca"', '"id":"00000000-31b2-49a9-96b0-46676b3addca"'),
        ('"at": "2026-11-24T00:12:23.750Z"', '"at": "2027-01-02T03:04:05Z"'),
        ("lag  12 s", "lag 3 min"),
        ("x at 127.0.0.1:50053", "x at 127.0.0.1:9"),
        ('"tasks": 30, "n": "7"', '"tasks": 31, "n": "123"'),
    ],
)
def test_the_same_answer_of_another_run_is_the_same(shown: str, real: str) -> None:
    assert same(shown, real, {"tasks", "n"})


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1, ...}', '{"b": 1, "c": 3}'),
        ('"1795479141145"', '"12"'),
        ('"2026-11-24T00:12:23.750Z"', '"yesterday"'),
        ('"id": "d64c7ab2-31b2-49a9-96b0-46676b3addca"', '"id": ""'),
        ('"tasks": 30', '"tasks": "30"'),
        ("connected", "away"),
        ("", "something"),
    ],
)
def test_another_answer_is_not_the_same(shown: str, real: str) -> None:
    assert not same(shown, real, {"tasks"})


def test_the_beginning_of_an_answer_is_enough_so_far() -> None:
    assert same('{"a": 1}', '{"a": 1} {"b": 2}', so_far=True)
    assert not same('{"a": 1}', '{"a"', so_far=True)


def test_fields_that_vary_are_those_named_in_their_passage() -> None:
    document = "`x` <!-- varying -->The fields `a` and\n`b_c` vary.<!-- /varying --> `y`"

    assert varying_of(document) == {"a", "b_c"}
