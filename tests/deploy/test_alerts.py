"""Each alert fires once for what it is about, and none while all is well; promtool is the judge."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import Manifest, rules
from tests.support.tools import program

pytestmark = pytest.mark.deploy

POD = 'namespace="cloudhub", pod="a"'
# A hub without a fault: a value per metric, kept for an hour. 1+1x60 is a counter that grows.
HEALTHY = {
    f"cloudhub_connector_links{{{POD}}}": "5000x60",
    f"cloudhub_connector_dispatchers_attached{{{POD}}}": "3x60",
    f"cloudhub_connector_handshake_failures_total{{{POD}, reason='certificate_expired'}}": "7x60",
    f"cloudhub_dispatcher_sessions{{{POD}}}": "5000x60",
    f"cloudhub_dispatcher_store_failures_total{{{POD}}}": "1x60",
    f"cloudhub_dispatcher_pending_messages{{{POD}}}": "1000x60",
    f"cloudhub_dispatcher_oldest_pending_seconds{{{POD}, nodes='all'}}": "200000x60",
    f"cloudhub_dispatcher_oldest_pending_seconds{{{POD}, nodes='connected'}}": "90x60",
    f"cloudhub_dispatcher_parked_total{{{POD}, reason='refused'}}": "3x60",
    f"cloudhub_dispatcher_published_total{{{POD}, outcome='accepted', reason=''}}": "0+100x60",
    f"cloudhub_dispatcher_commit_seconds_bucket{{{POD}, le='0.01'}}": "0+100x60",
    f"cloudhub_dispatcher_commit_seconds_bucket{{{POD}, le='+Inf'}}": "0+100x60",
    f"cloudhub_dispatcher_upstream_dropped_total{{{POD}, reason='module_full'}}": "2x60",
    f"cloudhub_dispatcher_peers_known{{{POD}}}": "2x60",
    f"cloudhub_dispatcher_peers_attached{{{POD}}}": "2x60",
    f"cloudhub_enrolment_certificate_expiry_timestamp_seconds{{{POD}, certificate='ca'}}": "8000000x60",
    f"cloudhub_enrolment_requests_total{{{POD}, outcome='token'}}": "0+1x60",
    f"cloudhub_enrolment_requests_total{{{POD}, outcome='nothing_shown'}}": "0+1x60",
    f"cloudhub_enrolment_requests_total{{{POD}, outcome='token_expired'}}": "4x60",
    f"cloudhub_sessions_store_available{{{POD}}}": "1x60",
    f"cloudhub_sessions_certificate_expiry_timestamp_seconds{{{POD}, certificate='grpc'}}": "700000x60",
    f"cloudhub_dispatcher_grpc_refused_total{{{POD}, reason='ROLE_FORBIDDEN'}}": "1x60",
    f"cloudhub_sessions_opens_total{{{POD}, outcome='opened'}}": "0+9x60",
}


@dataclass(frozen=True)
class Fault:
    """What is different from a healthy hub; the alert's labels beside severity; its value if it shows it."""

    series: dict[str, str]
    labels: dict[str, str] = field(default_factory=lambda: {"namespace": "cloudhub"})
    value: str = ""
    without: str = ""


def _with(**labels: str) -> dict[str, str]:
    return {"namespace": "cloudhub", **labels}


FAULTS = {
    "CloudHubServiceAbsent": Fault({}, {"job": "connector"}, without="cloudhub_connector_links"),
    "CloudHubRegistryUnavailable": Fault({f"cloudhub_sessions_store_available{{{POD}}}": "0x60"}),
    "CloudHubOutboxUnavailable": Fault({f"cloudhub_dispatcher_store_failures_total{{{POD}}}": "0+1x60"}),
    "CloudHubConnectorWithoutDispatcher": Fault(
        {f"cloudhub_connector_dispatchers_attached{{{POD}}}": "0x60"}, _with(pod="a")
    ),
    "CloudHubLinksLost": Fault({f"cloudhub_connector_links{{{POD}}}": "5000x50 2000x9"}),
    "CloudHubConnectorsFull": Fault({f"cloudhub_connector_links{{{POD}}}": "9000x60"}),
    "CloudHubOutboxFilling": Fault(
        {f"cloudhub_dispatcher_pending_messages{{{POD}}}": "1700000x60"}, value="1.7M"
    ),
    "CloudHubDeliveryStalled": Fault(
        {f"cloudhub_dispatcher_oldest_pending_seconds{{{POD}, nodes='connected'}}": "3600x60"},
        value="1h 0m 0s",
    ),
    "CloudHubMessagesOld": Fault(
        {f"cloudhub_dispatcher_oldest_pending_seconds{{{POD}, nodes='all'}}": "345600x60"},
        value="4d 0h 0m 0s",
    ),
    "CloudHubMessagesParked": Fault(
        {f"cloudhub_dispatcher_parked_total{{{POD}, reason='unacknowledged'}}": "0+1x60"},
        _with(reason="unacknowledged"),
    ),
    "CloudHubPublishesRejected": Fault(
        {f"cloudhub_dispatcher_published_total{{{POD}, outcome='rejected', reason='NODE_QUOTA'}}": "0+1x60"},
        _with(reason="NODE_QUOTA"),
    ),
    "CloudHubCommitsSlow": Fault(
        {
            f"cloudhub_dispatcher_commit_seconds_bucket{{{POD}, le='0.01'}}": "0+1x60",
            f"cloudhub_dispatcher_commit_seconds_bucket{{{POD}, le='2.5'}}": "0+100x60",
        }
    ),
    "CloudHubNodeLimitReached": Fault(
        {f"cloudhub_sessions_opens_total{{{POD}, outcome='limit_total'}}": "0+1x60"},
        _with(outcome="limit_total"),
    ),
    "CloudHubCertificatesRefused": Fault(
        {f"cloudhub_connector_handshake_failures_total{{{POD}, reason='certificate_expired'}}": "0+1x60"},
        _with(reason="certificate_expired"),
    ),
    "CloudHubCertificateExpires": Fault(
        {f"cloudhub_sessions_certificate_expiry_timestamp_seconds{{{POD}, certificate='grpc'}}": "600000x60"},
        _with(pod="a", certificate="grpc"),
    ),
    "CloudHubEdgeAuthorityExpires": Fault(
        {f"cloudhub_enrolment_certificate_expiry_timestamp_seconds{{{POD}, certificate='ca'}}": "7000000x60"}
    ),
    "CloudHubEnrolmentAbsent": Fault({}, {}, without="cloudhub_enrolment_"),
    "CloudHubEnrolmentRefused": Fault(
        {f"cloudhub_enrolment_requests_total{{{POD}, outcome='token_expired'}}": "0+1x60"},
        _with(outcome="token_expired"),
    ),
    "CloudHubCallersRefused": Fault(
        {f"cloudhub_dispatcher_grpc_refused_total{{{POD}, reason='ROLE_FORBIDDEN'}}": "0+1x60"},
        _with(reason="ROLE_FORBIDDEN"),
    ),
    "CloudHubUpstreamDropped": Fault(
        {f"cloudhub_dispatcher_upstream_dropped_total{{{POD}, reason='module_full'}}": "0+1x60"},
        _with(reason="module_full"),
    ),
    "CloudHubDispatchersApart": Fault(
        {f"cloudhub_dispatcher_peers_attached{{{POD}}}": "1x60"}, _with(pod="a")
    ),
}


def annotations_of(rule: Manifest, fault: Fault) -> dict[str, str]:
    """As Prometheus fills them in."""

    def filled(text: str) -> str:
        text = re.sub(r"\{\{ \$value \| humanize(Duration)? \}\}", fault.value, text)
        return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: fault.labels[match[1]], text)

    return {name: filled(text) for name, text in rule["annotations"].items()}


def case(fault: Fault | None, found: dict[str, Manifest]) -> Manifest:
    """One of promtool's tests: an hour of a hub, and every alert afterwards."""
    series = {**HEALTHY, **(fault.series if fault else {})}
    if fault and fault.without:
        series = {name: values for name, values in series.items() if not name.startswith(fault.without)}
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {
                "eval_time": "59m",
                "alertname": name,
                "exp_alerts": [
                    {
                        "exp_labels": {**fault.labels, **rule["labels"]},
                        "exp_annotations": annotations_of(rule, fault),
                    }
                ]
                if fault is FAULTS.get(name) and fault
                else [],
            }
            for name, rule in found.items()
        ],
    }


def test_every_alert_has_a_fault_that_it_fires_for() -> None:
    assert sorted(rule["alert"] for rule in rules()) == sorted(FAULTS)


def test_each_alert_fires_for_its_fault_and_for_nothing_else(tmp_path: Path) -> None:
    found = {rule["alert"]: rule for rule in rules()}
    written = {"groups": [{"name": "cloudhub", "rules": list(found.values())}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(written))
    tests = [case(None, found), *(case(fault, found) for fault in FAULTS.values())]
    plan = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(plan))
    for words in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        ended = subprocess.run(
            [program("prometheus", "promtool"), *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
