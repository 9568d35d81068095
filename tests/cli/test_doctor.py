"""`tessera doctor`: a healthy cluster is fine, and every problem is named with a fix."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.cli.doctor.command import as_json, report_lines, run_checks
from tessera.cli.doctor.finding import Finding, FindingState
from tessera.cli.doctor.operator import check_gateway
from tessera.cli.doctor.services import check_services
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.resources.api_resources import CLAIMS, DEPLOYMENTS, NODES, PODS
from tessera.resources.manifest import ObjectKey
from tests.cli.check_contexts import Counts, a_check_context
from tests.cli.memory_api import (
    MemoryApi,
    a_pod_body,
    a_served_cluster,
    binding_path,
    crd_path,
    lease_of,
    operator_of,
    pages,
    policy_path,
)
from tests.memory_cluster import MemoryCluster
from tests.memory_operator import CHAT, MemoryOperator

NODE = ObjectKey("nodes", "", "a100-0")
KSERVE = crd_path("inferenceservices").replace("tessera.dev", "serving.kserve.io")
ACTIVE = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"


async def findings_by_check(
    api: MemoryApi, counts: Counts | None = None, **fields: Any
) -> dict[str, Finding]:
    return {
        finding.check: finding
        for finding in await run_checks(a_check_context(api, counts, **fields))
    }


async def a_healthy_cluster() -> tuple[MemoryOperator, MemoryApi]:
    """Return a cluster in which every check is fine; the price is of this month."""
    operator, api = await a_served_cluster()
    limits = [{"window": "Day", "amount": "100"}]
    spec = {"owner": "a@example.org", "tenant": {"namespaces": ["team-a"]}, "limits": limits}
    operator.cluster.put(TENANT_BUDGETS, {"metadata": {"name": "team-a"}, "spec": spec})
    pool = operator.body(ObjectKey("acceleratorpools", "", "a100"))
    pool["spec"]["prices"] = [{"from": "2026-11-01", "perGPUHour": "2"}]
    labels = operator.body(NODE)["metadata"]["labels"]
    labels |= {"nvidia.com/mig.capable": "true", "nvidia.com/mig.strategy": "mixed"}
    api.unknown.clear()
    await operator.reconcile()
    return operator, api


async def test_a_healthy_cluster_is_fine() -> None:
    _, api = await a_healthy_cluster()
    findings = await findings_by_check(api)
    assert {
        name: finding for name, finding in findings.items() if finding.state is not FindingState.OK
    } == {}
    assert findings["kubernetes"].message == "API server version v1.36.3"
    assert "operator-0 leads" in findings["leader"].message
    assert "1 service," in findings["services"].message
    assert findings["budgets"].message == "1 budget for the 1 namespace with services"


Breaks = Callable[[MemoryOperator, MemoryApi], object]


def _node(operator: MemoryOperator) -> dict[str, Any]:
    return operator.body(NODE)


def _status(operator: MemoryOperator, kind: str, reason: str, status: str = "False") -> None:
    for condition in operator.body(CHAT)["status"]["conditions"]:
        if condition["type"] == kind:
            condition |= {"reason": reason, "status": status, "message": f"it is {reason}"}


def _crashes(operator: MemoryOperator, _: MemoryApi) -> None:
    body = a_pod_body("chat-9")
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "out of memory"}}
    body["status"]["containerStatuses"] = [{"name": "engine", "state": waiting}]
    operator.cluster.put(PODS, body)


BROKEN: dict[str, tuple[str, FindingState, str, Breaks]] = {
    "old": (
        "kubernetes",
        FindingState.PROBLEM,
        "1.32 to 1.36",
        lambda _, api: api.pages["/version"].update(minor="31"),
    ),
    "new": (
        "kubernetes",
        FindingState.WARNING,
        "upgrade Tessera",
        lambda _, api: api.pages["/version"].update(minor="37+"),
    ),
    "no crd": (
        "crds",
        FindingState.PROBLEM,
        "crds/",
        lambda _, api: api.pages.pop(crd_path("tenantbudgets")),
    ),
    "another crd": (
        "crds",
        FindingState.PROBLEM,
        "helm upgrade",
        lambda _, api: api.pages[crd_path("tenantbudgets")]["spec"]["versions"][0].update(
            schema={}
        ),
    ),
    "a neighbor": (
        "kserve",
        FindingState.WARNING,
        "tsvc",
        lambda _, api: api.pages.update({KSERVE: {"kind": "CustomResourceDefinition"}}),
    ),
    "no operator": (
        "operator",
        FindingState.PROBLEM,
        "helm upgrade --install",
        lambda _, api: operator_of(api)["metadata"].update(labels={}),
    ),
    "scaled to 0": (
        "operator",
        FindingState.PROBLEM,
        "scale deployment tessera-operator --replicas=1",
        lambda _, api: operator_of(api).update(
            spec={**operator_of(api)["spec"], "replicas": 0}, status={}
        ),
    ),
    "crashing": (
        "operator",
        FindingState.PROBLEM,
        "logs --previous",
        lambda _, api: operator_of(api).update(status={}),
    ),
    "another version": (
        "operator",
        FindingState.WARNING,
        "use the same version",
        lambda _, api: operator_of(api)["metadata"]["labels"].update(
            {"app.kubernetes.io/version": "0.2.0"}
        ),
    ),
    "stale lease": (
        "leader",
        FindingState.PROBLEM,
        "logs deployment/tessera-operator",
        lambda _, api: lease_of(api)["spec"].update(renewTime="2026-11-20T11:58:00.000000Z"),
    ),
    "no leader": (
        "leader",
        FindingState.PROBLEM,
        "logs deployment/tessera-operator",
        lambda _, api: lease_of(api)["spec"].update(holderIdentity=""),
    ),
    "no webhook": (
        "webhook",
        FindingState.WARNING,
        "9443",
        lambda _, api: setattr(api, "webhook", False),
    ),
    "no policy": (
        "policies",
        FindingState.PROBLEM,
        "helm upgrade --reset-then-reuse-values tessera charts/tessera -n tessera-system",
        lambda _, api: api.pages.pop(policy_path("scale")),
    ),
    "no binding": (
        "policies",
        FindingState.PROBLEM,
        "helm upgrade",
        lambda _, api: api.pages.pop(binding_path("deployments")),
    ),
    "a policy that only warns": (
        "policies",
        FindingState.PROBLEM,
        "helm upgrade",
        lambda _, api: api.pages[binding_path("scale")].update(
            spec={"validationActions": ["Warn"]}
        ),
    ),
    "no pools": (
        "pools",
        FindingState.PROBLEM,
        "examples/00-pools.yaml",
        lambda operator, _: operator.cluster.objects.pop(ObjectKey("acceleratorpools", "", "a100")),
    ),
    "no nodes": (
        "pool a100",
        FindingState.PROBLEM,
        "kubectl get acceleratorpool a100",
        lambda operator, _: operator.cluster.objects.pop(NODE),
    ),
    "old price": (
        "pool a100",
        FindingState.WARNING,
        "spec.prices",
        lambda operator, _: operator.body(ObjectKey("acceleratorpools", "", "a100"))["spec"].update(
            prices=[{"from": "2025-11-01", "perGPUHour": "2"}]
        ),
    ),
    "shared GPUs": (
        "pool a100",
        FindingState.PROBLEM,
        "kubectl get acceleratorpool a100",
        lambda operator, _: _node(operator)["metadata"]["labels"].update(
            {"nvidia.com/mig-1g.10gb.replicas": "4"}
        ),
    ),
    "no count of GPUs": (
        "pool a100",
        FindingState.WARNING,
        "kubectl get nodes -L nvidia.com/gpu.count",
        lambda operator, _: _node(operator)["metadata"]["labels"].pop("nvidia.com/gpu.count"),
    ),
    "a slice with media engines": (
        "pool a100",
        FindingState.WARNING,
        "kubectl describe node",
        lambda operator, _: _node(operator)["status"]["allocatable"].update(
            {"nvidia.com/mig-1g.10gb.me": "1"}
        ),
    ),
    "unlabelled": (
        "gpu labels",
        FindingState.PROBLEM,
        "GPU feature discovery",
        lambda operator, _: _node(operator)["metadata"]["labels"].pop("nvidia.com/gpu.product"),
    ),
    "single strategy": (
        "mig strategy",
        FindingState.PROBLEM,
        "mig.strategy: mixed",
        lambda operator, _: _node(operator)["metadata"]["labels"].update(
            {"nvidia.com/mig.strategy": "single"}
        ),
    ),
    "no plugin": (
        "device plugin",
        FindingState.PROBLEM,
        "spec.nodeName=a100-0",
        lambda operator, _: _node(operator)["status"].update(allocatable={}),
    ),
    "no pod monitors": (
        "pod monitors",
        FindingState.WARNING,
        "Prometheus operator",
        lambda _, api: api.unknown.add("podmonitors"),
    ),
    "no budget": (
        "budgets",
        FindingState.WARNING,
        "set-a-budget.md",
        lambda operator, _: operator.cluster.objects.pop(ObjectKey("tenantbudgets", "", "team-a")),
    ),
    "no hardware": (
        "service team-a/chat",
        FindingState.PROBLEM,
        "tessera explain chat -n team-a",
        lambda operator, _: _status(operator, "Placed", "NoHardware"),
    ),
    "a name of another service": (
        "service team-a/chat",
        FindingState.WARNING,
        "tessera explain chat -n team-a",
        lambda operator, _: _status(operator, "Accepted", "NameConflict", "True"),
    ),
    "crashing pod": (
        "pods",
        FindingState.PROBLEM,
        "kubectl describe pod -n team-a chat-9",
        _crashes,
    ),
}


async def test_a_price_of_this_year_is_current() -> None:
    operator, api = await a_healthy_cluster()
    operator.body(ObjectKey("acceleratorpools", "", "a100"))["spec"].update(
        prices=[{"from": "2026-01-01", "perGPUHour": "2"}]
    )
    assert (await findings_by_check(api))["pool a100"].state is FindingState.OK


async def test_a_pool_whose_nodes_do_not_exist_yet_says_how_many_there_may_be() -> None:
    operator, api = await a_healthy_cluster()
    operator.body(ObjectKey("acceleratorpools", "", "a100"))["spec"].update(
        nodeTemplate={"product": "NVIDIA-A100-SXM4-80GB", "gpus": 8, "maxNodes": 4}
    )
    operator.cluster.objects.pop(NODE)
    findings = await findings_by_check(api)
    assert findings["pool a100"].state is FindingState.OK
    assert "0 of 4 nodes exist, expected start 300s" in findings["pool a100"].message
    assert findings["gpu nodes"].message == "no node has a GPU yet; 1 pool with spec.nodeTemplate"


async def test_a_pool_whose_nodes_do_not_come_says_why() -> None:
    operator, api = await a_healthy_cluster()
    body = operator.body(ObjectKey("acceleratorpools", "", "a100"))
    body["spec"].update(nodeTemplate={"product": "NVIDIA-A100-SXM4-80GB", "gpus": 1, "maxNodes": 4})
    condition = {
        "type": "NodesProvisioned",
        "status": "False",
        "reason": "QuotaExceeded",
        "message": "GCE quota exceeded",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-11-20T12:00:00Z",
    }
    body.setdefault("status", {})["conditions"] = [condition]
    finding = (await findings_by_check(api))["pool a100"]
    assert finding.state is FindingState.WARNING
    assert "QuotaExceeded: GCE quota exceeded" in finding.message
    assert "status.provisioning" in finding.fix


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_broken_is_named_with_its_fix(name: str) -> None:
    check, state, fix, breaks = BROKEN[name]
    operator, api = await a_healthy_cluster()
    api.pages = copy.deepcopy(api.pages)
    breaks(operator, api)
    finding = (await findings_by_check(api))[check]
    assert (finding.state, fix in finding.fix) == (state, True), finding


@pytest.mark.parametrize(
    ("counts", "check", "fix"),
    [
        (Counts(engines=0), "engine metrics", "podMonitorSelector"),
        (Counts(operators=0), "operator metrics", "prometheus.job"),
        (Counts(problem="it is away"), "prometheus", "port-forward"),
    ],
)
async def test_a_prometheus_without_what_scaling_reads_is_a_problem(
    counts: Counts, check: str, fix: str
) -> None:
    _, api = await a_healthy_cluster()
    finding = (await findings_by_check(api, counts))[check]
    assert finding.state is FindingState.PROBLEM
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("counts", "fix"),
    [
        (Counts(active=0), "dcgm-exporter"),
        (Counts(renamed=7), "honorLabels: true"),
        (Counts(contradicted=2), "restart dcgm-exporter on their nodes"),
    ],
)
async def test_missing_activity_is_a_warning_that_says_what_is_lost(
    counts: Counts, fix: str
) -> None:
    _, api = await a_healthy_cluster()
    finding = (await findings_by_check(api, counts))["dcgm metrics"]
    assert (finding.state, fix in finding.fix) == (FindingState.WARNING, True)
    assert "QueueAndActivity the queue alone" in finding.message
    assert "Capacity needs no activity" in finding.message


async def test_gpus_of_two_exporters_are_a_warning() -> None:
    _, api = await a_healthy_cluster()
    finding = (await findings_by_check(api, Counts(repeated=2)))["dcgm metrics"]
    assert finding.state is FindingState.WARNING
    assert "2 GPUs reported by more than one DCGM exporter" in finding.message
    assert "scrape one exporter of each node" in finding.fix


async def test_engines_of_two_targets_are_named() -> None:
    _, api = await a_healthy_cluster()
    repeated = tuple(Ref("team-a", f"chat-{number}") for number in range(4))
    finding = (await findings_by_check(api, Counts(repeated_pods=repeated)))["engine metrics"]
    assert finding.state is FindingState.WARNING
    assert finding.message.startswith("team-a/chat-0, team-a/chat-1, team-a/chat-2 and 1 more: ")
    assert "PodMonitors tessera-engine alone" in finding.fix


async def test_the_prometheus_of_the_operator_is_asked_when_none_is_given() -> None:
    _, api = await a_healthy_cluster()
    findings = await findings_by_check(api, prometheus_url=None)
    assert findings["prometheus"].message == "http://prometheus.monitoring.svc:9090 responds"
    away = await findings_by_check(api, Counts(problem="no such host"), prometheus_url=None)
    assert away["prometheus"].state is FindingState.SKIPPED
    operator_of(api)["spec"]["template"]["spec"]["containers"][0]["env"] = []
    none = await findings_by_check(api, prometheus_url=None)
    assert none["prometheus"].state is FindingState.PROBLEM
    assert "prometheus.url" in none["prometheus"].fix


@pytest.mark.parametrize(
    ("available", "phase", "state", "text"),
    [
        (1, "Bound", FindingState.OK, "1 of 1"),
        (0, "Bound", FindingState.PROBLEM, "0 of 1"),
        (0, "Pending", FindingState.PROBLEM, "PersistentVolumeClaim/tessera-gateway is Pending"),
    ],
)
async def test_a_gateway_that_does_not_answer_is_named_with_the_volume_that_it_waits_for(
    available: int, phase: str, state: FindingState, text: str
) -> None:
    api = MemoryApi(MemoryCluster(), pages=pages())
    meta = {"name": "tessera-gateway", "namespace": "tessera-system"}
    labels = {"app.kubernetes.io/name": "tessera-gateway"}
    api.pages[DEPLOYMENTS.path("tessera-system", "tessera-gateway")] = {
        "metadata": {**meta, "labels": labels},
        "spec": {"replicas": 1},
        "status": {"availableReplicas": available},
    }
    claim = {"metadata": meta, "status": {"phase": phase}}
    api.pages[CLAIMS.path("tessera-system", "tessera-gateway")] = claim
    (finding,) = list(await check_gateway(a_check_context(api)))  # type: ignore[arg-type]
    assert (finding.state, text in finding.message) == (state, True)
    assert ("storageClassName" in finding.fix) == (phase == "Pending")


async def test_a_name_that_a_service_of_another_tenant_lists_is_reported_with_both() -> None:
    """For the platform, which reads the objects of all: the tenants learn that it is taken."""
    operator, api = await a_healthy_cluster()
    budget = operator.body(ObjectKey("tenantbudgets", "", "team-a"))
    budget["spec"]["publishing"] = [{"names": ["chat"], "public": True}]
    for name in ("team-b", "team-evil"):
        own = {"publishing": [], "tenant": {"namespaces": [name]}}
        body = {"metadata": {"name": name}, "spec": budget["spec"] | own}
        operator.cluster.put(TENANT_BUDGETS, body)
    taking = copy.deepcopy(operator.body(CHAT))
    taking["metadata"] = {**taking["metadata"], "namespace": "team-evil", "name": "x"}
    taking["spec"]["access"] = {"aliases": ["chat"], "public": True}
    operator.cluster.put(INFERENCE_SERVICES, taking)
    unbudgeted = copy.deepcopy(taking)
    unbudgeted["metadata"] = {**taking["metadata"], "namespace": "nobody", "uid": "uid-nobody"}
    operator.cluster.put(INFERENCE_SERVICES, unbudgeted)
    assert "names" not in await findings_by_check(api), "without a gateway nobody uses names"

    environment = operator_of(api)["spec"]["template"]["spec"]["containers"][0]["env"]
    environment.append({"name": "TESSERA_GATEWAY_ACCOUNT", "value": "tessera-gateway"})
    finding = (await findings_by_check(api))["names of team-a"]
    assert finding.state is FindingState.WARNING
    assert "chat of InferenceService/team-evil/x" in finding.message
    assert "chat of InferenceService/nobody/x" in finding.message

    for body in (taking, unbudgeted):
        body["spec"]["access"] = {}
        operator.cluster.put(INFERENCE_SERVICES, body)
    assert (await findings_by_check(api))["names"].state is FindingState.OK


async def test_preemptions_at_steady_load_are_a_warning_with_what_helps() -> None:
    operator, api = await a_healthy_cluster()
    operator.body(CHAT)["status"]["preemption"] = {
        "model": "hf://a/b",
        "variant": "a100-1g-10gb",
        "since": "2026-11-20T11:50:00Z",
        "at": "2026-11-20T12:00:00Z",
        "preemptions": 60,
        "requests": 1200,
        "maxNumSeqs": 18,
    }
    finding = (await findings_by_check(api))["service team-a/chat"]
    assert finding.state is FindingState.WARNING
    assert "60 preemptions in 1200 requests" in finding.message
    assert "at most 18 from now on" in finding.message


async def test_a_name_that_two_budgets_grant_is_a_warning_of_both() -> None:
    operator, api = await a_healthy_cluster()
    spec = operator.body(ObjectKey("tenantbudgets", "", "team-a"))["spec"]
    for name in ("team-a", "team-b"):
        grant = {"publishing": [{"names": ["chat"], "public": True}]}
        body = {"metadata": {"name": name}, "spec": spec | grant}
        body["spec"]["tenant"] = {"namespaces": [name]}
        operator.cluster.put(TENANT_BUDGETS, body)
        await operator.reconcile()
        await operator.reconcile()
    messages: dict[str, list[str]] = {"budget team-a": [], "budget team-b": []}
    for finding in await run_checks(a_check_context(api)):
        messages.setdefault(finding.check, []).append(finding.message)
    assert (
        "Accepted NameContested: spec.publishing: chat stays here" in messages["budget team-a"][0]
    )
    assert "TenantBudget/team-b" in messages["budget team-a"][0]
    assert "chat belongs to TenantBudget/team-a already" in messages["budget team-b"][0]


async def test_what_may_not_be_read_is_skipped_and_never_a_failure() -> None:
    _, api = await a_healthy_cluster()
    plurals = {kind.plural for kind in (NODES, ACCELERATOR_POOLS, PODS, TENANT_BUDGETS)}
    api.hidden = {*plurals, "deployments", INFERENCE_SERVICES.plural}
    findings = await findings_by_check(api)
    states = {finding.state for finding in findings.values()}
    assert FindingState.PROBLEM not in states
    for check in ("operator", "pools", "gpu nodes", "budgets", "services", "pods", "webhook"):
        assert findings[check].state is FindingState.SKIPPED, findings[check]
        assert "permission denied" in findings[check].message
    assert findings["permissions"].state is FindingState.WARNING
    assert "list nodes" in findings["permissions"].message


async def test_the_missing_policies_are_named_and_unreadable_ones_are_skipped() -> None:
    _, api = await a_healthy_cluster()
    for page in (policy_path("scale"), binding_path("deployments")):
        del api.pages[page]
    message = (await findings_by_check(api))["policies"].message
    for kind, name in (("Policy", "scale"), ("PolicyBinding", "deployments")):
        assert f"ValidatingAdmission{kind}/tessera-operator-tessera-system-{name} not" in message
    api.refused.add(policy_path("deployments"))
    assert (await findings_by_check(api))["policies"].state is FindingState.SKIPPED


async def test_without_an_api_server_nothing_else_is_checked() -> None:
    _, api = await a_healthy_cluster()
    api.problem = "connection refused"
    (finding,) = await run_checks(a_check_context(api))
    assert (finding.check, finding.state) == ("kubernetes", FindingState.PROBLEM)
    assert "connection refused" in finding.message


async def test_the_worst_service_comes_first() -> None:
    operator, api = await a_healthy_cluster()
    for name in ("a-slow", "b-unplaced", "c-refused"):
        body = copy.deepcopy(operator.body(CHAT))
        body["metadata"] = {**body["metadata"], "name": name}
        operator.cluster.put(INFERENCE_SERVICES, body)
    wrong = {"a-slow": "Ready", "b-unplaced": "Placed", "c-refused": "Accepted"}
    for name, kind in wrong.items():
        conditions = operator.body(ObjectKey("inferenceservices", "team-a", name))["status"][
            "conditions"
        ]
        for condition in conditions:
            if condition["type"] == kind:
                condition.update(status="False", reason="CompletionFailed")
    findings = await check_services(a_check_context(api))
    assert [finding.check for finding in findings] == [
        "service team-a/c-refused",
        "service team-a/b-unplaced",
        "service team-a/a-slow",
    ]


async def test_targets_between_two_edges_are_named_with_them() -> None:
    operator, api = await a_healthy_cluster()
    finding = (await findings_by_check(api))["slo"]
    assert finding.state is FindingState.OK
    assert finding.message == (
        "spec.slo.itlP95 33 ms: engines count at 25 ms and 50 ms, and nothing is measured now: "
        "team-a/chat"
    )
    operator.body(CHAT)["status"]["slo"] = _slo_status("BucketTooWide")
    finding = (await findings_by_check(api))["slo"]
    assert finding.state is FindingState.WARNING
    assert "through the gateway as streams" in finding.fix


def _slo_status(reason: str, source: str = "Engine") -> dict[str, Any]:
    itl = {"target": "33ms", "attained": "0.96", "atLeast": "0.93", "atMost": "0.98"}
    return {
        "reason": reason,
        "observedAt": "2026-11-20T12:00:00Z",
        "itl": {**itl, "counted": 900, "source": source},
    }


@pytest.mark.parametrize(
    ("status", "state", "effect"),
    [
        (_slo_status("BucketTooWide"), "warning", "95% is between both shares, so SLOMet is Buck"),
        (_slo_status("BucketTooWide", "Gateway"), "ok", "but the gateway counts at the target"),
        (_slo_status("Met"), "ok", "the shares at both agree"),
        (_slo_status("NoTraffic"), "ok", "nothing is measured now"),
    ],
)
async def test_targets_between_two_edges_say_what_that_means_for_the_service(
    status: dict[str, Any], state: str, effect: str
) -> None:
    operator, api = await a_healthy_cluster()
    operator.body(CHAT)["status"]["slo"] = status
    finding = (await findings_by_check(api))["slo"]
    assert (finding.state, effect in finding.message) == (state, True), finding.message


async def test_a_missed_objective_is_a_warning_and_nothing_good_is_said_of_it() -> None:
    operator, api = await a_healthy_cluster()
    operator.body(CHAT)["status"]["slo"] = _slo_status("Missed")
    findings = [each for each in await run_checks(a_check_context(api)) if each.check == "slo"]
    assert [(each.state, "Missed" in each.message) for each in findings] == [
        (FindingState.WARNING, True),
        (FindingState.OK, False),
    ]
    assert findings[0].message == "SLOMet Missed: less than 95% within spec.slo: team-a/chat"
    assert findings[0].fix == "tessera explain chat -n team-a"


def _autoscaler(name: str, kind: str = "InferenceService") -> dict[str, Any]:
    target = {"apiVersion": "tessera.dev/v1alpha1", "kind": kind, "name": "chat"}
    metadata = {"name": name, "namespace": "team-a"}
    return {"metadata": metadata, "spec": {"scaleTargetRef": target}}


@pytest.mark.parametrize(
    ("mode", "autoscalers", "expected"),
    [
        ("Native", [_autoscaler("keda")], "by HorizontalPodAutoscaler keda, and spec.scaling"),
        (
            "External",
            [_autoscaler("keda"), _autoscaler("hpa")],
            "by HorizontalPodAutoscaler hpa, keda: ",
        ),
        ("External", [_autoscaler("keda")], ""),
        ("Native", [_autoscaler("other", "Deployment")], ""),
    ],
)
async def test_two_autoscalers_of_one_service_are_named(
    mode: str, autoscalers: list[dict[str, Any]], expected: str
) -> None:
    operator, api = await a_healthy_cluster()
    operator.body(CHAT)["spec"]["scaling"] = {"mode": mode}
    api.pages["/apis/autoscaling/v2/horizontalpodautoscalers"] = {
        "items": autoscalers,
        "metadata": {},
    }
    findings = await findings_by_check(api)
    if expected:
        assert expected in findings["service team-a/chat"].message
        assert findings["service team-a/chat"].state is FindingState.WARNING
    else:
        assert findings["autoscalers"].state is FindingState.OK


async def test_a_service_that_is_scaled_to_zero_is_no_problem() -> None:
    operator, api = await a_healthy_cluster()
    _status(operator, "Ready", "ScaledToZero")
    assert (await findings_by_check(api))["services"].state is FindingState.OK


async def test_a_starting_service_is_a_warning_and_one_without_a_status_a_problem() -> None:
    operator, api = await a_healthy_cluster()
    _status(operator, "Ready", "NoReplicaReady")
    _status(operator, "Progressing", "Starting", "True")
    finding = (await findings_by_check(api))["service team-a/chat"]
    assert (finding.state, finding.message) == (
        FindingState.WARNING,
        "Ready NoReplicaReady: it is NoReplicaReady",
    )
    operator.body(CHAT)["status"] = {}
    assert (await findings_by_check(api))[
        "service team-a/chat"
    ].message == "not reconciled by any operator"


async def test_pods_with_the_same_problem_are_one_finding() -> None:
    operator, api = await a_healthy_cluster()
    for number in range(7, 14):
        operator.cluster.put(PODS, _unschedulable(f"chat-{number}"))
    finding = (await findings_by_check(api))["pods"]
    assert finding.message == (
        "7 in team-a: unschedulable: 0/1 nodes: chat-10, chat-11, chat-12, chat-13, chat-7 "
        "and 2 more"
    )


def _unschedulable(name: str) -> dict[str, Any]:
    body = a_pod_body(name)
    body["status"] = {
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]
    }
    return body


async def test_replicas_that_their_service_reports_are_not_reported_twice() -> None:
    operator, api = await a_healthy_cluster()
    operator.cluster.put(PODS, _unschedulable("chat-7"))
    _status(operator, "Placed", "Unschedulable")
    findings = await findings_by_check(api)
    assert findings["service team-a/chat"].state is FindingState.PROBLEM
    assert findings["pods"].state is FindingState.OK
    assert "1 unschedulable (see services), no other stuck" in findings["pods"].message


async def test_a_pod_that_has_ended_is_no_engine_pod() -> None:
    operator, api = await a_healthy_cluster()
    before = (await findings_by_check(api))["pods"].message
    ended = a_pod_body("chat-7")
    ended["status"] = {"phase": "Succeeded"}
    operator.cluster.put(PODS, ended)
    assert (await findings_by_check(api))["pods"].message == before


async def test_the_lines_have_state_and_fix() -> None:
    findings = [
        Finding("pools", FindingState.PROBLEM, "none", "make one"),
        Finding("pods", FindingState.OK, "2"),
    ]
    assert list(report_lines(findings)) == [
        "FAIL  pools  none",
        "             -> make one",
        "ok    pods   2",
        "",
        "problems: 1, warnings: 0, skipped: 0, ok: 1",
    ]


async def test_findings_are_json() -> None:
    report = as_json([Finding("pools", FindingState.PROBLEM, "none", "make one")])
    assert report["counts"] == {"ok": 0, "warning": 0, "problem": 1, "skipped": 0}
    assert report["findings"] == [
        {"check": "pools", "state": "problem", "message": "none", "fix": "make one"}
    ]
