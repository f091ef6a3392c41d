"""What is left over between two looks at a process: `chaos.resources`."""

from chaos.resources import Resources, resources_of
from cloudhub.v1.resources_pb2 import ConnectorResources, DispatcherResources, ProcessResources


def process(tasks_by_name: dict[str, int], descriptors: int = 20) -> ProcessResources:
    return ProcessResources(
        tasks=sum(tasks_by_name.values()),
        tasks_by_name=tasks_by_name,
        threads=4,
        file_descriptors=descriptors,
        resident_bytes=1000,
        memory_blocks=10,
    )


def held(links: int = 0, descriptors: int = 20, **tasks: int) -> Resources:
    return resources_of(ConnectorResources(process=process(tasks, descriptors), links=links))


def test_every_count_of_an_answer_is_taken() -> None:
    counts = held(links=3, run=2).counts
    assert (counts["links"], counts["tasks"], counts["threads"], counts["file_descriptors"]) == (3, 2, 4, 20)
    assert counts["queued_bytes"] == 0
    assert "process" not in counts


def test_memories_are_counted_apart() -> None:
    known = resources_of(DispatcherResources(process=process({}), locations=2, events_remembered=3))
    assert (known.remembered, known.counts["sessions"]) == (5, 0)
    assert known.left_over(resources_of(DispatcherResources(process=process({})))) == {}


def test_what_has_grown_is_left_over() -> None:
    before, after = held(run=2), held(links=1, descriptors=21, run=2, read=1)
    assert after.left_over(before) == {
        "links": (0, 1),
        "file_descriptors": (20, 21),
        "tasks": (2, 3),
        "task read": (0, 1),
    }


def test_what_has_shrunk_or_stayed_is_not() -> None:
    assert held(run=1).left_over(held(links=5, run=2)) == {}


def test_how_many_methods_wait_for_a_call_does_not_matter() -> None:
    before, after = held(**{"AioServer._request_call": 1, "run": 1}), held(run=1)
    assert before.left_over(after) == after.left_over(before) == {}


def test_another_task_in_place_of_one_is_left_over() -> None:
    assert held(read=1).left_over(held(run=1)) == {"task read": (0, 1)}
