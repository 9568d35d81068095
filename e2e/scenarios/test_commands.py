"""`tessera` at the terminal of users of an installed chart: the platform team, and a tenant."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.cluster import EXAMPLES, NAMESPACE, InstalledCluster, Json, StepError, condition
from scenarios.actions import SMALL, ScenarioNamespace, a_budget
from scenarios.commands import explain, run_tessera
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tests.cases import full
from world.testing import eventually

NODE = "/api/v1/nodes/a100-0"
OPERATOR = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/tessera-operator"
PRODUCT = "nvidia.com/gpu.product"


async def run_doctor(
    cluster: InstalledCluster, *arguments: str, **fields: Any
) -> Mapping[str, Json]:
    """Run the doctor; return its findings by check. A wait does not repeat a wrong exit code."""
    result = await run_tessera(cluster, "doctor", "--json", *arguments, **fields)
    findings = {finding["check"]: finding for finding in result.json["findings"]}
    if result.code != any(finding["state"] == "problem" for finding in findings.values()):
        raise StepError(f"exit code {result.code}: {result.output}")
    return findings


def checks_in_state(findings: Mapping[str, Json], state: str) -> set[str]:
    return {check for check, finding in findings.items() if finding["state"] == state}


async def check_no_problem(cluster: InstalledCluster) -> Mapping[str, Json]:
    """Assert that the doctor finds no problem; return its findings."""
    findings = await run_doctor(cluster)
    problems = checks_in_state(findings, "problem")
    assert problems == set(), [findings[check] for check in problems]
    return findings


async def test_the_doctor_finds_no_problem_in_a_served_cluster(
    namespace: ScenarioNamespace,
) -> None:
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()

    async def is_healthy() -> None:
        findings = await check_no_problem(namespace.cluster)
        assert checks_in_state(findings, "skipped") == set()
        for check in (
            "kubernetes",
            "crds",
            "operator",
            "leader",
            "webhook",
            "policies",
            "gpu nodes",
        ):
            assert findings[check]["state"] == "ok", findings[check]
        assert findings["services"]["message"].startswith("1 service,")
        assert "scraped" in findings["engine metrics"]["message"]
        assert namespace.name in findings["budgets"]["message"]

    await eventually(is_healthy)


@pytest.mark.full
async def test_the_doctor_names_what_is_broken(cluster: InstalledCluster) -> None:
    pools = str(EXAMPLES / "00-pools.yaml")
    await cluster.run("kubectl", "delete", "-f", pools, "--wait")
    product = (await cluster.api.get(NODE))["metadata"]["labels"][PRODUCT]
    await cluster.api.patch(NODE, {"metadata": {"labels": {PRODUCT: None}}})
    await cluster.api.patch(OPERATOR, {"spec": {"replicas": 0}})

    async def is_named() -> None:
        findings = await run_doctor(cluster)
        broken = {"pools", "gpu labels", "operator", "leader"}
        assert broken <= checks_in_state(findings, "problem")
        assert findings["pools"]["fix"].endswith("examples/00-pools.yaml")
        assert "a100-0" in findings["gpu labels"]["message"]
        assert "--replicas=1" in findings["operator"]["fix"]
        assert findings["webhook"]["state"] == "warning"

    try:
        await eventually(is_named)
    finally:
        await cluster.api.patch(OPERATOR, {"spec": {"replicas": 1}})
        await cluster.api.patch(NODE, {"metadata": {"labels": {PRODUCT: product}}})
        await cluster.run("kubectl", "apply", "-f", pools)

    await eventually(partial(check_no_problem, cluster))


_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_KSERVE: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "inferenceservices.serving.kserve.io"},
    "spec": {
        "group": "serving.kserve.io",
        "scope": "Namespaced",
        "names": {
            "kind": "InferenceService",
            "listKind": "InferenceServiceList",
            "plural": "inferenceservices",
            "singular": "inferenceservice",
            "shortNames": ["isvc"],
        },
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}


@asynccontextmanager
async def kserve(namespace: ScenarioNamespace) -> AsyncIterator[None]:
    """Install the CRD of KServe with one object named `chat`, as long as the block runs."""
    api, path = namespace.cluster.api, f"{_CRDS}/{_KSERVE['metadata']['name']}"
    service: Json = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "chat", "namespace": namespace.name},
        "spec": {},
    }
    objects = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace.name}/inferenceservices"
    await api.create(_CRDS, _KSERVE)
    try:
        # The API server serves a new kind a moment after it accepts the CRD.
        await eventually(partial(api.apply, f"{objects}/chat", service, "kubectl"))
        yield
    finally:
        await api.delete(path)

        async def is_uninstalled() -> None:
            assert not await api.exists(path)

        await eventually(is_uninstalled)


@pytest.mark.full
async def test_the_short_name_lists_only_services_of_tessera_beside_kserve(
    namespace: ScenarioNamespace, tmp_path: Path
) -> None:
    await namespace.apply_service(replicas=0)
    # A cache of its own: the one in the home directory was filled before KServe was installed.
    get = ("kubectl", "--cache-dir", str(tmp_path), "-n", namespace.name, "get", "-o", "name")
    async with kserve(namespace):
        for name in ("tsvc", "inferenceservices.tessera.dev", "tessera"):
            output = await namespace.cluster.run(*get, name)
            services = [line for line in output.split() if line.startswith("inferenceservice")]
            assert services == ["inferenceservice.tessera.dev/chat"], name
        output = await namespace.cluster.run(*get, "inferenceservices.serving.kserve.io")
        assert output.split() == ["inferenceservice.serving.kserve.io/chat"]
        finding = (await run_doctor(namespace.cluster))["kserve"]
        assert (finding["state"], "tsvc" in finding["fix"]) == ("warning", True)
    assert "kserve" not in await run_doctor(namespace.cluster)


async def test_a_ready_service_is_explained_with_its_readings(namespace: ScenarioNamespace) -> None:
    await namespace.apply_service(scaling={"minReplicas": 1, "maxReplicas": 3})
    await namespace.wait_until_ready()

    async def is_explained() -> None:
        status = await namespace.service_status()
        assert status["scaling"]["reason"] == "EstimatedArrivals"
        decisions = await explain(namespace, "--prometheus", namespace.cluster.world.prometheus_url)
        for topic, kind in (("accepted", "Accepted"), ("placed", "Placed"), ("ready", "Ready")):
            assert decisions[topic]["reason"] == condition({"status": status}, kind)["reason"]
            assert decisions[topic]["recomputed"] is None
        assert decisions["placed"]["numbers"]["price per replica"] == "0.2397 USD per hour"
        reasons = {
            alternative["name"]: alternative["message"]
            for alternative in decisions["placed"]["alternatives"]
        }
        assert reasons["a100-reserved-1g-10gb"] == "chosen"
        assert reasons["a100-spot-3g-40gb"] == "spec.placement.tiers does not list Spot"
        assert "h100-ondemand (now 2.99)" in " ".join(decisions["placed"]["wouldChange"])
        assert decisions["scaling"]["reason"] == status["scaling"]["reason"]
        assert decisions["scaling"]["numbers"]["policy"] == "Capacity"
        assert decisions["scaling"]["numbers"].get("waiting requests") == "0"

    await eventually(is_explained)


@pytest.mark.full
async def test_layouts_are_shown_where_they_are_known_and_reported_as_missing_elsewhere(
    namespace: ScenarioNamespace,
) -> None:
    result = await run_tessera(namespace.cluster, "mosaic", "--json")
    pools = {pool["name"]: pool for pool in result.json["pools"]}
    assert result.json["notes"] == []
    assert "a100-reserved" in pools
    for pool in pools.values():
        assert pool["strandedPerHour"] is not None
    (gpu,) = pools["a100-reserved"]["gpus"]
    assert len(gpu["slices"]) == 5
    mosaic = await run_tessera(namespace.cluster, "mosaic", "a100-reserved")
    assert mosaic.code == 0, mosaic
    assert "1 GPU in MIG mode" in mosaic.output
    plan = await run_tessera(namespace.cluster, "plan")
    assert plan.code == 1
    assert "no AcceleratorPool has spec.mig" in plan.errors


@pytest.mark.full
async def test_an_unplaceable_service_is_explained_by_every_hardware(
    namespace: ScenarioNamespace,
) -> None:
    shape = {
        "parameters": 700_000_000_000,
        "layers": 80,
        "attentionHeads": 64,
        "kvHeads": 8,
        "headDim": 128,
        "maxPositionEmbeddings": 8192,
    }
    await namespace.apply_service(model={"uri": "hf://acme/giant", "shape": shape})
    await namespace.wait_for_condition("chat", "Placed", "TooLarge")
    decisions = await explain(namespace)
    assert decisions["placed"]["reason"] == "TooLarge"
    assert "sizing" not in decisions
    reasons = {
        alternative["name"]: alternative["message"]
        for alternative in decisions["placed"]["alternatives"]
    }
    assert all("too small" in reason or "Spot" in reason for reason in reasons.values()), reasons
    finding = (await run_doctor(namespace.cluster))[f"service {namespace.name}/chat"]
    assert finding["state"] == "problem"
    assert finding["fix"] == f"tessera explain chat -n {namespace.name}"


async def test_a_service_without_budget_is_explained_with_the_limit_that_it_needs(
    namespace: ScenarioNamespace,
) -> None:
    async with a_budget(namespace, "0.0100"):
        await namespace.apply_service(replicas=2)

        async def is_explained() -> None:
            status = await namespace.service_status()
            assert status.get("scaling", {}).get("reason") == "BudgetExhausted", status
            decisions = await explain(namespace)
            assert decisions["scaling"]["reason"] == "BudgetExhausted"
            assert decisions["scaling"]["numbers"]["replicas"].startswith("0 desired")
            assert decisions["budget"]["reason"] == "MinReplicasExceedBudget"
            assert "0.01 USD" in decisions["budget"]["numbers"]["month"].replace("0.0100", "0.01")
            limit_change, later = decisions["budget"]["wouldChange"]
            assert later.startswith("the next windows do not cover it either")
            assert limit_change.startswith("spec.limits[0].amount of ")

        async def is_granted() -> None:
            status = await namespace.service_status()
            assert status.get("scaling", {}).get("desiredReplicas", 0) > 0, status

        await eventually(is_explained)
        # Enough for one replica at 0.2397 an hour in any whole month.
        limits = [{"window": "Month", "amount": "200.00"}]
        path = TENANT_BUDGETS.path(None, namespace.name)
        await namespace.cluster.api.patch(path, {"spec": {"limits": limits}})
        await eventually(is_granted)


@pytest.mark.parametrize("readings", [True, *full(False)])
async def test_a_snapshot_is_planned_to_the_decisions_of_the_statuses(
    namespace: ScenarioNamespace, tmp_path: Path, readings: bool
) -> None:
    cluster = namespace.cluster
    await namespace.apply_service(replicas=1)
    await namespace.apply_service("scaled", scaling={"minReplicas": 1, "maxReplicas": 2})
    giant = {"uri": "hf://meta-llama/Llama-3.1-70B-Instruct"}
    placement = {"pools": ["a100-reserved"]}
    await namespace.apply_service("giant", model=giant, placement=placement)
    await namespace.wait_until_ready()
    await namespace.wait_until_ready("scaled")
    await namespace.wait_for_condition("giant", "Placed", "TooLarge")
    file = tmp_path / "fleet.json.gz"
    metrics = ("--prometheus", cluster.world.prometheus_url) if readings else ()

    async def plan_agrees() -> None:
        """Assert that the plan from a snapshot has the decisions of the statuses."""
        saved = await run_tessera(cluster, "snapshot", "save", str(file), *metrics)
        if saved.code != 0:
            raise StepError(saved.errors)
        fleet_plan = (await run_tessera(cluster, "snapshot", "plan", str(file), "--json")).json
        planned_services = {service["name"]: service for service in fleet_plan["services"]}
        for name in ("chat", "scaled", "giant"):
            row = planned_services[f"{namespace.name}/{name}"]
            status = await namespace.service_status(name)
            for entry in status["conditions"]:
                key = entry["type"][0].lower() + entry["type"][1:]
                assert row.get(key, entry["reason"]) == entry["reason"], row
            if readings or row["scaling"] != "FailedGetMetrics":
                assert row["scaling"] == status["scaling"]["reason"]
            assert row["replicas"] == status["scaling"]["desiredReplicas"]
            assert row["variant"] == status.get("variant", {}).get("name")

    await eventually(plan_agrees)


@pytest.mark.full
async def test_top_ranks_the_services_and_counts_free_devices(namespace: ScenarioNamespace) -> None:
    cluster = namespace.cluster
    await namespace.apply_service(replicas=2)
    await namespace.wait_until_ready()
    url = cluster.world.prometheus_url

    async def is_ranked() -> None:
        top = (await run_tessera(cluster, "top", "--json", "--prometheus", url)).json
        (row,) = (service for service in top["services"] if service["namespace"] == namespace.name)
        assert (row["readyReplicas"], row["waitingRequests"]) == (2, 0.0), row
        assert row["activity"] is not None, row
        pool = next(pool for pool in top["pools"] if pool["name"] == "a100-reserved")
        assert pool["devices"]["1g.10gb"] == {"free": 2, "allocatable": 4}

    await eventually(is_ranked)
    table = (await run_tessera(cluster, "top", "-n", namespace.name)).output
    assert table.splitlines()[0].startswith("SERVICE")
    assert table.splitlines()[1].startswith(f"{namespace.name}/chat")


@pytest.mark.full
async def test_an_update_that_is_not_available_changes_nothing(
    namespace: ScenarioNamespace,
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    await namespace.apply_service(replicas=1, model={"uri": SMALL, "revision": commit})
    await namespace.wait_until_ready()
    result = await run_tessera(namespace.cluster, "update", "chat", "-n", namespace.name)
    assert (result.code, result.errors) == (0, "")
    assert "no update available" in result.output
    service = await namespace.cluster.api.get(INFERENCE_SERVICES.path(namespace.name, "chat"))
    assert "tessera.dev/update" not in service["metadata"].get("annotations", {})


async def create_tenant_kubeconfig(namespace: ScenarioNamespace, folder: Path) -> Path:
    """Write the kubeconfig of a tenant who may only read one namespace."""
    run, name = namespace.cluster.run, namespace.name
    await run("kubectl", "-n", name, "create", "serviceaccount", "tenant")
    await run(
        *("kubectl", "-n", name, "create", "role", "look"),
        *("--verb=get,list", "--resource=inferenceservices.tessera.dev,pods"),
    )
    await run(
        *("kubectl", "-n", name, "create", "rolebinding", "look"),
        *("--role=look", f"--serviceaccount={name}:tenant"),
    )
    token = await run("kubectl", "-n", name, "create", "token", "tenant")
    config = yaml.safe_load(namespace.cluster.world.kubeconfig.read_text(encoding="utf-8"))
    config["users"] = [{"name": "tenant", "user": {"token": token.strip()}}]
    (cluster,) = config["clusters"]
    config["contexts"] = [
        {
            "name": "tenant",
            "context": {"cluster": cluster["name"], "user": "tenant", "namespace": name},
        }
    ]
    config["current-context"] = "tenant"
    path = folder / "tenant.kubeconfig"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


async def test_a_tenant_without_rights_in_the_cluster_gets_what_may_be_seen(
    namespace: ScenarioNamespace, tmp_path: Path
) -> None:
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    kubeconfig = await create_tenant_kubeconfig(namespace, tmp_path)
    result = await run_tessera(namespace.cluster, "explain", "chat", kubeconfig=kubeconfig)
    assert result.code == 0
    assert "from the status alone, since reads failed: permission denied: list" in result.output
    assert "READY: CompletionSucceeded" in result.output

    async def sees_no_problem() -> None:
        # A busy API server answers too late.
        findings = await run_doctor(namespace.cluster, kubeconfig=kubeconfig)
        assert checks_in_state(findings, "problem") == set(), findings
        skipped = checks_in_state(findings, "skipped")
        assert {"operator", "pools", "gpu nodes", "services"} <= skipped

    await eventually(sees_no_problem)
    wrong_config = kubeconfig.read_text(encoding="utf-8").replace("token: ", "token: x")
    kubeconfig.write_text(wrong_config, encoding="utf-8")
    rejected = await run_tessera(namespace.cluster, "explain", "chat", kubeconfig=kubeconfig)
    assert rejected.code == 1
    assert "rejected the credentials" in rejected.errors


async def test_similar_names_are_suggested(namespace: ScenarioNamespace) -> None:
    await namespace.apply_service(replicas=0, model={"uri": SMALL})
    result = await run_tessera(namespace.cluster, "explain", "caht", "-n", namespace.name)
    assert (result.code, result.output) == (1, "")
    assert "did you mean chat?" in result.errors


_PLUGINS = {
    "kubectl-tessera": "from tessera.cli.main import main",
    "kubectl_complete-tessera": "from tessera.cli.complete import main",
}


async def test_kubectl_runs_and_completes_it_as_a_plugin(
    namespace: ScenarioNamespace, tmp_path: Path
) -> None:
    for name, line in _PLUGINS.items():
        script = tmp_path / name
        script.write_text(f"#!{sys.executable}\n{line}\nmain()\n", encoding="utf-8")
        script.chmod(0o755)
    kubectl = str(namespace.cluster.world.binary("kubectl"))
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "KUBECONFIG": str(namespace.cluster.world.kubeconfig),
    }

    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            kubectl, *arguments, env=environment, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        return output.decode()

    assert "POOL" in await run("tessera", "top", "-n", namespace.name)
    assert "Usage: kubectl tessera explain" in await run("tessera", "explain", "--help")
    completions = await run("__complete", "tessera", "snapshot", "s")
    assert completions.splitlines()[:2] == ["save", ":4"]
