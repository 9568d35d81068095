"""What the doctor reads of a real API server about the Prometheus of a cluster."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tessera.adapters.kube.client import KubeCluster
from tessera.cli.cluster import Reader
from tessera.cli.doctor.finding import Finding, FindingState
from tessera.cli.doctor.monitoring import check_monitors, prometheus_urls
from tests.cli.check_contexts import a_check_context
from tests.cli.memory_api import MemoryApi
from tests.memory_cluster import MemoryCluster
from world.testing import eventually

Json = dict[str, Any]
GROUP = "monitoring.coreos.com"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
PART_OF_TESSERA = {"app.kubernetes.io/part-of": "tessera"}


def a_definition(kind: str, plural: str) -> Json:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "scope": "Namespaced",
            "versions": [version],
        },
    }


@pytest.fixture
async def monitored(cluster: KubeCluster) -> AsyncIterator[KubeCluster]:
    """A cluster with the kinds of the Prometheus operator, for the time of a test."""
    kinds = {"Prometheus": "prometheuses", "PodMonitor": "podmonitors"}
    kinds |= {"PrometheusRule": "prometheusrules"}
    for kind, plural in kinds.items():
        await created(cluster, DEFINITIONS, a_definition(kind, plural))
    yield cluster
    for plural in kinds.values():
        await cluster.request("DELETE", f"{DEFINITIONS}/{plural}.{GROUP}")


async def created(cluster: KubeCluster, path: str, body: Json) -> None:
    async def is_created() -> None:
        status, answer = await cluster.request("POST", path, None, body)
        assert status == 201, answer

    # A definition is served a moment later.
    await eventually(is_created)


async def test_what_a_prometheus_selects_is_read_with_the_rights_of_the_user(
    monitored: KubeCluster,
) -> None:
    async def monitor_finding() -> Finding:
        # Readers list only once.
        api = MemoryApi(MemoryCluster())
        findings = await check_monitors(a_check_context(api, reader=Reader(monitored)))
        (finding,) = [findings] if isinstance(findings, Finding) else findings
        return finding

    spec = {"podMonitorSelector": {"matchLabels": {"release": "stack"}}}
    path = f"/apis/{GROUP}/v1/namespaces/default"
    meta: Json = {"name": "stack", "namespace": "default"}
    body = {"apiVersion": f"{GROUP}/v1", "kind": "Prometheus", "metadata": meta, "spec": spec}
    await created(monitored, f"{path}/prometheuses", body)
    meta = {"name": "tessera-engine", "namespace": "default", "labels": PART_OF_TESSERA}
    body = {"apiVersion": f"{GROUP}/v1", "kind": "PodMonitor", "metadata": meta}
    await created(monitored, f"{path}/podmonitors", body)

    missed = await monitor_finding()
    assert missed.state is FindingState.WARNING
    assert "does not select PodMonitor default/tessera-engine" in missed.message
    assert "'prometheus.monitorLabels.release=stack'" in missed.fix

    labels = {"metadata": {"labels": {"release": "stack"}}}
    merge = "application/merge-patch+json"
    monitor = f"{path}/podmonitors/tessera-engine"
    assert (await monitored.request("PATCH", monitor, None, labels, merge))[0] == 200
    assert (await monitor_finding()).message == "a Prometheus selects 1 PodMonitor of Tessera"


async def test_services_of_prometheus_are_found_by_the_pods_that_they_select(
    cluster: KubeCluster,
) -> None:
    for name, app, cluster_ip in (
        ("stack-prometheus", "prometheus", None),
        ("prometheus-operated", "prometheus", "None"),
        ("stack-alertmanager", "alertmanager", None),
    ):
        port = {"name": "http-web", "port": 9090}
        spec: Json = {"selector": {"app.kubernetes.io/name": app}, "ports": [port]}
        spec |= {"clusterIP": cluster_ip} if cluster_ip else {}
        meta = {"name": name, "namespace": "default"}
        body = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
        await created(cluster, "/api/v1/namespaces/default/services", body)
    urls = [url for url, at in (await prometheus_urls(Reader(cluster))).items() if at == "default"]
    assert urls == ["http://stack-prometheus.default.svc:9090"]
