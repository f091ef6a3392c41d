"""When a hub has grown: `soak.growth`."""

from collections.abc import Callable

from msgspec import structs

from soak.growth import growth
from soak.samples import ProcessSample, Sample

MIB = 1024 * 1024
DAY_SECONDS = 240.0


def run(
    memory: Callable[[float], float],
    tasks: Callable[[float], int] = lambda at: 30,
    seconds: int = 720,
    blocks: Callable[[float], float] = lambda at: 500_000,
    process: str = "dispatcher-1",
) -> list[Sample]:
    """A sample every two seconds of days of 240 s; the process is restarted at 300 s."""
    return [
        Sample(
            at=at,
            day=int(at // DAY_SECONDS),
            hour=at % DAY_SECONDS / DAY_SECONDS * 24,
            links=1,
            pending=0,
            accepted=0,
            p50_ms=None,
            p99_ms=None,
            processes=[
                ProcessSample(
                    *(process, int(at >= 300), int(memory(at) * MIB), int(blocks(at)), tasks(at), 4, 20)
                )
            ],
        )
        for at in map(float, range(0, seconds, 2))
    ]


def test_a_hub_that_stays_as_it_is_has_not_grown() -> None:
    assert growth(run(lambda at: 100.0)) == []
    assert growth([]) == []


def test_a_process_that_takes_a_megabyte_every_second_has_grown() -> None:
    (sentence,) = growth(run(lambda at: 100 + (2 * at if at < 300 else 0)))
    assert sentence == "dispatcher-1 grew from 248 to 608 MiB in its life from 0 s on"


def test_the_caches_of_a_database_are_no_growth_but_a_connector_has_none() -> None:
    def filling(at: float) -> float:
        return 100 + min(128.0, at / 2)

    assert growth(run(filling)) == []
    assert [one.partition(" in ")[0] for one in growth(run(filling, process="connector-1"))] == [
        "connector-1 grew from 137 to 227 MiB"
    ]


def test_objects_that_pile_up_are_growth_whatever_the_memory() -> None:
    (sentence,) = growth(run(lambda at: 100.0, blocks=lambda at: 500_000 + (2000 * at if at < 300 else 0)))
    assert sentence == "dispatcher-1 grew from 648000 to 1008000 blocks of memory in its life from 0 s on"


def test_what_a_process_takes_at_its_start_is_no_growth() -> None:
    assert growth(run(lambda at: 60 + min(60.0, 3 * at))) == []


def test_each_life_has_a_beginning_of_its_own() -> None:
    assert growth(run(lambda at: 100.0 if at < 300 else 180.0)) == []


def test_more_tasks_in_the_last_night_than_in_the_first_are_growth() -> None:
    assert growth(run(lambda at: 100.0, lambda at: 30 + int(at // DAY_SECONDS) * 5)) == [
        "dispatcher held 40 tasks in the last night, 30 in the first"
    ]
    assert growth(run(lambda at: 100.0, lambda at: 30 + int(at // DAY_SECONDS))) == []


def test_tasks_that_are_with_another_replica_each_night_are_no_growth() -> None:
    """As are the descriptors of links."""

    def other_half(at: float) -> int:
        return 40 if at // DAY_SECONDS % 2 else 30

    one = run(lambda at: 100.0, other_half)
    two = run(lambda at: 100.0, lambda at: 70 - other_half(at), process="dispatcher-2")
    both = [
        structs.replace(first, processes=first.processes + second.processes)
        for first, second in zip(one, two, strict=True)
    ]
    assert growth(both) == []
    assert growth([sample for sample in one if sample.day < 2]) != [], "one replica alone has grown"


def test_tasks_of_the_day_are_not_looked_at() -> None:
    assert growth(run(lambda at: 100.0, lambda at: 30 if at % DAY_SECONDS < 60 else 500)) == []
