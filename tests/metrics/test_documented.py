"""docs/operations/metrics.md tells every metric that the services have, and no other."""

import re
from pathlib import Path

import pytest

from tests.metrics.declared import DeclaredMetric, declared_metrics

PAGE = Path(__file__).parent.parent.parent / "docs" / "operations" / "metrics.md"
SERVICES = ("sessions", "dispatcher", "connector", "enrolment")

OF_ONE_SERVICE = tuple(f"cloudhub_{service}_" for service in SERVICES)

# | `name` | type | `label`, `label` | meaning |
ROW = re.compile(r"^\| `(cloudhub_\w+)` \| (\w+) \| ([^|]*)\|([^|]*.*)\|$", re.MULTILINE)


def documented_metrics(service: str) -> dict[str, DeclaredMetric]:
    found = {
        name: DeclaredMetric(name, kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, meaning in ROW.findall(PAGE.read_text())
        if meaning.strip()
    }
    return {
        name: metric
        for name, metric in found.items()
        if name.startswith(f"cloudhub_{service}_") or not name.startswith(OF_ONE_SERVICE)
    }


@pytest.mark.parametrize("service", SERVICES)
def test_the_table_holds_the_metrics_of_a_service_with_their_types_and_labels(service: str) -> None:
    declared, documented = declared_metrics(service), documented_metrics(service)
    assert documented, f"{PAGE.name} has no table of the metrics of {service}"
    assert set(declared) - set(documented) == set(), "not documented"
    assert set(documented) - set(declared) == set(), "documented, but there is no such metric"
    assert documented == declared
