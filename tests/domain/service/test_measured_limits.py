"""More requests at once where prefix caches leave time for them, when pods are replaced anyway."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.api.service_status import (
    InferenceServiceStatus,
    PreemptionStatus,
    RequestLengths,
    ScalingStatus,
)
from tessera.domain.explain.explain import explain
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import ObservedService, Pod, Ref, Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.scaling.policies.capacity.policy import CapacityAssessment
from tessera.domain.sizing.sizing import ReplicaFit
from tessera.domain.status.service import service_status
from tests.builders import SMALL, a_pod, a_service, a_snapshot, a_spec, a_workload, at, plan_of

CHAT = Ref("team-a", "chat")
PLANNED, RAISED = 28, 48
CONTEXT = {"typicalInputTokens": 800, "typicalOutputTokens": 100}


def a_status(cached: int | None, **fields: Any) -> InferenceServiceStatus:
    lengths = RequestLengths(input_tokens=1000, output_tokens=200, cached_input_tokens=cached)
    scaling = ScalingStatus(
        desired_replicas=2, reason="Steady", message="", request_lengths=lengths
    )
    return InferenceServiceStatus(scaling=scaling, **fields)


def a_cached_service(cached: int | None = 700, **spec: Any) -> ObservedService:
    """Build a service that has no replicas yet and whose prompts are cached to this part."""
    return replace(a_chat(**spec), status=a_status(cached))


def a_chat(**spec: Any) -> ObservedService:
    return a_service(spec=a_spec(context=CONTEXT, **spec))


def planned(service: ObservedService) -> ServicePlan:
    return plan_of(a_snapshot(service)).service_plans[CHAT]


def fit_of(service_plan: ServicePlan) -> ReplicaFit:
    assert service_plan.choice is not None
    return service_plan.choice.fit


def running_fleet(status: InferenceServiceStatus, pod_limit: int = PLANNED) -> Snapshot:
    """Build a fleet of two replicas that were made without any cached input."""
    service = a_chat()
    built = service_status(a_snapshot(service), planned(service), None, None)
    update = {"pod_template_version": built.pod_template_version, "variant": built.variant}
    service = replace(service, status=status.model_copy(update=update))
    pods = tuple(running_pod(f"chat-{number}", pod_limit) for number in range(2))
    demand = {CHAT: GatewayDemand(arrivals_per_second=1.0)}
    return a_snapshot(service, pods=pods, workloads=(a_workload(2),), demand=demand)


def running_pod(name: str, limit: int) -> Pod:
    return replace(a_pod(name), max_num_seqs=limit, max_num_batched_tokens=STEP_TOKENS)


STEP_TOKENS = fit_of(planned(a_chat())).limits.max_num_batched_tokens


def test_new_replicas_have_room_for_what_cached_prompts_leave_time_for() -> None:
    before, after = fit_of(planned(a_chat())), fit_of(planned(a_cached_service()))
    assert (before.limits.max_num_seqs, after.limits.max_num_seqs) == (PLANNED, RAISED)
    # Nothing else changes, neither the price of tokens nor the memory.
    limits = replace(after.limits, max_num_seqs=PLANNED)
    assert replace(after, limits=limits) == before


@pytest.mark.parametrize(
    "service",
    [
        a_cached_service(None),
        a_cached_service(240),
        a_cached_service(engine={"maxNumSeqs": 20}),
        a_cached_service(scaling={"policy": "QueueAndActivity"}),
    ],
)
def test_little_that_is_cached_changes_no_limit_and_a_limit_of_the_spec_stays(
    service: ObservedService,
) -> None:
    without = replace(service, status=InferenceServiceStatus())
    assert fit_of(planned(service)) == fit_of(planned(without))


def test_how_much_is_cached_changes_no_limit() -> None:
    first, *others = [fit_of(planned(a_cached_service(cached))) for cached in (250, 600, 1000)]
    assert others == [first, first]


def test_running_replicas_stay_until_they_are_replaced_anyway() -> None:
    fleet = running_fleet(a_status(700))
    service_plan = plan_of(fleet).service_plans[CHAT]
    assert fit_of(service_plan).limits.max_num_seqs == PLANNED
    conditions = service_status(fleet, service_plan, None, None).conditions
    [update] = [condition for condition in conditions if condition.type == "UpdateAvailable"]
    assert f"maxNumSeqs {RAISED} instead of {PLANNED}" in update.message

    (service,) = fleet.services
    asked = replace(fleet, services=(replace(service, update="now"),))
    updated = plan_of(asked).service_plans[CHAT]
    assert fit_of(updated).limits.max_num_seqs == RAISED


def test_a_replica_carries_what_its_own_limits_allow() -> None:
    def rate(*limits: int) -> float:
        fleet = running_fleet(a_status(700))
        pods = tuple(running_pod(f"chat-{number}", limit) for number, limit in enumerate(limits))
        scale = plan_of(replace(fleet, pods=pods)).service_plans[CHAT].scale
        assert isinstance(scale.assessment, CapacityAssessment)
        return scale.assessment.capacity.requests_per_second

    assert rate(PLANNED, PLANNED) == rate(RAISED, PLANNED) < rate(RAISED, RAISED)
    # An engine with less than a token for each request is none of ours.
    assert rate(STEP_TOKENS, RAISED) == rate(RAISED, RAISED)


def test_a_limit_that_preemptions_lowered_stays_lowered() -> None:
    status = a_status(
        700,
        preemption=PreemptionStatus(
            model=SMALL,
            variant="a100-1g-10gb",
            since=at(0),
            at=at(0),
            preemptions=60,
            requests=1200,
            max_num_seqs=20,
        ),
    )
    assert fit_of(planned(replace(a_chat(), status=status))).limits.max_num_seqs == 20


def test_explain_says_how_many_requests_the_plan_has_without_cached_input() -> None:
    def requests(service: ObservedService) -> str:
        fleet = a_snapshot(service)
        decisions = explain(fleet, plan_of(fleet), CHAT)
        return next(decision.message for decision in decisions if decision.topic == "sizing")

    raised = f"1 replica serves {RAISED} concurrent requests ({PLANNED} without cached input) at "
    assert requests(a_cached_service()).startswith(raised)
    assert requests(a_chat()).startswith(f"1 replica serves {PLANNED} concurrent requests at ")
