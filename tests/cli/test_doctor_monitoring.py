"""`tessera doctor` about the Prometheus of the cluster: its URL, and what it selects."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tessera.cli.doctor.finding import Finding, FindingState
from tessera.cli.doctor.metrics import check_prometheus
from tessera.cli.doctor.monitoring import check_monitors, labels_to_add
from tests.cli.check_contexts import a_check_context
from tests.cli.memory_api import MemoryApi, operator_of, pages
from tests.memory_cluster import MemoryCluster

Json = dict[str, Any]
MONITORING = "/apis/monitoring.coreos.com/v1"
ALL: Json = {"podMonitorSelector": {}, "podMonitorNamespaceSelector": {}}
ALL_RULES: Json = {"ruleSelector": {}, "ruleNamespaceSelector": {}}
STACK = {"matchLabels": {"release": "stack"}}


def a_service(
    name: str, namespace: str, *ports: tuple[str, int], app: str = "prometheus", **spec: Any
) -> Json:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"app.kubernetes.io/name": app},
            "ports": [{"name": port, "port": number} for port, number in ports],
            **spec,
        },
    }


def a_prometheus(name: str = "main", **spec: Any) -> Json:
    return {"metadata": {"name": name, "namespace": "monitoring"}, "spec": spec}


def a_monitored_cluster(*prometheuses: Json, services: tuple[Json, ...] = ()) -> MemoryApi:
    """Return a cluster with the Prometheus operator, a PodMonitor and rules of Tessera."""
    api = MemoryApi(MemoryCluster(), pages=pages(), unknown=set())
    meta = {"name": "tessera-operator", "namespace": "tessera-system", "labels": {}}
    namespaces = [{"metadata": {"name": name}} for name in ("tessera-system", "monitoring")]
    lists: dict[str, Sequence[Json]] = {
        f"{MONITORING}/prometheuses": prometheuses,
        f"{MONITORING}/prometheusrules": [{"metadata": meta}],
        "/api/v1/services": services,
        "/api/v1/namespaces": namespaces,
    }
    api.pages |= {path: {"metadata": {}, "items": list(items)} for path, items in lists.items()}
    return api


async def unset_finding(api: MemoryApi) -> Finding:
    """Return what is said of Prometheus where the operator has no URL of it."""
    operator_of(api)["spec"]["template"]["spec"]["containers"][0]["env"] = []
    finding = await check_prometheus(a_check_context(api, prometheus_url=None))
    assert isinstance(finding, Finding)
    return finding


async def monitor_findings(api: MemoryApi) -> list[Finding]:
    findings = await check_monitors(a_check_context(api))
    return [findings] if isinstance(findings, Finding) else list(findings)


KUBE_PROMETHEUS_STACK = (
    a_service("stack-prometheus", "monitoring", ("reloader-web", 8080), ("http-web", 9090)),
    a_service("prometheus-operated", "monitoring", ("http-web", 9090), clusterIP="None"),
    a_service("stack-thanos-discovery", "monitoring", ("grpc", 10901), clusterIP="None"),
    a_service("stack-alertmanager", "monitoring", ("http-web", 9093), app="alertmanager"),
)


@pytest.mark.parametrize(
    ("services", "url"),
    [
        (KUBE_PROMETHEUS_STACK, "http://stack-prometheus.monitoring.svc:9090"),
        (KUBE_PROMETHEUS_STACK[1:], "http://prometheus-operated.monitoring.svc:9090"),
        (
            (a_service("prometheus-server", "tools", ("http", 80), app="old"),),
            "http://prometheus-server.tools.svc:80",
        ),
        ((a_service("p", "m", ("https", 9091)),), "https://p.m.svc:9091"),
    ],
)
async def test_the_prometheus_of_the_cluster_is_named_where_none_is_set(
    services: tuple[Json, ...], url: str
) -> None:
    api = a_monitored_cluster(services=services)
    finding = await unset_finding(api)
    assert finding.state is FindingState.PROBLEM
    assert finding.message.endswith(f"look like it: {url}")
    assert f"--set prometheus.url={url};" in finding.fix


def scraped_from(api: MemoryApi, *namespaces: str) -> None:
    container = operator_of(api)["spec"]["template"]["spec"]["containers"][0]
    value = json.dumps(namespaces)
    container["env"] = [{"name": "TESSERA_MONITORING_NAMESPACES", "value": value}]


async def test_a_service_of_a_tenant_comes_after_those_of_namespaces_that_may_scrape() -> None:
    api = a_monitored_cluster(
        services=(a_service("prometheus", "a-tenant", ("http", 80)), *KUBE_PROMETHEUS_STACK)
    )
    scraped_from(api, "monitoring")
    finding = await check_prometheus(a_check_context(api, prometheus_url=None))
    assert isinstance(finding, Finding)
    assert "--set prometheus.url=http://stack-prometheus.monitoring.svc:9090;" in finding.fix
    assert "http://prometheus.a-tenant.svc:80" in finding.message


async def test_a_prometheus_elsewhere_is_let_scrape_as_well() -> None:
    api = a_monitored_cluster(a_prometheus(**ALL, **ALL_RULES), services=KUBE_PROMETHEUS_STACK)
    scraped_from(api, "observability")
    option = "--set 'prometheus.namespaces={monitoring}'"
    unset = await check_prometheus(a_check_context(api, prometheus_url=None))
    (finding,) = await monitor_findings(api)
    for each in (unset, finding):
        assert isinstance(each, Finding)
        assert option in each.fix
    assert "Prometheus of namespace monitoring may not scrape" in finding.message


async def test_a_path_of_prometheus_belongs_to_its_url() -> None:
    api = a_monitored_cluster(a_prometheus(routePrefix="/metrics/"), services=KUBE_PROMETHEUS_STACK)
    finding = await unset_finding(api)
    assert "http://stack-prometheus.monitoring.svc:9090/metrics;" in finding.fix


async def test_without_a_prometheus_or_the_right_to_list_services_none_is_named() -> None:
    api = a_monitored_cluster()
    for refused in ((), ("/api/v1/services",)):
        api.refused.update(refused)
        finding = await unset_finding(api)
        assert "prometheus.url=http://...;" in finding.fix


@pytest.mark.parametrize(
    ("spec", "check", "message", "fix"),
    [
        (
            {**ALL, **ALL_RULES, "podMonitorSelector": STACK},
            "pod monitors",
            "Prometheus/monitoring/main does not select PodMonitor tessera-system/tessera-operator",
            "--set-string 'prometheus.monitorLabels.release=stack'",
        ),
        (
            {**ALL, **ALL_RULES, "ruleSelector": STACK},
            "rules",
            "does not select PrometheusRule tessera-system/tessera-operator, by spec.ruleSelector",
            "--set-string 'rules.labels.release=stack'",
        ),
        (
            {**ALL, **ALL_RULES, "podMonitorSelector": None},
            "pod monitors",
            "by spec.podMonitorSelector",
            "set spec.podMonitorSelector: {} of the Prometheus",
        ),
        (
            {**ALL, **ALL_RULES, "podMonitorNamespaceSelector": None},
            "pod monitors",
            "reads no PodMonitor of tessera-system, by spec.podMonitorNamespaceSelector",
            "set spec.podMonitorNamespaceSelector: {} of Prometheus/monitoring/main",
        ),
        (
            {**ALL, **ALL_RULES, "podMonitorNamespaceSelector": {"matchLabels": {"watch": "yes"}}},
            "pod monitors",
            "reads no PodMonitor of tessera-system",
            "kubectl label namespace tessera-system watch=yes, or set",
        ),
    ],
)
async def test_a_prometheus_that_does_not_select_tessera_is_named_with_what_to_set(
    spec: Json, check: str, message: str, fix: str
) -> None:
    (finding,) = await monitor_findings(a_monitored_cluster(a_prometheus(**spec)))
    assert finding.check == check
    assert finding.state is FindingState.WARNING
    assert message in finding.message
    assert fix in finding.fix


async def test_one_prometheus_of_several_that_selects_all_is_enough() -> None:
    api = a_monitored_cluster(a_prometheus("other"), a_prometheus("main", **ALL, **ALL_RULES))
    text = "a Prometheus selects 1 PodMonitor of Tessera"
    assert await monitor_findings(api) == [Finding("pod monitors", FindingState.OK, text)]


async def test_a_chart_that_was_installed_before_the_prometheus_operator_has_no_monitor() -> None:
    api = a_monitored_cluster()
    api.pages.pop(f"{MONITORING}/namespaces/tessera-system/podmonitors/tessera-operator")
    (finding,) = await monitor_findings(api)
    assert finding.message == "PodMonitor/tessera-operator not found"
    assert finding.fix.startswith("helm upgrade")


@pytest.mark.parametrize(
    ("selector", "labels", "missing"),
    [
        (None, {"a": "1"}, None),
        ({}, {}, {}),
        ({"matchLabels": {"a": "1", "b": "2"}}, {"a": "1"}, {"b": "2"}),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {}, {"a": "1"}),
        (
            {"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]},
            {"a": "2"},
            {},
        ),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {}, {"a": "true"}),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, {}),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, {}),
        (
            {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]},
            {"a": "1"},
            None,
        ),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": "1"}, None),
    ],
)
def test_labels_that_a_selector_wants_are_those_of_the_api_server(
    selector: Json | None, labels: dict[str, str], missing: dict[str, str] | None
) -> None:
    assert labels_to_add(selector, labels) == missing
