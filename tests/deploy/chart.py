"""The Helm chart, rendered by the real helm."""

import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from scripts.generate_chart import CHART
from tests.deploy.manifests import Manifest, documents
from tests.support.tools import program

RELEASE = "cloudhub"
NAMESPACE = "cloudhub"
# The overlay that each set of values stands for.
PROFILES: dict[str, dict[str, Any]] = {
    "embedded": {"profile": "embedded"},
    "production": {},
    "observed": {"monitoring": {"enabled": True}, "jaeger": {"enabled": True}},
}
# Every value differs from its default.
EVERYTHING: dict[str, Any] = {
    "image": {
        "registry": "registry.example.com/team/",
        "tag": "0.2.0",
        "pullPolicy": "Always",
        "pullSecrets": ["pull"],
    },
    "secrets": {
        "server": "a-server",
        "service": "a-service",
        "edgeCa": "an-edge-ca",
        "enrolmentCa": "an-enrolment-ca",
        "database": "a-database",
    },
    "revoked": "serial: 4F1C9A\n",
    "connector": {
        "image": {"repository": "hub/connector", "digest": f"sha256:{'a' * 64}"},
        "resources": {"requests": {"cpu": 2}, "limits": {"memory": "3Gi"}},
        "settings": {"links_most": 2000000, "log_format": "json"},
        "minReplicas": 4,
        "maxReplicas": 5,
        "service": {
            "annotations": {"example.com/kind": "external"},
            "loadBalancerClass": "example.com/balancer",
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
        },
        "quic": {"exposed": "own-service", "annotations": {"example.com/kind": "udp"}},
    },
    "dispatcher": {
        "image": {"repository": "hub/dispatcher"},
        "settings": {"keepalive_seconds": 22.5, "edge_acknowledgements": "all"},
        "minReplicas": 2,
        "maxReplicas": 2,
    },
    "sessions": {"image": {"repository": "hub/sessions"}, "replicas": 3},
    "enrolment": {
        "image": {"repository": "hub/enrolment"},
        "replicas": 1,
        "service": {"type": "ClusterIP", "annotations": {"example.com/kind": "internal"}},
    },
    "pods": {
        "annotations": {"example.com/note": "yes"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        "env": [{"name": "OTEL_TRACES_SAMPLER_ARG", "value": "1"}],
    },
    "priorityClass": {"name": "hub-first"},
    "networkPolicies": {"database": {"port": 5433, "cidrs": ["10.1.2.0/24"]}},
    "monitoring": {"enabled": True, "namespace": "observing", "labels": {"release": "prometheus"}},
    "jaeger": {"enabled": True, "sampleRatio": 0.5},
}


def helm(*words: str | Path, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """What helm says; nothing of this machine's configuration counts."""
    with tempfile.TemporaryDirectory() as home:
        given: list[str | Path] = []
        if values is not None:
            file = Path(home) / "values.yaml"
            file.write_text(yaml.safe_dump(values))
            given = [f"--values={file}"]
        own = {f"HELM_{name}_HOME": home for name in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            [program("helm", "helm"), *words, *given],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, **own},
        )


def templated(values: dict[str, Any], namespace: str = NAMESPACE) -> tuple[Manifest, ...]:
    """The objects that the chart is with these values."""
    done = helm("template", RELEASE, CHART, f"--namespace={namespace}", values=values)
    assert done.returncode == 0, done.stderr
    return tuple(documents(done.stdout))


@functools.cache
def chart_of(overlay: str) -> tuple[Manifest, ...]:
    """The objects of the chart that stand for those of an overlay."""
    return templated(PROFILES[overlay])


def refusal(values: dict[str, Any]) -> str:
    """Why helm does not take these values."""
    done = helm("template", RELEASE, CHART, values=values)
    assert done.returncode, f"taken: {values}"
    return done.stderr
