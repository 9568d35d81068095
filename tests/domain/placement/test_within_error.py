"""What runs stays where a choice turns within the error of the predicted speeds."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from tessera.api.ref import Ref
from tessera.domain.explain.explain import explain
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.placement.candidates import hardware_candidates
from tessera.domain.placement.checks import shape_of
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import attainable_objectives
from tests.builders import (
    H100,
    MEDIUM,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    plan_of,
)

CHAT = Ref("team-a", "chat")
HERE = "h100-3g-40gb"
INT4 = "hf://RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16"
FLEET = {
    "pools": (a_pool("h100", "2.50"), a_pool("large", "6.00")),
    "nodes": (
        a_node("h100", {"3g.40gb": 2}, product=H100),
        a_node("large", whole=2, product=H100),
    ),
}


def running(itl: str, model: str = MEDIUM, variant: str = HERE, **fleet: Any) -> Snapshot:
    """A fleet whose service runs on slices, with another objective or other predictions since."""
    spec = a_spec(
        model,
        slo={"itlP95": itl, "ttftP95": "30s"},
        scaling={"minReplicas": 1, "maxReplicas": 4},
    )
    pods = (a_pod("chat-0", variant=variant, node="h100-0"),)
    workloads = (a_workload(1, variant=variant),)
    return a_snapshot(a_service(spec=spec), **{**FLEET, **fleet}, pods=pods, workloads=workloads)


def planned(snapshot: Snapshot) -> ServicePlan:
    return plan_of(snapshot).service_plans[CHAT]


def least_itl(snapshot: Snapshot) -> timedelta:
    """Return the tightest ITL that the slices keep by the prediction."""
    spec = snapshot.services[0].spec
    assert spec is not None
    shape = shape_of(spec)
    assert shape is not None
    view = plan_of(snapshot).pools[0]
    (candidate,) = hardware_candidates(spec, shape, view.offers)
    demand: Demand = replace(candidate.demand, inter_token=timedelta(milliseconds=1))
    return attainable_objectives(demand, candidate.offer.hardware)[0].inter_token


def milliseconds(span: timedelta, share: float) -> str:
    return f"{span / timedelta(milliseconds=1) * share:.0f}ms"


def test_a_running_service_that_is_too_slow_within_the_error_stays_and_says_so() -> None:
    least = least_itl(running("50ms"))
    within, beyond = (milliseconds(least, share) for share in (0.96, 0.6))
    assert planned(running(milliseconds(least, 1.0))).choice is not None
    service_plan = planned(running(within))
    assert service_plan.choice is not None
    assert service_plan.choice.variant == HERE
    message = service_plan.placement.verdict.message
    assert "it keeps spec.slo only at the fast end of its prediction (up to " in message
    assert "more tokens, Table), and stays since it runs" in message
    assert service_plan.previous_deployments == {}
    (variant,) = service_plan.variants
    assert variant.template.workload is not None
    assert variant.older == ()
    moved = planned(running(beyond))
    assert moved.choice is not None
    assert moved.choice.variant == "large-1gpu"


def test_what_runs_in_4_bits_stays_where_the_speed_of_16_bit_kernels_keeps_the_slo() -> None:
    """That was the prediction when it was placed; the measured kernel reads at 0.49 of the peak."""
    least = least_itl(running("50ms", INT4))
    for share, variant in ((0.8, HERE), (0.5, "large-2gpu")):
        service_plan = planned(running(milliseconds(least, share), INT4))
        assert service_plan.choice is not None
        assert service_plan.choice.variant == variant, share
    new = planned(replace(running(milliseconds(least, 0.8), INT4), pods=(), workloads=()))
    assert new.choice is not None
    assert new.choice.variant == "large-1gpu"


def test_a_running_service_that_nothing_else_fits_is_not_declared_unplaced() -> None:
    within = milliseconds(least_itl(running("50ms")), 0.96)
    alone: dict[str, Any] = {"pools": FLEET["pools"][:1], "nodes": FLEET["nodes"][:1]}
    choice = planned(running(within, **alone)).choice
    assert choice is not None
    assert choice.variant == HERE
    new = replace(running(within, **alone), pods=(), workloads=())
    assert planned(new).placement.verdict.reason == "TooSlow"


def test_what_runs_within_the_error_is_explained_as_chosen() -> None:
    snapshot = running(milliseconds(least_itl(running("50ms")), 0.96))
    decisions = {each.topic: each for each in explain(snapshot, plan_of(snapshot), CHAT)}
    rows = {each.name: each.message for each in decisions["placed"].alternatives}
    assert rows[HERE] == "chosen"
