"""`tessera` at the terminal of users of an installed chart: the platform team, and a tenant."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.stage import EXAMPLES, NAMESPACE, Json, Stage, condition
from scenarios.actions import SMALL, Place
from scenarios.commands import explained, tessera
from tessera.resources.api_resources import INFERENCE_SERVICES, TENANT_BUDGETS
from world.testing import eventually

NODE = "/api/v1/nodes/a100-0"
OPERATOR = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/tessera-operator"
PRODUCT = "nvidia.com/gpu.product"


async def findings(stage: Stage, *arguments: str, **fields: Any) -> Mapping[str, Json]:
    """What the doctor finds, by check."""
    told = await tessera(stage, "doctor", "--json", *arguments, **fields)
    found = {one["check"]: one for one in told.json["findings"]}
    assert told.code == any(one["state"] == "problem" for one in found.values())
    return found


def states(found: Mapping[str, Json], state: str) -> set[str]:
    return {check for check, one in found.items() if one["state"] == state}


async def test_the_doctor_finds_a_served_cluster_fine(place: Place) -> None:
    await place.serve(replicas=1)
    await place.until_ready()

    async def found() -> Mapping[str, Json]:
        return await findings(place.stage)

    told = await eventually(found, lambda one: not states(one, "problem"), within=60)
    assert states(told, "skipped") == set()
    for check in ("kubernetes", "crds", "operator", "leader", "webhook", "gpu nodes"):
        assert told[check]["state"] == "ok", told[check]
    assert told["services"]["message"].startswith("1 service,")
    assert "scraped" in told["engine metrics"]["message"]
    assert place.namespace in told["budgets"]["message"]


async def test_the_doctor_names_what_is_broken(stage: Stage) -> None:
    pools = str(EXAMPLES / "00-pools.yaml")
    await stage.run("kubectl", "delete", "-f", pools, "--wait")
    product = (await stage.api.get(NODE))["metadata"]["labels"][PRODUCT]
    await stage.api.patch(NODE, {"metadata": {"labels": {PRODUCT: None}}})
    await stage.api.patch(OPERATOR, {"spec": {"replicas": 0}})
    try:

        async def found() -> Mapping[str, Json]:
            return await findings(stage)

        wrong = {"pools", "gpu labels", "operator", "leader"}
        told = await eventually(found, lambda one: wrong <= states(one, "problem"), within=90)
        assert told["pools"]["fix"].endswith("examples/00-pools.yaml")
        assert "a100-0" in told["gpu labels"]["message"]
        assert "--replicas=1" in told["operator"]["fix"]
        assert told["webhook"]["state"] == "warning"
    finally:
        await stage.api.patch(OPERATOR, {"spec": {"replicas": 1}})
        await stage.api.patch(NODE, {"metadata": {"labels": {PRODUCT: product}}})
        await stage.run("kubectl", "apply", "-f", pools)

    async def healed() -> Mapping[str, Json]:
        return await findings(stage)

    await eventually(healed, lambda one: not states(one, "problem"), within=90)


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
async def kserve(place: Place) -> AsyncIterator[None]:
    """Install the CRD of KServe with one object named `chat`, as long as the block runs."""
    api, path = place.stage.api, f"{_CRDS}/{_KSERVE['metadata']['name']}"
    service: Json = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "chat", "namespace": place.namespace},
        "spec": {},
    }
    objects = f"/apis/serving.kserve.io/v1beta1/namespaces/{place.namespace}/inferenceservices"
    await api.create(_CRDS, _KSERVE)
    try:
        # The API server serves a new kind a moment after it accepts the CRD.
        await eventually(lambda: api.apply(f"{objects}/chat", service, "kubectl"), bool, within=30)
        yield
    finally:
        await api.delete(path)

        async def is_installed() -> bool:
            return await api.exists(path)

        await eventually(is_installed, lambda installed: not installed, within=30)


async def test_the_short_name_lists_only_services_of_tessera_beside_kserve(
    place: Place, tmp_path: Path
) -> None:
    await place.serve(replicas=0)
    # A cache of its own: the one in the home directory was filled before KServe was installed.
    get = ("kubectl", "--cache-dir", str(tmp_path), "-n", place.namespace, "get", "-o", "name")
    async with kserve(place):
        for name in ("tsvc", "inferenceservices.tessera.dev", "tessera"):
            listed = await place.stage.run(*get, name)
            services = [line for line in listed.split() if line.startswith("inferenceservice")]
            assert services == ["inferenceservice.tessera.dev/chat"], name
        listed = await place.stage.run(*get, "inferenceservices.serving.kserve.io")
        assert listed.split() == ["inferenceservice.serving.kserve.io/chat"]
        finding = (await findings(place.stage))["kserve"]
        assert (finding["state"], "tsvc" in finding["fix"]) == ("warning", True)
    assert "kserve" not in await findings(place.stage)


async def test_a_ready_service_is_explained_with_its_readings(place: Place) -> None:
    await place.serve(scaling={"minReplicas": 1, "maxReplicas": 3})
    await place.until_ready()
    await eventually(place.status, lambda one: one["scaling"]["reason"] == "Steady", within=40)
    told = await explained(place, "--prometheus", place.stage.world.prometheus_url)
    status = await place.status()
    for topic, kind in (("accepted", "Accepted"), ("placed", "Placed"), ("ready", "Ready")):
        assert told[topic]["reason"] == condition({"status": status}, kind)["reason"]
        assert told[topic]["recomputed"] is None
    assert told["placed"]["numbers"]["price per replica"] == "0.2397 USD per hour"
    why = {one["name"]: one["message"] for one in told["placed"]["alternatives"]}
    assert why["a100-reserved-1g-10gb"] == "chosen"
    assert why["a100-spot-3g-40gb"].startswith("Spot: spec.class Interactive never")
    assert "h100-ondemand (now 2.99)" in " ".join(told["placed"]["wouldChange"])
    assert told["scaling"]["reason"] == status["scaling"]["reason"]
    assert told["scaling"]["numbers"]["waiting requests"].startswith("0 in all replicas")
    assert "for 60s would add 1" in told["scaling"]["wouldChange"][0]


async def test_layouts_are_shown_where_they_are_known_and_said_where_not(place: Place) -> None:
    told = await tessera(place.stage, "mosaic", "--json")
    pools = {one["name"]: one for one in told.json["pools"]}
    assert told.json["notes"] == []
    assert "a100-reserved" in pools
    for pool in pools.values():
        assert pool["strandedPerHour"] is not None
    shown = await tessera(place.stage, "mosaic", "a100-reserved")
    assert shown.code == 0, shown
    planned = await tessera(place.stage, "plan")
    assert planned.code == 1
    assert "no AcceleratorPool has spec.mig" in planned.errors


async def test_an_unplaceable_service_is_explained_by_every_hardware(place: Place) -> None:
    shape = {
        "parameters": 700_000_000_000,
        "layers": 80,
        "attentionHeads": 64,
        "kvHeads": 8,
        "headDim": 128,
        "maxPositionEmbeddings": 8192,
    }
    await place.serve(model={"uri": "hf://acme/giant", "shape": shape})
    await place.until_condition("chat", "Placed", "TooLarge")
    told = await explained(place)
    assert told["placed"]["reason"] == "TooLarge"
    assert "sizing" not in told
    whys = {one["name"]: one["message"] for one in told["placed"]["alternatives"]}
    assert all("too small" in why or "Spot" in why for why in whys.values()), whys
    found = (await findings(place.stage))[f"service {place.namespace}/chat"]
    assert found["state"] == "problem"
    assert found["fix"] == f"tessera explain chat -n {place.namespace}"


@asynccontextmanager
async def a_budget(place: Place, amount: str) -> AsyncIterator[None]:
    path = TENANT_BUDGETS.path(None, place.namespace)
    body = {
        "apiVersion": TENANT_BUDGETS.api_version,
        "kind": TENANT_BUDGETS.kind,
        "metadata": {"name": place.namespace},
        "spec": {
            "owner": "team@example.org",
            "tenant": {"namespaces": [place.namespace]},
            "limits": [{"window": "Month", "amount": amount}],
        },
    }
    await place.stage.api.apply(path, body, "kubectl")
    try:
        yield
    finally:
        await place.stage.api.delete(path)


async def test_a_service_without_money_is_explained_with_the_limit_that_would_do(
    place: Place,
) -> None:
    async with a_budget(place, "0.0100"):
        await place.serve(replicas=2)

        async def reason() -> object:
            return (await place.status()).get("scaling", {}).get("reason")

        async def wanted() -> object:
            return (await place.status()).get("scaling", {}).get("desiredReplicas")

        await eventually(reason, lambda told: told == "BudgetExhausted", within=30)
        told = await explained(place)
        assert told["scaling"]["reason"] == "BudgetExhausted"
        assert told["scaling"]["numbers"]["replicas"].startswith("0 desired")
        assert told["budget"]["reason"] == "MinReplicasExceedBudget"
        assert "0.01 USD" in told["budget"]["numbers"]["month"].replace("0.0100", "0.01")
        said, later = told["budget"]["wouldChange"]
        assert later.startswith("the next windows do not pay it either")
        assert said.startswith("spec.limits[0].amount of ")
        # The one that always runs, at 0.2397 an hour, for any whole month.
        limits = [{"window": "Month", "amount": "200.00"}]
        path = TENANT_BUDGETS.path(None, place.namespace)
        await place.stage.api.patch(path, {"spec": {"limits": limits}})
        await eventually(wanted, bool, within=30)


@pytest.mark.parametrize("readings", [False, True])
async def test_a_snapshot_is_planned_anew_to_the_decisions_of_the_statuses(
    place: Place, tmp_path: Path, readings: bool
) -> None:
    stage = place.stage
    await place.serve(replicas=1)
    await place.serve("scaled", scaling={"minReplicas": 1, "maxReplicas": 2})
    await place.serve("giant", model={"uri": "hf://meta-llama/Llama-3.1-70B-Instruct"},
                      placement={"pools": ["a100-reserved"]})  # fmt: skip
    await place.until_ready()
    await place.until_ready("scaled")
    await place.until_condition("giant", "Placed", "TooLarge")
    file = tmp_path / "fleet.json.gz"
    metrics = ("--prometheus", stage.world.prometheus_url) if readings else ()

    async def rows() -> list[tuple[Json, Json]]:
        """Of every service what was decided anew, and what its status said when it was saved."""
        assert (await tessera(stage, "snapshot", "save", str(file), *metrics)).code == 0
        told = (await tessera(stage, "snapshot", "plan", str(file), "--json")).json
        decided = {one["name"]: one for one in told["services"]}
        return [
            (decided[f"{place.namespace}/{name}"], await place.status(name))
            for name in ("chat", "scaled", "giant")
        ]

    def same(pairs: list[tuple[Json, Json]]) -> bool:
        return all(
            row[key] == one["reason"]
            for row, status in pairs
            for one in status["conditions"]
            if (key := one["type"][0].lower() + one["type"][1:]) in row
        ) and all(
            row["scaling"] == status["scaling"]["reason"]
            for row, status in pairs
            if readings or row["scaling"] != "FailedGetMetrics"
        )

    for row, status in await eventually(rows, same, within=40):
        assert row["replicas"] == status["scaling"]["desiredReplicas"]
        assert row["variant"] == status.get("variant", {}).get("name")


async def test_top_ranks_the_services_and_counts_free_devices(place: Place) -> None:
    stage = place.stage
    await place.serve(replicas=2)
    await place.until_ready()
    url = stage.world.prometheus_url

    async def top() -> Json:
        return (await tessera(stage, "top", "--json", "--prometheus", url)).json

    def read(told: Json) -> bool:
        (row,) = (one for one in told["services"] if one["namespace"] == place.namespace)
        return (
            row["readyReplicas"] == 2
            and row["waitingRequests"] == 0.0
            and row["activity"] is not None
        )

    told = await eventually(top, read, within=60)
    pool = next(one for one in told["pools"] if one["name"] == "a100-reserved")
    assert pool["devices"]["1g.10gb"] == {"free": 2, "allocatable": 4}
    table = (await tessera(stage, "top", "-n", place.namespace)).output
    assert table.splitlines()[0].startswith("SERVICE")
    assert table.splitlines()[1].startswith(f"{place.namespace}/chat")


async def test_an_update_that_is_not_available_changes_nothing(place: Place) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    await place.serve(replicas=1, model={"uri": SMALL, "revision": commit})
    await place.until_ready()
    told = await tessera(place.stage, "update", "chat", "-n", place.namespace)
    assert (told.code, told.errors) == (0, "")
    assert "no update available" in told.output
    found = await place.stage.api.get(INFERENCE_SERVICES.path(place.namespace, "chat"))
    assert "tessera.dev/update" not in found["metadata"].get("annotations", {})


async def a_tenant(place: Place, folder: Path) -> Path:
    """The kubeconfig of somebody who may only look at one namespace."""
    run, namespace = place.stage.run, place.namespace
    await run("kubectl", "-n", namespace, "create", "serviceaccount", "tenant")
    await run(
        *("kubectl", "-n", namespace, "create", "role", "look"),
        *("--verb=get,list", "--resource=inferenceservices.tessera.dev,pods"),
    )
    await run(
        *("kubectl", "-n", namespace, "create", "rolebinding", "look"),
        *("--role=look", f"--serviceaccount={namespace}:tenant"),
    )
    token = await run("kubectl", "-n", namespace, "create", "token", "tenant")
    config = yaml.safe_load(place.stage.world.kubeconfig.read_text(encoding="utf-8"))
    config["users"] = [{"name": "tenant", "user": {"token": token.strip()}}]
    (cluster,) = config["clusters"]
    config["contexts"] = [
        {
            "name": "tenant",
            "context": {"cluster": cluster["name"], "user": "tenant", "namespace": namespace},
        }
    ]
    config["current-context"] = "tenant"
    path = folder / "tenant.kubeconfig"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


async def test_a_tenant_without_rights_in_the_cluster_gets_what_may_be_seen(
    place: Place, tmp_path: Path
) -> None:
    await place.serve(replicas=1)
    await place.until_ready()
    kubeconfig = await a_tenant(place, tmp_path)
    told = await tessera(place.stage, "explain", "chat", kubeconfig=kubeconfig)
    assert told.code == 0
    assert "from the status alone, since reads failed: permission denied: list" in told.output
    assert "READY: CompletionSucceeded" in told.output
    found = await findings(place.stage, kubeconfig=kubeconfig)
    assert states(found, "problem") == set()
    assert {"operator", "pools", "gpu nodes", "services"} <= states(found, "skipped")
    wrong = kubeconfig.read_text(encoding="utf-8").replace("token: ", "token: x")
    kubeconfig.write_text(wrong, encoding="utf-8")
    refused = await tessera(place.stage, "explain", "chat", kubeconfig=kubeconfig)
    assert refused.code == 1
    assert "rejected the credentials" in refused.errors


async def test_near_names_are_offered(place: Place) -> None:
    await place.serve(replicas=0, model={"uri": SMALL})
    told = await tessera(place.stage, "explain", "caht", "-n", place.namespace)
    assert (told.code, told.output) == (1, "")
    assert "did you mean chat?" in told.errors


_PLUGINS = {
    "kubectl-tessera": "from tessera.cli.main import main",
    "kubectl_complete-tessera": "from tessera.cli.complete import main",
}


async def test_kubectl_runs_and_completes_it_as_a_plugin(place: Place, tmp_path: Path) -> None:
    for name, line in _PLUGINS.items():
        script = tmp_path / name
        script.write_text(f"#!{sys.executable}\n{line}\nmain()\n", encoding="utf-8")
        script.chmod(0o755)
    kubectl = str(place.stage.world.binary("kubectl"))
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "KUBECONFIG": str(place.stage.world.kubeconfig),
    }

    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            kubectl, *arguments, env=environment, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        return output.decode()

    assert "POOL" in await run("tessera", "top", "-n", place.namespace)
    assert "usage: kubectl tessera explain" in await run("tessera", "explain", "--help")
    completed = await run("__complete", "tessera", "snapshot", "s")
    assert completed.splitlines()[:2] == ["save", ":4"]
