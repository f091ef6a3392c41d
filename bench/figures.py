"""What was measured, as it goes into the JSON file. Pure."""

import msgspec


class Throughput(msgspec.Struct):
    """Acknowledged messages, counted where their acknowledgement is on the hub's disk."""

    messages: int
    seconds: float
    per_second: float
    superseded: int
    repeated: int
    """Acknowledged more than once."""
    cpu_seconds_per_100k: dict[str, float]


class Latency(msgspec.Struct):
    """From the publisher's call to the acknowledgement written by the edge."""

    per_second: float
    messages: int
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None


class Connects(msgspec.Struct):
    """All nodes dial at once (64 handshakes at a time, as the edge agent does)."""

    seconds: float
    per_second: float
    cpu_ms_per_connect: dict[str, float]


class Memory(msgspec.Struct):
    """Resident memory with no link and with idle ones."""

    links: int
    before_kib: dict[str, int]
    after_kib: dict[str, int]
    kib_per_link: dict[str, float]


class Case(msgspec.Struct):
    """One number of nodes, with a hub and databases of its own."""

    nodes: int
    connects: Connects | None = None
    memory: Memory | None = None
    throughput: Throughput | None = None
    latency: Latency | None = None


class Results(msgspec.Struct):
    """A whole run."""

    at: str
    machine: dict[str, str | int | float]
    settings: dict[str, str | int | float]
    cases: list[Case] = []


class Target(msgspec.Struct):
    """What is aimed at, and what came out."""

    text: str
    value: float
    met: bool


def targets(results: Results) -> list[Target]:
    """The targets that the run says something about. Of PostgreSQL there is one for two replicas."""
    found: list[Target] = []
    is_shared = results.settings["store"] == "postgresql"
    least = 8000 if is_shared else 5000
    for case in results.cases:
        if (
            case.nodes == 100
            and case.throughput is not None
            and is_shared == (results.settings["replicas"] == 2)
        ):
            rate = case.throughput.per_second
            text = f"at least {least // 1000} 000 acknowledged/s with 100 nodes"
            found.append(Target(text, rate, rate >= least))
        if case.nodes >= 1000 and case.memory is not None:
            for name, most in (("connector", 100), ("dispatcher", 20)):
                size = case.memory.kib_per_link[name]
                found.append(Target(f"at most {most} KiB per idle link in the {name}", size, size <= most))
    return found
