"""How the processes of a hub are started."""

import io
from collections import Counter
from pathlib import Path

from rich.console import Console

from demo.databases import Databases, sqlite_databases
from demo.display import Figures, picture, rows
from demo.hub import Hub, make_hub
from demo.operator import HubFigures, Process
from demo.ports import HubPorts, choose_ports


def _hub(replicas: int, **flags: list[str]) -> Hub:
    ports = tuple(HubPorts().of_replica(number) for number in range(replicas))
    databases = (
        Databases("postgresql://s", "postgresql://d") if replicas > 1 else sqlite_databases(Path("data"))
    )
    return make_hub(Path("data"), Path("certificates"), ports, databases, flags=flags)


def _flag(hub: Hub, service: str, number: int, flag: str) -> str:
    arguments = hub.of(service)[number - 1].arguments
    return arguments[arguments.index(flag) + 1]


def test_one_replica_listens_on_the_documented_ports_and_keeps_its_state_in_files() -> None:
    hub = _hub(1)
    assert [instance.name for instance in hub.instances] == ["sessions-1", "dispatcher-1", "connector-1"]
    assert [instance.address for instance in hub.instances] == [
        "127.0.0.1:50052",
        "127.0.0.1:50051",
        "127.0.0.1:50053",
    ]
    assert hub.server == "wss://127.0.0.1:10000"
    assert hub.sessions[0].environment == {"CLOUDHUB_SESSIONS_DATABASE": "sqlite:///data/sessions.db"}
    assert hub.dispatchers[0].environment == {"CLOUDHUB_DISPATCHER_DATABASE": "sqlite:///data/dispatcher.db"}


def test_every_replica_knows_all_replicas_of_what_it_calls() -> None:
    """C34, C35: whichever of them dies, the others go on."""
    hub = _hub(2)
    for number in (1, 2):
        assert _flag(hub, "dispatcher", number, "--sessions") == "127.0.0.1:50052,127.0.0.1:50062"
        dispatcher = hub.dispatchers[number - 1]
        assert dispatcher.environment == {"CLOUDHUB_DISPATCHER_DATABASE": "postgresql://d"}
        assert _flag(hub, "connector", number, "--dispatchers") == "127.0.0.1:50051,127.0.0.1:50061"
        assert _flag(hub, "connector", number, "--name") == f"connector-{number}"
    assert hub.server == "wss://127.0.0.1:10000,wss://127.0.0.1:10010"
    assert hub.dispatcher_addresses == "127.0.0.1:50051,127.0.0.1:50061"


def test_further_flags_go_to_all_instances_of_their_service() -> None:
    hub = _hub(2, sessions=["--lease-seconds", "3"])
    assert [_flag(hub, "sessions", number, "--lease-seconds") for number in (1, 2)] == ["3", "3"]
    assert "--lease-seconds" not in hub.dispatchers[0].arguments


def test_enrolment_is_made_if_asked_for_and_knows_every_replica_of_sessions() -> None:
    ports = tuple(HubPorts().of_replica(number) for number in range(2))
    databases = Databases("postgresql://s", "postgresql://d")
    hub = make_hub(Path("data"), Path("certificates"), ports, databases, enrolments=2)
    assert [instance.address for instance in hub.enrolments] == ["127.0.0.1:50054", "127.0.0.1:50064"]
    assert hub.enrolment_servers == ("https://127.0.0.1:10002", "https://127.0.0.1:10012")
    assert _flag(hub, "enrolment", 2, "--listen") == "127.0.0.1:10012"
    assert _flag(hub, "enrolment", 1, "--sessions") == "127.0.0.1:50052,127.0.0.1:50062"
    assert _hub(2).enrolments == ()


def test_no_port_is_chosen_twice() -> None:
    """Not even once for TCP and once for UDP."""
    chosen = choose_ports(40)
    ports = [getattr(one, name) for one in chosen for name in HubPorts.__dataclass_fields__]
    assert len(set(ports)) == len(ports) == 440


def lines_of(figures: Figures, *news: str) -> list[str]:
    """The table of a terminal of 80 columns, line by line."""
    console = Console(width=80, height=24, force_terminal=True, record=True, file=io.StringIO())
    console.print(picture(figures, news, 79))
    return console.export_text().splitlines()


def test_the_table_counts_every_process() -> None:
    processes = (
        *(Process("sessions", 0), Process("dispatcher", 12), Process("dispatcher", 8)),
        *(Process("connector", 20), Process("enrolment", 0)),
    )
    figures = Figures(hub=HubFigures(processes=processes), others=("2 of edges", "1 database"))
    found = {name: (value, what) for name, value, what in rows(figures) if name}
    assert found["processes"] == ("8", "1 sessions, 2 dispatcher, 1 connector, 1 enrolment")
    assert found["nodes at"] == ("", "dispatchers: 12, 8; connectors: 20")
    assert "2 of edges, 1 database" in "\n".join(lines_of(figures))


def test_the_table_fits_80_by_24_and_has_the_same_lines_from_first_to_last() -> None:
    """Whatever the figures and the news are: nothing wraps, nothing jumps."""
    many = tuple(Process(service, 1000) for service in ("sessions", "dispatcher", "connector") * 9)
    full = Figures(
        nodes=1000,
        others=("2 of edges", "1 database"),
        hub=HubFigures(1000, 1000, 10**7, 10**6, 10**6, processes=many),
        links=1000,
        published=10**8,
        refused=Counter({f"REJECTED {'X' * 40} {number}": 10**6 for number in range(9)}),
        acknowledged=10**8,
        repeated=10**6,
        p50_ms=99_999.9,
        p99_ms=999_999.9,
        cut_p99_ms=999_999.9,
        cuts=10**5,
        cut_now=1000,
        reconnects=10**6,
        upstream=Counter({f"module-{number}": 10**6 for number in range(9)}),
    )
    empty = lines_of(Figures())
    busy = lines_of(full, *(f"update of {'a' * 300} {number}" for number in range(9)))
    assert len(empty) == len(busy) < 24
    assert max(map(len, busy)) <= 80
    assert [line[:9] for line in empty[:13]] == [line[:9] for line in busy[:13]]


def test_no_command_line_holds_the_password_of_a_database() -> None:
    """C53: everybody on a machine can read them."""
    ports = (HubPorts(),)
    databases = Databases("postgresql://hub:Xk79Lq2s@h/s", "postgresql://hub:Xk79Lq2s@h/d")
    hub = make_hub(Path("data"), Path("certificates"), ports, databases, enrolments=1)
    assert len(hub.instances) == 4
    for instance in hub.instances:
        assert not any("Xk79Lq2s" in argument for argument in instance.arguments)
