"""Which address other dispatchers are told."""

import pytest

from services.runtime.advertising import advertised_address, chosen_address


@pytest.mark.parametrize(
    ("listen", "found", "expected"),
    [
        ("10.1.2.3:50051", ["10.9.9.9"], "10.1.2.3:50051"),
        ("dispatcher-0.hub:50051", ["10.9.9.9"], "dispatcher-0.hub:50051"),
        ("0.0.0.0:50051", ["127.0.1.1", "10.9.9.9"], "10.9.9.9:50051"),
        ("0.0.0.0:50051", ["127.0.1.1"], "machine:50051"),
        ("[::]:50051", ["fd00::7"], "[fd00::7]:50051"),
        ("[fd00::1]:50051", [], "[fd00::1]:50051"),
    ],
)
def test_a_concrete_host_stays_and_every_address_becomes_one(
    listen: str, found: list[str], expected: str
) -> None:
    assert chosen_address(listen, found, "machine") == expected


def test_this_machine_finds_an_address_of_its_own() -> None:
    assert not advertised_address("0.0.0.0:50051").startswith("0.0.0.0")
    assert advertised_address("127.0.0.1:50051") == "127.0.0.1:50051"
