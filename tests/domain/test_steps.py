"""In each step of a plan one object raises; every other one is planned as without that."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.api.pool_reasons import LayoutReady, PoolAccepted
from tessera.api.reasons import Accepted
from tessera.domain.batch.batches import ProposedBatch
from tessera.domain.budget.budgets import BudgetView, MeteredTenant
from tessera.domain.budget.state import BudgetState
from tessera.domain.config import Config
from tessera.domain.cost.bill import Bill, accrue
from tessera.domain.hardware.pools import PoolView, pool_view
from tessera.domain.incremental import Incremental
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.batches import Batch, VolumeClaim
from tessera.domain.observed.gates import ObservedGate, ServiceRevision
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.routes import ObservedRoute
from tessera.domain.observed.snapshot import (
    Budget,
    Node,
    ObservedService,
    Pod,
    Pool,
    Ref,
    Snapshot,
    Workload,
)
from tessera.domain.planning.plan import STEPS, Plan, PlanMemory, plan_one_service
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.quality.split_service import SplitService
from tessera.domain.quality.trial import ChangeTrial
from tessera.domain.repartition.cycle import pool_actions, repartition
from tessera.domain.service.proposal import Proposal
from tessera.domain.steps import Step
from tests.batch_builders import a_batch
from tests.builders import (
    A100,
    NO_MEMORY,
    NOW,
    a_budget,
    a_node,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
)
from tests.domain.quality.gated_fleet import (
    GATE,
    a_first_revision,
    a_gate_spec,
    a_gated_spec,
)
from tests.layout_builders import a_planned_pool
from tests.properties import examples

EVIL, GOOD = "evil", "team-a"
CONFIG = Config(mig_backends=frozenset({"MigManager"}))


TEMPLATE = {"product": A100, "gpus": 1, "maxNodes": 1}


def _fleet() -> Snapshot:
    """Build two tenants with the same objects, each on a pool of its own."""
    services, pods, workloads = [], [], []
    for namespace in (EVIL, GOOD):
        for name, placement in (("auto", {"mig": "Auto"}), ("chat", {})):
            ref = Ref(namespace, name)
            spec = a_spec(placement={"pools": [namespace], **placement})
            services.append(a_service(ref=ref, uid=f"uid-{ref}", spec=spec))
            variant = f"{namespace}-1g-10gb"
            workload = a_workload(2, variant=variant)
            workloads.append(replace(workload, ref=ref, service=ref))
            for index in range(2):
                pod = a_pod(variant=variant, ref=Ref(namespace, f"{name}-{index}"))
                devices = {"nvidia.com/mig-1g.10gb": 1}
                on_node: dict[str, Any] = {"node": f"{namespace}-0", "bound": at(-120)}
                pods.append(
                    replace(pod, uid=f"uid-{pod.ref}", service=ref, devices=devices, **on_node)
                )
        removed = Ref(namespace, "removed")
        workloads.append(replace(a_workload(1, owner_uid=None), ref=removed, service=removed))
    # What it tries is the tenant's own, so the other one needs none to be compared.
    ref = Ref(EVIL, "tried")
    spec = a_gated_spec(placement={"pools": [EVIL]}, engine={"extraArgs": ["--seed=7"]})
    services.append(tried := a_service(ref=ref, uid=f"uid-{ref}", spec=spec))
    return a_snapshot(
        *services,
        pools=tuple(a_planned_pool(name, nodeTemplate=TEMPLATE) for name in (EVIL, GOOD)),
        nodes=tuple(a_node(name, {"1g.10gb": 7}) for name in (EVIL, GOOD)),
        budgets=tuple(a_budget(name) for name in (EVIL, GOOD)),
        pods=tuple(pods),
        workloads=tuple(workloads),
        batches=tuple(
            a_batch(ref=Ref(namespace, "night"), uid=f"uid-night-{namespace}")
            for namespace in (EVIL, GOOD)
        ),
        model_jobs=(
            ObservedModelJob(
                ref=Ref(EVIL, "read"), uid="uid-read", service=ref, task="shape", created=NOW
            ),
        ),
        revisions=(a_first_revision(tried),),
        gates=(ObservedGate(ref=Ref(EVIL, GATE.name), uid="", generation=1, spec=a_gate_spec()),),
        claims={
            Ref(namespace, "results"): VolumeClaim(
                access_modes=("ReadWriteMany",), storage_class="nfs"
            )
            for namespace in (EVIL, GOOD)
        },
    )


def _revised(fleet: Snapshot, revision: int) -> Snapshot:
    """Change each service, budget and node in what decides nothing, so that all are planned."""
    return replace(
        fleet,
        services=tuple(replace(service, generation=revision) for service in fleet.services),
        budgets=tuple(replace(budget, generation=revision) for budget in fleet.budgets),
        nodes=tuple(
            replace(node, labels={**node.labels, "revision": str(revision)}) for node in fleet.nodes
        ),
    )


_OWNERS: dict[type, Callable[[Any], str]] = {
    Batch: attrgetter("ref.namespace"),
    Budget: attrgetter("name"),
    BudgetState: attrgetter("name"),
    BudgetView: attrgetter("budget.name"),
    MeteredTenant: attrgetter("claim.budget.name"),
    MigNode: lambda node: str(node.name.removesuffix("-0")),
    Node: lambda node: str(node.name.removesuffix("-0")),
    ChangeTrial: attrgetter("service.namespace"),
    ObservedGate: attrgetter("ref.namespace"),
    ObservedProvider: attrgetter("name"),
    ObservedRoute: attrgetter("ref.namespace"),
    ObservedService: attrgetter("ref.namespace"),
    Pod: attrgetter("ref.namespace"),
    Pool: attrgetter("name"),
    PoolView: attrgetter("pool.name"),
    Proposal: attrgetter("service.ref.namespace"),
    ProposedBatch: attrgetter("situation.batch.ref.namespace"),
    Ref: attrgetter("namespace"),
    ServicePlan: attrgetter("service.ref.namespace"),
    ServiceRevision: attrgetter("service.namespace"),
    SplitService: attrgetter("service.ref.namespace"),
    Workload: attrgetter("service.namespace"),
}


def owner_of(value: object) -> str | None:
    """Return the tenant whose object an argument of a step is; None for other arguments."""
    if isinstance(value, tuple) and hasattr(value, "view"):
        return owner_of(value.view)
    getter = _OWNERS.get(type(value))
    return None if getter is None else getter(value)


class Raising:
    """Stands for a step, and raises for the objects of one tenant."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.raised = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        owners = {owner for owner in map(owner_of, arguments) if owner is not None}
        if owners == {GOOD}:
            return self._function(*arguments, **named)
        self.raised += 1
        raise OverflowError("cannot convert float infinity to integer")


def cycles(
    incremental: Incremental, memory: PlanMemory, count: int, revision: int = 1
) -> tuple[Plan, PlanMemory]:
    snapshot = _revised(_fleet(), revision)
    for index in range(count):
        decision = plan_of(
            replace(snapshot, at=NOW + timedelta(seconds=5 * index)),
            CONFIG,
            memory,
            incremental=incremental,
        )
        memory = memory.after(decision)
    return decision, memory


def good_part(decision: Plan) -> object:
    return (
        {ref: plan for ref, plan in decision.service_plans.items() if ref.namespace == GOOD},
        decision.batches[Ref(GOOD, "night")],
        [
            (view.budget.name, view.meter, view.accepted)
            for view in decision.budgets
            if view.budget.name == GOOD
        ],
        [view for view in decision.pools if view.pool.name == GOOD],
        {ref for ref in decision.services_to_probe if ref.namespace == GOOD},
    )


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.function.__name__)
def test_what_a_step_raises_for_one_object_changes_no_other(
    step: Step[..., Any], restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, memory = cycles(incremental := Incremental(), NO_MEMORY, 2)
    expected, _ = cycles(Incremental(), memory, 1, revision=2)
    stub = Raising(step.function)
    monkeypatch.setattr(step, "function", stub)
    try:
        decision: Plan | Exception = cycles(
            Incremental() if restarted else incremental, memory, 1, revision=2
        )[0]
    except OverflowError as error:
        decision = error
    assert isinstance(decision, Plan)
    assert stub.raised
    assert good_part(decision) == good_part(expected)
    for ref in (Ref(EVIL, "auto"), Ref(EVIL, "chat")):
        service_plan = decision.service_plans[ref]
        unchanged = (service_plan.drain.replicas, service_plan.removable_deployments)
        assert (unchanged, service_plan.drain.draining) == ((2, ()), ())


@pytest.mark.parametrize(
    ("step", "reason"),
    [(pool_actions, LayoutReady.PLANNER_ERROR), (repartition, LayoutReady.PLANNER_ERROR)],
    ids=["one pool", "all pools"],
)
def test_a_pool_whose_repartition_raises_keeps_its_taints_and_begins_nothing(
    step: Step[..., Any], reason: LayoutReady, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "function", Raising(step.function))
    decision, _ = cycles(Incremental(), NO_MEMORY, 1)
    actions = decision.repartitions.actions[EVIL]
    assert (actions.verdict.reason, actions.requests, actions.evictions) == (reason, {}, {})


def test_a_service_that_is_set_aside_says_what_was_raised_and_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_one_service, "function", Raising(plan_one_service.function))
    decision, _ = cycles(Incremental(), NO_MEMORY, 1)
    accepted = decision.service_plans[Ref(EVIL, "chat")].accepted
    assert accepted.reason is Accepted.PLANNER_ERROR
    assert accepted.message.startswith(
        "spec: planning raised OverflowError (cannot convert float infinity to integer) at "
        "test_steps.py:"
    )
    assert accepted.message.endswith("kubectl get tsvc chat -n evil -o yaml")


@pytest.mark.parametrize("restarted", [False, True])
def test_services_stay_on_a_pool_whose_discovery_raises(
    restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, memory = cycles(incremental := Incremental(), NO_MEMORY, 2)
    monkeypatch.setattr(pool_view, "function", Raising(pool_view.function))
    if restarted:
        incremental, memory = Incremental(), replace(memory, pools=())
    decision, _ = cycles(incremental, memory, 1, revision=2)
    (view,) = (view for view in decision.pools if view.pool.name == EVIL)
    assert view.accepted.reason is PoolAccepted.PLANNER_ERROR
    assert bool(view.offers) is not restarted


LABELS = ("gpu.count", "gpu.product", "gpu.memory", "gpu.replicas", "gfd.timestamp", "mig.config")
NUMBERS = st.one_of(
    st.integers(-1, 20).map(str),
    st.sampled_from(["1" * 5000, "1e308", "nan", "-0", "\u0661", "", "x", str(10**18)]),
)
RESOURCES = ("gpu", "mig-1g.10gb", "mig-7g.80gb", "mig-9g.1gb", "mig-")


@given(
    labels=st.dictionaries(st.sampled_from(LABELS), NUMBERS | st.just(A100), max_size=6),
    allocatable=st.dictionaries(
        st.sampled_from(RESOURCES), st.integers(0, 20) | st.just(10**18), max_size=4
    ),
)
@settings(max_examples=examples(60), deadline=timedelta(seconds=2))
def test_whatever_one_node_says_of_itself_changes_nothing_for_other_pools(
    labels: dict[str, str], allocatable: dict[str, int]
) -> None:
    fleet = _fleet()
    evil = replace(
        fleet.nodes[0],
        labels={"pool": EVIL, **{f"nvidia.com/{name}": text for name, text in labels.items()}},
        allocatable={f"nvidia.com/{name}": count for name, count in allocatable.items()},
    )
    visited = replace(fleet, nodes=(evil, *fleet.nodes[1:]))
    hostile = plan_of(visited, CONFIG)
    assert good_part(hostile) == good_part(plan_of(fleet, CONFIG))
    bills = [accrue(Bill(as_of=at(-15)), seen, hostile.pools) for seen in (visited, fleet)]
    shares = [
        {line: nanos for line, nanos in bill.lines.items() if line.pool == GOOD} for bill in bills
    ]
    assert shares[0] == shares[1]
