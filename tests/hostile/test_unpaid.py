"""What the operator makes for a tenant whose budget pays for nothing: only what is free."""

from typing import Any

import pytest

from tessera.domain.kinds.kinds import (
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    QUALITY_GATES,
    TENANT_BUDGETS,
)
from tessera.resources.api_resources import AUTOSCALING, CHILDREN, CLAIMS, DEPLOYMENTS, JOBS, KINDS
from tessera.resources.manifest import ObjectKey
from tests.batch_builders import STORED
from tests.builders import SMALL
from tests.hostile.paid_makers import Maker, functions_that_run, paid_makers, sources
from tests.hostile.score import SCORE
from tests.hostile.twin import A100, HOSTILE, Fleet

# Kinds that cost nothing by themselves: names, rules of the network, rights, alarms, and records.
FREE = frozenset(
    {
        "Service",
        "ServiceAccount",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "RoleBinding",
        "PodMonitor",
        "HorizontalPodAutoscaler",
        "ControllerRevision",
    }
)
# Kinds that take nodes, devices, volumes or processors, and so ask the budget first.
PAID = frozenset({"Deployment", "DaemonSet", "ReplicaSet", "Job", "PersistentVolumeClaim"})
SERVICES: dict[str, dict[str, Any]] = {
    "stored": {"model": STORED},
    "huge": {"model": {**STORED, "uri": "s3://models/huge", "cache": {"size": "16Ti"}}},
    "cached": {"model": {"uri": "hf://a/b", "cache": {"type": "PersistentVolumeClaim"}}},
    "unknown": {"model": {"uri": "hf://nobody/unknown"}},
    "slices": {"placement": {"mig": "Auto"}},
    "image": {"engine": {"image": "registry.evil/vllm:1"}},
    "many": {"scaling": {"minReplicas": 50, "maxReplicas": 1000}},
    "none": {"replicas": 0, "model": {**STORED, "uri": "s3://models/none"}},
    "asleep": {
        "model": {**STORED, "uri": "s3://models/asleep"},
        "scaling": {"minReplicas": 0, "maxReplicas": 3},
    },
    "gated": {"rollout": {"strategy": "Gated", "gateRef": "answers"}},
}


# One that is checked, and one whose model is read first.
BATCHES: dict[str, dict[str, Any]] = {"night": {"uri": SMALL}, "read": {"uri": "hf://nobody/own"}}
# Created by the tenant.
OWN_CLAIM = "data"


def a_fleet(amount: str) -> Fleet:
    fleet = Fleet()
    template = {"product": A100, "gpus": 8, "maxNodes": 6}
    fleet.add_pool("a100", namespaces=[HOSTILE], prePull=True)
    fleet.add_node("a100-0", "a100", whole=8)
    fleet.add_pool("burst", "3", tier="OnDemand", nodeTemplate=template, mig={"mode": "Auto"})
    fleet.add_budget(HOSTILE, amount)
    gate = {"suite": {"configMap": {"name": "suite"}}, "minScore": "0.5"}
    fleet.cluster.put(
        QUALITY_GATES, {"metadata": {"name": "answers", "namespace": HOSTILE}, "spec": gate}
    )
    claim = {"metadata": {"name": OWN_CLAIM, "namespace": HOSTILE}}
    fleet.cluster.put(CLAIMS, {**claim, "spec": {"accessModes": ["ReadWriteMany"]}})
    for name, model in BATCHES.items():
        meta = {"name": name, "namespace": HOSTILE, "creationTimestamp": "2026-11-20T11:59:00Z"}
        spec = {"claimName": OWN_CLAIM, "input": "in.jsonl", "output": f"{name}.jsonl"}
        fleet.cluster.put(BATCH_INFERENCES, {"metadata": meta, "spec": {**spec, "model": model}})
    return fleet


def created_objects(fleet: Fleet) -> dict[str, list[str]]:
    """Return what there is of each kind that the operator makes, Deployments with replicas."""
    kinds = {kind.plural: kind.kind for kind in (*CHILDREN, *AUTOSCALING, CLAIMS, JOBS)}
    objects: dict[str, list[str]] = {}
    for key, body in fleet.cluster.objects.items():
        if key.plural not in kinds or key.name.endswith("-one") or key.name == OWN_CLAIM:
            continue
        if key.plural != DEPLOYMENTS.plural or body["spec"]["replicas"]:
            objects.setdefault(kinds[key.plural], []).append(f"{key.namespace}/{key.name}")
    return objects


def test_each_kind_that_the_operator_creates_is_free_or_asks_the_budget() -> None:
    created = {kind.kind for kind in (*KINDS, *AUTOSCALING) if "create" in kind.verbs}
    assert created == FREE | PAID
    assert not FREE & PAID


@pytest.mark.parametrize(
    "planted",
    [
        "def warm(owner):\n    return owned_manifest(JOBS, owner, 'warm', {}, None)\n",
        "def warm(owner):\n    return manifest(api_resources.CLAIMS, owner)\n",
        "def warm(kind, owner):\n    return manifest(kind, owner)\n",
    ],
)
def test_a_new_maker_and_its_caller_are_found(planted: str) -> None:
    writes = "class Warmer:\n    async def write(self):\n        await self.apply(warm(self))\n"
    code = {"resources/warm.py": planted, "reconcile/writing/warm.py": writes}
    new = {Maker("resources/warm.py", "warm"), Maker("reconcile/writing/warm.py", "write")}
    assert paid_makers({**sources(), **code}, PAID) - paid_makers(sources(), PAID) == new


@pytest.mark.parametrize("amount", ["0.00", "0.0001"])
async def test_a_budget_of_nothing_gets_only_what_is_free(amount: str) -> None:
    fleet = a_fleet(amount)
    for name, spec in SERVICES.items():
        fleet.serve(name, HOSTILE, **spec)
    for _ in range(12):
        await fleet.cycle()
    paid = {kind: names for kind, names in created_objects(fleet).items() if kind in PAID}
    # Pulls the image of the installation, as the pool asks.
    assert paid.pop("DaemonSet") == ["tessera-system-prepull/tessera-prepull-a100-vllm"]
    SCORE.add(sum(map(len, paid.values())))
    assert not paid
    assert "Service" in created_objects(fleet)
    for name in SERVICES:
        body = fleet.cluster.objects[ObjectKey(INFERENCE_SERVICES.plural, HOSTILE, name)]
        messages = [each["message"] for each in body["status"]["conditions"]]
        messages += [body["status"].get("scaling", {}).get("message", "")]
        assert any(f"TenantBudget/{HOSTILE}" in message for message in messages), (name, messages)
    for name in BATCHES:
        body = fleet.cluster.objects[ObjectKey(BATCH_INFERENCES.plural, HOSTILE, name)]
        reasons = {each["type"]: each["reason"] for each in body["status"]["conditions"]}
        assert reasons["Running"] == "BudgetExhausted"


async def test_the_same_services_get_all_of_it_once_the_budget_pays() -> None:
    fleet = a_fleet("0.00")
    for name, spec in SERVICES.items():
        if name != "many":
            fleet.serve(name, HOSTILE, **spec)
    for _ in range(4):
        await fleet.cycle()
    fleet.cluster.put(
        TENANT_BUDGETS,
        {"metadata": {"name": HOSTILE}, "spec": _with_amount(fleet, "1000000")},
    )
    with functions_that_run() as called:
        for _ in range(12):
            await fleet.cycle()
    objects = created_objects(fleet)
    # Whatever makes something paid is in this scene, so it is in the one without money too.
    assert not paid_makers(sources(), PAID) - called
    assert len(objects["PersistentVolumeClaim"]) >= 5
    assert f"{HOSTILE}/answers-answers" in objects["PersistentVolumeClaim"]
    assert any(name.startswith(f"{HOSTILE}/answers-") for name in objects["Job"])
    assert {f"{HOSTILE}/night-check", f"{HOSTILE}/read-shape"} <= {
        name.rpartition("-")[0] if "shape" in name else name for name in objects["Job"]
    }
    assert objects["ReplicaSet"] == ["tessera-system-prepull/tessera-placeholder-burst"]


def _with_amount(fleet: Fleet, amount: str) -> dict[str, Any]:
    spec = fleet.cluster.objects[ObjectKey(TENANT_BUDGETS.plural, "", HOSTILE)]["spec"]
    return {**spec, "storage": "64Ti", "limits": [{"window": "Day", "amount": amount}]}
