"""Whatever a cycle does for one tenant raises in each cycle; the others end as without that."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.hardware.pools import PoolView
from tessera.domain.kinds.kinds import (
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    MODEL_PROVIDERS,
    MODEL_ROUTES,
    NODE_LAYOUTS,
    QUALITY_GATES,
)
from tessera.domain.observed.batches import Batch, BatchJob
from tessera.domain.observed.snapshot import Ref
from tessera.domain.planning.plan import STEPS
from tessera.domain.service.removed import RemovedWorkload
from tessera.domain.status.reporters import Report
from tessera.domain.status.routes import route_status
from tessera.domain.steps import Step
from tessera.reconcile.writing.batches import BatchApplier
from tessera.reconcile.writing.budgets import BudgetApplier
from tessera.reconcile.writing.layouts import LayoutApplier
from tessera.reconcile.writing.service_work import ServiceWork
from tessera.reconcile.writing.services import ServiceApplier
from tessera.reconcile.writing.shared_objects import (
    PrePullApplier,
    SharedInputs,
    SharedObjectApplier,
)
from tessera.reconcile.writing.statuses import StatusApplier
from tessera.reconcile.writing.writer import WriteStep
from tessera.resources.api_resources import CLAIMS
from tessera.resources.manifest import ObjectKey
from tests.builders import SMALL, a_provider_spec
from tests.domain.test_steps import owner_of
from tests.hostile.twin import A100, HOSTILE, Fleet, Twins

GOOD = "team-a"
ATTEMPT = {
    "number": 1,
    "pool": "team-a",
    "variant": "a100-1g-10gb",
    "tier": "OnDemand",
    "job": "ended-a1",
    "startedAt": "2026-01-01T11:00:00Z",
}

# What is written for one object; the actions of layouts are for all pools.
WRITE_STEPS = [
    step
    for applier in (
        *(LayoutApplier, SharedObjectApplier, BudgetApplier),
        *(ServiceApplier, BatchApplier, PrePullApplier, StatusApplier),
    )
    for name, step in vars(applier).items()
    if isinstance(step, WriteStep) and not name.startswith("_") and name != "write_actions"
]


class _Raising:
    """Stands for a step: while active, it raises for the objects of the hostile tenant."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = function.__name__
        self._function = function
        self.active = False
        self.raised = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        owners = {owner for owner in map(_owner_of, arguments) if owner is not None}
        if not self.active or GOOD in owners:
            return self._function(*arguments, **named)
        self.raised += 1
        raise OverflowError("cannot convert float infinity to integer")


def _owner_of(value: object) -> str | None:
    name: str | None
    match value:
        case RemovedWorkload():
            name = value.workload.service.namespace
        case ServiceWork():
            name = value.ref.namespace
        case Report():
            name = value.observed.ref.namespace
        case SharedInputs():
            name = value.sharing.namespace
        case PoolView():
            name = value.pool.name
        case BatchPlan():
            name = value.batch.ref.namespace
        case BatchJob() | Batch():
            name = value.ref.namespace
        case _:
            name = owner_of(value)
    return name


def _build(fleet: Fleet) -> None:
    for tenant in (GOOD, HOSTILE):
        template = {"product": A100, "gpus": 1, "maxNodes": 1}
        fleet.add_pool(tenant, mig={"mode": "Auto"}, nodeTemplate=template)
        fleet.add_node(f"{tenant}-0", tenant, {"1g.10gb": 7})
        fleet.add_budget(tenant, "1000")
        placement = {"pools": [tenant]}
        fleet.serve("chat", tenant, placement=placement, scaling={"maxReplicas": 4})
        fleet.serve("auto", tenant, placement={**placement, "mig": "Auto"}, replicas=1)
        fleet.serve("gone", tenant, placement=placement, replicas=1)
        fleet.running[Ref(tenant, "chat")] = 1.0
        _put_gated(fleet, tenant, SMALL)
        suite = {"suite": {"configMap": {"name": "suite"}}}
        gate = {"metadata": {"name": "answers", "namespace": tenant}, "spec": suite}
        fleet.cluster.put(QUALITY_GATES, gate)
        route = {"metadata": {"name": "assistant", "namespace": tenant}}
        targets = [{"service": name} for name in ("gone", "chat")]
        fleet.cluster.put(MODEL_ROUTES, route | {"spec": {"targets": targets}})
        _put_provider(fleet, tenant)
        meta = {"namespace": tenant, "creationTimestamp": "2026-11-20T11:59:00Z"}
        fleet.cluster.put(
            CLAIMS,
            {
                "metadata": {**meta, "name": "data"},
                "spec": {"accessModes": ["ReadWriteMany"]},
            },
        )
        spec = {
            "claimName": "data",
            "input": "in.jsonl",
            "output": "out.jsonl",
            "model": {"uri": SMALL},
        }
        for name in ("night", "orphan"):
            spec = {**spec, "output": f"{name}.jsonl"}
            fleet.cluster.put(BATCH_INFERENCES, {"metadata": {**meta, "name": name}, "spec": spec})


def _put_provider(fleet: Fleet, tenant: str, **fields: str) -> None:
    spec = a_provider_spec(tenants=[tenant], **fields)
    fleet.cluster.put(MODEL_PROVIDERS, {"metadata": {"name": tenant}, "spec": spec})


def _put_gated(fleet: Fleet, tenant: str, uri: str) -> None:
    rollout = {"strategy": "Gated", "gateRef": "answers"}
    placement = {"pools": [tenant]}
    model = {"uri": uri}
    fleet.serve("gated", tenant, model=model, rollout=rollout, placement=placement, replicas=1)


def _disturb(fleet: Fleet) -> None:
    """Change what everything depends on, so that nothing is taken from a cache."""
    fleet.waiting[Ref(GOOD, "chat")] = 100.0
    for tenant in (GOOD, HOSTILE):
        _put_provider(fleet, tenant, region="eu")
        # The files of a changed version are read first.
        _put_gated(fleet, tenant, "hf://nobody/own")
        night = fleet.cluster.objects[ObjectKey("batchinferences", tenant, "night")]
        attempt = {"finishedAt": "2026-01-01T12:00:00Z", **ATTEMPT}
        ended = {**night["metadata"], "name": "ended", "uid": f"uid-ended-{tenant}"}
        status = {"state": "completed", "attempt": attempt}
        body = {"metadata": ended, "spec": night["spec"], "status": status}
        fleet.cluster.put(BATCH_INFERENCES, body)
        fleet.cluster.discard(ObjectKey("inferenceservices", tenant, "gone"))
        fleet.cluster.discard(ObjectKey("batchinferences", tenant, "orphan"))
        leaving = {
            "name": "leaving",
            "namespace": tenant,
            "finalizers": ["example.org/keep"],
            "deletionTimestamp": "2026-11-20T12:00:00Z",
        }
        spec = {"model": {"uri": SMALL}}
        fleet.cluster.put(INFERENCE_SERVICES, {"metadata": leaving, "spec": spec})
        for key in sorted(fleet.cluster.objects):
            if key.plural == "deployments" and key.name.startswith("gone"):
                fleet.cluster.objects[key]["metadata"].pop("ownerReferences", None)
                fleet.cluster.touch(key)
        key = ObjectKey("nodes", "", f"{tenant}-0")
        fleet.cluster.objects[key]["status"]["allocatable"]["nvidia.com/mig-1g.10gb"] = "6"
        fleet.cluster.touch(key)


_ends: dict[Callable[[Fleet], None], Fleet] = {}


def _leave(_fleet: Fleet) -> None:
    """Change nothing."""


async def _settled_twins(act: Callable[[Fleet], None]) -> Twins:
    """Return a hostile fleet at rest, and the end of the peaceful one, on which `act` acted.

    That end is the same for every step that raises in the hostile one, and is played once.
    """
    twins = Twins(_build)
    await _cycles(twins.hostile, 8)
    if act not in _ends:
        await _cycles(twins.peaceful, 8)
        act(twins.peaceful)
        await _cycles(twins.peaceful, 6)
        _ends[act] = twins.peaceful
    twins.peaceful = _ends[act]
    return twins


async def _cycles(fleet: Fleet, count: int) -> None:
    for _ in range(count):
        await fleet.cycle()


@pytest.mark.parametrize(
    "step", [*STEPS, route_status, *WRITE_STEPS], ids=lambda step: step.function.__name__.strip("_")
)
async def test_a_tenant_for_whom_a_step_raises_changes_nothing_for_others(
    step: Step[..., Any] | WriteStep[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = await _settled_twins(_disturb)
    stub = _Raising(step.function)
    monkeypatch.setattr(step, "function", stub)
    replicas = twins.hostile.replicas_of(HOSTILE) - 1  # of `gone`
    failures = []
    _disturb(twins.hostile)
    stub.active = True
    for _ in range(6):
        try:
            await twins.hostile.cycle()
        except Exception as error:  # noqa: BLE001 - none may leave a cycle
            failures.append(error)
    assert failures == []
    assert stub.raised
    twins.assert_equal(HOSTILE, f"{HOSTILE}-0", "tessera-system/tessera-spend")
    assert twins.hostile.replicas_of(HOSTILE) >= replicas


@pytest.mark.parametrize(
    "method",
    [
        *("services._order", "services._begin", "services._report"),
        *("services._apply_children", "batches.apply"),
    ],
)
async def test_a_tenant_whose_work_cannot_be_queued_or_run_changes_nothing_for_others(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = await _settled_twins(_disturb)
    part, _, name = method.partition(".")
    applier = getattr(twins.hostile.applier, part)
    stub = _Raising(getattr(applier, name))
    monkeypatch.setattr(applier, name, stub)
    _disturb(twins.hostile)
    twins.hostile.raises_defects = False
    stub.active = True
    await _cycles(twins.hostile, 6)
    assert stub.raised
    assert twins.hostile.defects
    twins.assert_equal(HOSTILE, f"{HOSTILE}-0", "tessera-system/tessera-spend")
    if name in {"_order", "_begin", "_apply_children"}:
        chat = twins.hostile.body(ObjectKey("inferenceservices", HOSTILE, "chat"))
        reasons = {condition["reason"] for condition in chat["status"]["conditions"]}
        assert "ApplyFailed" in reasons


async def test_a_node_whose_layout_cannot_be_written_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    twins = Twins(_build)
    cluster = twins.hostile.cluster
    patch_node = cluster.patch_node

    async def patch(node: str, labels: Any, taints: Any) -> Any:
        if node == f"{HOSTILE}-0":
            raise OverflowError("cannot convert float infinity to integer")
        return await patch_node(node, labels, taints)

    monkeypatch.setattr(cluster, "patch_node", patch)
    await twins.run(cycles=12)
    labels = [
        fleet.cluster.objects[ObjectKey("nodes", "", f"{GOOD}-0")]["metadata"]["labels"]
        for fleet in twins.both
    ]
    assert labels[0] == labels[1]
    assert "nvidia.com/mig.config" in labels[0]


GPU = {"index": 0, "uuid": "GPU-0", "product": A100, "mode": "Enabled"}
LAYOUT = {"gpus": [GPU]}


@pytest.mark.parametrize(
    ("labels", "status"),
    [
        ({}, {"gpus": [{**GPU, "slices": [{"profile": "1g.10gb", "start": 0, "pods": ["x"]}]}]}),
        ({}, {"gpus": "many"}),
        ({"nvidia.com/gpu.count": "1000000"}, {}),
        ({"nvidia.com/gpu.count": "9" * 5000}, {}),
        ({"nvidia.com/gfd.timestamp": "9" * 20}, LAYOUT),
        ({"nvidia.com/gpu.product": "x" * 5000}, LAYOUT),
    ],
    ids=["pod without slash", "no gpus", "million", "digits", "timestamp", "product"],
)
async def test_what_one_node_says_changes_nothing_for_others(labels: Any, status: Any) -> None:
    twins = await _settled_twins(_leave)
    fleet = twins.hostile
    key = ObjectKey("nodes", "", f"{HOSTILE}-0")
    fleet.cluster.objects[key]["metadata"]["labels"].update(labels)
    fleet.cluster.touch(key)
    meta = {"name": f"{HOSTILE}-0"}
    fleet.cluster.put(NODE_LAYOUTS, {"metadata": meta, "spec": {}, "status": status})
    async with asyncio.timeout(120):
        await _cycles(fleet, 6)
    twins.assert_equal(HOSTILE, f"{HOSTILE}-0", "tessera-system/tessera-spend")
