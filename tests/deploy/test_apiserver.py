"""The real kube-apiserver takes every object of every overlay. `make check-apiserver`."""

import copy
import functools
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio
import yaml

from scripts.get_tools import OPERATOR_KINDS
from tests.deploy.apiserver import ApiServer, running_apiserver
from tests.deploy.chart import EVERYTHING, templated
from tests.deploy.manifests import OVERLAYS, Manifest, pod_of
from tests.deploy.test_rendered import of_kind, rendered, tool
from tests.support.tools import program

pytestmark = [pytest.mark.apiserver, pytest.mark.asyncio(loop_scope="module")]

overlays = pytest.mark.parametrize("overlay", OVERLAYS)
# What must be there for pods to be judged.
BEFORE = ("Namespace", "PriorityClass", "ServiceAccount")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ApiServer]:
    """With the operator's kinds, and the namespaces of all overlays; nothing else is ever stored."""
    async with running_apiserver(tool("kubectl"), tmp_path_factory.mktemp("apiserver")) as running:
        for kind in OPERATOR_KINDS:
            running.do("create", f"--filename={program('operator-kinds', kind)}")
        running.do("wait", "--for=condition=established", "crd", "--all", "--timeout=60s")
        for overlay in OVERLAYS:
            for kind in BEFORE:
                for one in of_kind(overlay, kind).values():
                    running.do("apply", "--filename=-", given=yaml.safe_dump(one))
        for one in changed_chart():
            if one["kind"] in BEFORE:
                running.do("apply", "--filename=-", given=yaml.safe_dump(one))
        yield running


@functools.cache
def changed_chart() -> tuple[Manifest, ...]:
    """The objects of the chart with every value other than its default."""
    return templated(EVERYTHING)


def pods(overlay: str) -> dict[str, Manifest]:
    """What the controllers would make of the Deployments of an overlay."""
    return pods_of(of_kind(overlay, "Deployment"))


def pods_of(deployments: Mapping[str, Manifest]) -> dict[str, Manifest]:
    return {
        name: {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": deployment["metadata"]["namespace"],
                "labels": deployment["spec"]["template"]["metadata"]["labels"],
            },
            "spec": pod_of(deployment),
        }
        for name, deployment in deployments.items()
    }


@overlays
async def test_it_takes_every_object(cluster: ApiServer, overlay: str) -> None:
    """Without a warning, a field that it does not know, or a value that it would not have."""
    assert len(cluster.would_take(*rendered(overlay))) == len(rendered(overlay)) > 10


@overlays
async def test_admission_takes_every_pod_under_the_restricted_policy(
    cluster: ApiServer, overlay: str
) -> None:
    namespace = of_kind(overlay, "Namespace")["cloudhub"]["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    found = pods(overlay)
    assert {one["metadata"]["namespace"] for one in found.values()} == {"cloudhub"}
    assert len(cluster.would_take(*found.values())) == len(found) >= 3


async def test_it_takes_what_the_chart_gives(cluster: ApiServer) -> None:
    """With every value changed. Its objects with the defaults are those of the overlays (`test_chart.py`)."""
    objects = changed_chart()
    assert len(cluster.would_take(*objects)) == len(objects) > 40
    found = pods_of({one["metadata"]["name"]: one for one in objects if one["kind"] == "Deployment"})
    assert len(cluster.would_take(*found.values())) == len(found) == 6


async def test_it_would_not_take_a_pod_that_breaks_the_policy(cluster: ApiServer) -> None:
    pod = copy.deepcopy(pods("embedded")["cloudhub-connector"])
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    assert 'violates PodSecurity "restricted' in cluster.refusal(pod)


async def test_it_would_not_take_a_wrong_field_or_value(cluster: ApiServer) -> None:
    misspelt = copy.deepcopy(of_kind("embedded", "Deployment")["cloudhub-sessions"])
    misspelt["spec"]["template"]["spec"]["terminationGracePeriod"] = 30
    assert 'unknown field "spec.template.spec.terminationGracePeriod"' in cluster.refusal(misspelt)
    scaler = copy.deepcopy(of_kind("production", "HorizontalPodAutoscaler")["cloudhub-dispatcher"])
    scaler["spec"]["minReplicas"] = 99
    assert "must be greater than or equal to `minReplicas`" in cluster.refusal(scaler)
    rule = copy.deepcopy(of_kind("observed", "PrometheusRule")["cloudhub"])
    rule["spec"]["groups"][0]["rules"][0]["for"] = "soon"
    assert "spec.groups[0].rules[0].for" in cluster.refusal(rule)
