"""The Events that a change of a status makes."""

from typing import Any, Literal

import pytest
from hypothesis import given, settings

from tessera.api import batch_reasons, budget_reasons, pool_reasons, reasons
from tessera.api.accelerator_pool import AcceleratorPoolStatus
from tessera.api.batch_inference import AttemptStatus, BatchInferenceStatus, ProgressStatus
from tessera.api.batch_reasons import BatchAccepted, BatchComplete, BatchRunning
from tessera.api.budget_reasons import WithinBudget
from tessera.api.meta import Condition
from tessera.api.mig import MigStatus, Unit
from tessera.api.model_provider import ModelProviderStatus
from tessera.api.model_route import ModelRouteStatus
from tessera.api.pool_reasons import Discovered, LayoutReady
from tessera.api.reasons import (
    Accepted,
    EventReason,
    PlacementReason,
    Progressing,
    ScalingReason,
    SLOMet,
    StatusReason,
    UpdateAvailable,
)
from tessera.api.route_reasons import RouteAccepted
from tessera.api.service_status import InferenceServiceStatus, ReplacementStatus, ScalingStatus
from tessera.api.tenant_budget import TenantBudgetStatus
from tessera.api.variant_status import VariantStatus
from tessera.domain.reporting.event_note import EventNote
from tessera.domain.status.budget import budget_status
from tessera.domain.status.events import event_notes
from tessera.domain.status.pool import pool_status
from tessera.domain.status.service import service_status
from tests.builders import NOW, a_budget, a_pool, a_snapshot, plan_of
from tests.domain.random_fleets import nodes, services
from tests.properties import examples


def a_condition(
    condition_type: str, reason: StatusReason, message: str = "2 of 3", generation: int = 1
) -> Condition:
    known: Literal["True", "False"] = "True" if reason.is_true else "False"
    return Condition(
        type=condition_type,
        status=known if reason.is_known else "Unknown",
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=NOW,
    )


def some_conditions(**reasons_by_type: StatusReason) -> tuple[Condition, ...]:
    return tuple(a_condition(kind, reason) for kind, reason in reasons_by_type.items())


def a_variant(name: str) -> VariantStatus:
    return VariantStatus(
        name=name, pool="a100", product="A100", gpus=1, precision="checkpoint",
        max_model_len=1, max_num_seqs=1, max_num_batched_tokens=1, kv_cache_tokens=1,
        tokens_per_second=1, source="Roofline",
    )  # fmt: skip


def a_status(
    replicas: int = 1,
    scaling: ScalingReason = ScalingReason.STEADY,
    variant: str = "a100-1g",
    message: str = "42 waiting",
    **conditions: StatusReason,
) -> InferenceServiceStatus:
    return InferenceServiceStatus(
        conditions=some_conditions(
            **{
                "Accepted": Accepted.VALID,
                "Placed": PlacementReason.PLACED,
                "Progressing": Progressing.ROLLOUT_COMPLETE,
                "UpdateAvailable": UpdateAvailable.UP_TO_DATE,
                **conditions,
            }
        ),
        variant=a_variant(variant),
        scaling=ScalingStatus(desired_replicas=replicas, reason=scaling, message=message),
    )


def a_pool_status(reason: LayoutReady, *units: Unit) -> AcceleratorPoolStatus:
    return AcceleratorPoolStatus(
        conditions=some_conditions(Discovered=Discovered.DEVICES_FOUND, LayoutReady=reason),
        mig=MigStatus(units=units),
    )


def a_unit(*gpus: int) -> Unit:
    return Unit(node="a100-0", gpus=gpus, phase="Draining", since=NOW, message="1 replica drains")


def a_batch_status(
    attempt: int = 1,
    running: BatchRunning = BatchRunning.ON_SPOT,
    state: Literal["in_progress", "completed", "failed"] = "in_progress",
    complete: BatchComplete = BatchComplete.IN_PROGRESS,
    done: int = 3,
    **fields: Any,
) -> BatchInferenceStatus:
    return BatchInferenceStatus(
        conditions=some_conditions(
            Accepted=BatchAccepted.VALID, Running=running, Complete=complete
        ),
        state=state,
        reason=complete,
        message="10 of 10 rows answered",
        attempt=AttemptStatus(
            number=attempt, tier="Spot", pool="a100", variant="a100-1g", job="j", started_at=NOW,
            **fields,
        ),
        progress=ProgressStatus(rows=10, completed=done, at=NOW),
    )  # fmt: skip


def notes(old: object, new: object) -> list[EventNote]:
    return list(event_notes(old, new))


def reasons_of(old: object, new: object) -> list[str]:
    return [note.reason for note in notes(old, new)]


def test_a_service_that_is_placed_at_once_has_no_event_beside_its_first_status() -> None:
    assert notes(InferenceServiceStatus(), a_status(Progressing=Progressing.STARTING)) == []


def test_a_service_that_is_placed_later_says_where() -> None:
    waiting = a_status(Placed=PlacementReason.NO_POOL)
    (note,) = notes(waiting, a_status(Progressing=Progressing.STARTING))
    assert note == EventNote(action="Placed", reason="Placed", message="placed on a100-1g: 2 of 3")


def test_a_service_that_moves_says_from_where_to_where() -> None:
    (note,) = notes(a_status(variant="a100-1g"), a_status(variant="h100-1gpu"))
    assert (note.reason, note.message) == ("Placed", "moved from a100-1g to h100-1gpu: 2 of 3")


def test_another_number_of_replicas_says_from_to_and_why() -> None:
    (note,) = notes(a_status(1), a_status(3, ScalingReason.QUEUE_ABOVE_TARGET))
    assert note == EventNote(
        action="Scaled",
        reason="QueueAboveTarget",
        message="scaled from 1 to 3 replicas: 42 waiting",
    )


def test_the_first_number_of_replicas_comes_with_the_placement() -> None:
    waiting = a_status(
        0, ScalingReason.NOT_PLACED, Placed=PlacementReason.NO_POOL,
        Progressing=Progressing.NOT_PLACED,
    )  # fmt: skip
    assert reasons_of(waiting, a_status(2)) == ["Placed"]
    limited = a_status(1, ScalingReason.BUDGET_EXHAUSTED)
    assert reasons_of(waiting, limited) == ["Placed", "BudgetExhausted"]


def test_a_number_that_the_budget_holds_is_a_warning() -> None:
    (limited,) = notes(a_status(2), a_status(2, ScalingReason.BUDGET_EXHAUSTED))
    (partly,) = notes(a_status(1), a_status(2, ScalingReason.BUDGET_EXHAUSTED))
    assert (limited.reason, limited.message) == (
        "BudgetExhausted",
        "held at 2 replicas: 42 waiting",
    )
    assert partly.message == "scaled from 1 to 2 replicas: 42 waiting"
    assert limited.is_warning
    assert partly.is_warning


def test_a_refused_spec_is_told_again_only_for_another_spec() -> None:
    refused = a_status(Accepted=Accepted.INVALID_FLAG)
    edited = refused.model_copy(
        update={"conditions": (a_condition("Accepted", Accepted.INVALID_FLAG, "x", 2),)}
    )
    other_text = refused.model_copy(
        update={"conditions": (a_condition("Accepted", Accepted.INVALID_FLAG, "x", 1),)}
    )
    (note,) = notes(a_status(), refused)
    assert (note.reason, note.is_warning) == ("InvalidFlag", True)
    assert reasons_of(refused, edited) == ["InvalidFlag"]
    assert reasons_of(refused, other_text) == []
    assert reasons_of(refused, a_status()) == ["Valid"]


def test_what_only_follows_from_another_condition_has_no_event() -> None:
    refused = a_status(
        Accepted=Accepted.UNKNOWN_MODEL,
        Placed=PlacementReason.NOT_ACCEPTED,
        Progressing=Progressing.NOT_PLACED,
        UpdateAvailable=UpdateAvailable.NOT_PLACED,
    )
    assert reasons_of(InferenceServiceStatus(), refused) == ["UnknownModel"]
    assert reasons_of(refused, a_status(Progressing=Progressing.STARTING)) == ["Valid", "Placed"]


def test_a_service_without_hardware_says_what_is_missing() -> None:
    no_room = a_status(Placed=PlacementReason.UNSCHEDULABLE)
    assert reasons_of(a_status(), no_room) == ["Unschedulable"]
    (note,) = notes(no_room, a_status())
    assert (note.reason, note.message) == ("Placed", "scheduled on a100-1g: 2 of 3")
    pending = notes(a_status(), a_status(Placed=PlacementReason.LAYOUT_PENDING))
    assert [(note.reason, note.is_warning) for note in pending] == [("LayoutPending", False)]


def test_a_missed_objective_is_a_warning_and_a_met_one_a_note() -> None:
    missed, wide = a_status(SLOMet=SLOMet.MISSED), a_status(SLOMet=SLOMet.BUCKET_TOO_WIDE)
    (note,) = notes(a_status(SLOMet=SLOMet.NO_TRAFFIC), missed)
    assert (note.action, note.reason, note.is_warning) == ("SLOMet", "Missed", True)
    assert reasons_of(missed, a_status(SLOMet=SLOMet.MET)) == ["Met"]
    assert reasons_of(a_status(SLOMet=SLOMet.MET), wide) == []


def test_drained_replicas_have_an_event_when_they_stop() -> None:
    draining = a_status(2, Progressing=Progressing.DRAINING)
    stopped = a_status(2, Progressing=Progressing.STARTING)
    needed_again = a_status(3, Progressing=Progressing.STARTING)
    assert reasons_of(a_status(2), draining) == []
    assert reasons_of(draining, stopped) == [EventReason.DRAINED]
    assert EventReason.DRAINED not in reasons_of(draining, needed_again)
    failed = a_status(2, Progressing=Progressing.APPLY_FAILED)
    assert reasons_of(draining, failed) == ["ApplyFailed"]


def test_a_replaced_replica_is_named_once() -> None:
    replacement = ReplacementStatus(at=NOW, pod="chat-0", uid="1", message="8 in flight, 0 steps")
    replaced = a_status(Progressing=Progressing.ENGINE_STALLED).model_copy(
        update={"replacement": replacement}
    )
    (note,) = notes(a_status(), replaced)
    assert (note.action, note.reason, note.is_warning) == ("Replaced", "EngineStalled", True)
    assert note.message == "Pod/chat-0 is replaced: 8 in flight, 0 steps"
    assert reasons_of(a_status(), a_status(Progressing=Progressing.ENGINE_STALLED)) == [
        "EngineStalled"
    ]


def test_a_rollout_has_two_ends() -> None:
    rolling = a_status(Progressing=Progressing.ROLLING_OUT)
    assert reasons_of(a_status(), rolling) == ["RollingOut"]
    assert reasons_of(rolling, a_status()) == ["RolloutComplete"]
    assert reasons_of(a_status(Progressing=Progressing.STARTING), a_status()) == []


def test_an_engine_that_cannot_start_is_a_warning() -> None:
    (note,) = notes(a_status(), a_status(Progressing=Progressing.IMAGE_PULL_FAILED))
    assert (note.reason, note.is_warning) == ("ImagePullFailed", True)


def test_an_update_is_available() -> None:
    newer = a_status(UpdateAvailable=UpdateAvailable.NEW_TEMPLATE_AVAILABLE)
    assert reasons_of(a_status(), newer) == ["NewTemplateAvailable"]
    assert reasons_of(newer, a_status()) == []


def test_a_repartition_begins_is_blocked_and_done() -> None:
    planned = a_pool_status(LayoutReady.AS_PLANNED)
    begun = a_pool_status(LayoutReady.REPARTITIONING, a_unit(0, 1))
    extended = a_pool_status(LayoutReady.REPARTITIONING, a_unit(0, 1, 2))
    blocked = a_pool_status(LayoutReady.DISRUPTION_BUDGET, a_unit(0, 1))
    (note,) = notes(planned, begun)
    assert (note.reason, note.is_warning) == ("Repartitioning", False)
    assert note.message == ("Node/a100-0: repartition of 2 GPUs (0, 1) begins: 1 replica drains")
    assert [note.message[:39] for note in notes(begun, extended)] == [
        "Node/a100-0: repartition of 1 GPU (2) b"
    ]
    assert [(note.reason, note.is_warning) for note in notes(begun, blocked)] == [
        ("DisruptionBudget", True)
    ]
    assert reasons_of(blocked, begun) == []
    assert reasons_of(begun, planned) == ["AsPlanned"]
    assert reasons_of(a_pool_status(LayoutReady.PLANNING), planned) == []


def test_a_budget_is_held_and_within_its_limits_again() -> None:
    within = TenantBudgetStatus(conditions=some_conditions(WithinBudget=WithinBudget.WITHIN_LIMITS))
    limited = TenantBudgetStatus(
        conditions=some_conditions(WithinBudget=WithinBudget.BUDGET_EXHAUSTED)
    )
    assert [(note.reason, note.is_warning) for note in notes(within, limited)] == [
        ("BudgetExhausted", True)
    ]
    assert reasons_of(limited, within) == ["WithinLimits"]
    assert reasons_of(TenantBudgetStatus(), within) == []


@pytest.mark.parametrize("status", [ModelRouteStatus, ModelProviderStatus])
def test_a_route_or_provider_that_is_not_accepted_says_so_once_and_when_it_is_again(
    status: type[ModelRouteStatus | ModelProviderStatus],
) -> None:
    valid, invalid = (
        status(conditions=some_conditions(Accepted=reason))
        for reason in (RouteAccepted.VALID, RouteAccepted.TARGET_NOT_FOUND)
    )
    assert reasons_of(status(), valid) == reasons_of(invalid, invalid) == []
    (note,) = notes(valid, invalid)
    assert (note.reason, note.is_warning) == ("TargetNotFound", True)
    assert reasons_of(invalid, valid) == ["Valid"]


def test_an_attempt_begins_and_is_interrupted() -> None:
    validated = a_batch_status().model_copy(update={"attempt": None})
    (begun,) = notes(validated, a_batch_status(1, BatchRunning.STARTING))
    assert begun.message == "attempt 1 starts on a100-1g of AcceleratorPool/a100 (Spot)"
    ended = a_batch_status(1, finished_at=NOW, termination_message="node a100-0 is gone")
    (note,) = notes(a_batch_status(1), ended)
    assert (note.reason, note.is_warning) == (EventReason.ATTEMPT_INTERRUPTED, True)
    assert note.message == "attempt 1 ended with 3 of 10 rows done: node a100-0 is gone"
    at_once = a_batch_status(2, BatchRunning.STARTING, previous_outcome="node a100-0 is gone")
    assert reasons_of(ended, at_once) == [EventReason.ATTEMPT_STARTED]
    assert [note.message for note in notes(a_batch_status(1), at_once)] == [
        "attempt 1 ended with 3 of 10 rows done: node a100-0 is gone",
        "attempt 2 starts on a100-1g of AcceleratorPool/a100 (Spot)",
    ]


def test_an_attempt_that_did_all_rows_was_not_interrupted() -> None:
    publishing = a_batch_status(2, done=10)
    ended = a_batch_status(1, done=10, finished_at=NOW)
    assert reasons_of(a_batch_status(1, done=9), ended) == []
    publisher = publishing.attempt
    assert publisher is not None
    publishing = publishing.model_copy(
        update={"attempt": publisher.model_copy(update={"variant": ""})}
    )
    (note,) = notes(ended, publishing)
    assert note.message == "attempt 2 starts without a GPU, to publish the results"


@pytest.mark.parametrize(
    ("state", "reason", "is_warning"),
    [
        ("completed", BatchComplete.COMPLETED, False),
        ("failed", BatchComplete.DEADLINE_EXCEEDED, True),
    ],
)
def test_a_batch_finishes_once(
    state: Literal["completed", "failed"], reason: BatchComplete, is_warning: bool
) -> None:
    finished = a_batch_status(1, BatchRunning.FINISHED, state, reason, done=10, finished_at=NOW)
    (note,) = notes(a_batch_status(1), finished)
    assert (note.reason, note.message, note.is_warning) == (
        reason, "10 of 10 rows answered", is_warning,
    )  # fmt: skip
    assert notes(finished, finished.model_copy(update={"message": "other"})) == []


def test_a_batch_that_waits_for_money_says_so() -> None:
    limited = a_batch_status(1, BatchRunning.BUDGET_EXHAUSTED)
    waits = a_batch_status(1, BatchRunning.WAITING_FOR_SPOT)
    assert [(note.reason, note.is_warning) for note in notes(a_batch_status(1), limited)] == [
        ("BudgetExhausted", True)
    ]
    assert [(note.reason, note.is_warning) for note in notes(a_batch_status(1), waits)] == [
        ("WaitingForSpot", False)
    ]


CONDITIONS: dict[str, tuple[type[StatusReason], ...]] = {
    "Accepted": (Accepted, pool_reasons.PoolAccepted, budget_reasons.BudgetAccepted, BatchAccepted),
    "Placed": (PlacementReason,),
    "Progressing": (Progressing,),
    "UpdateAvailable": (UpdateAvailable,),
    "Discovered": (Discovered,),
    "LayoutReady": (LayoutReady,),
    "WithinBudget": (WithinBudget,),
    "Running": (BatchRunning,),
}
STATUSES = (
    InferenceServiceStatus, AcceleratorPoolStatus, TenantBudgetStatus, BatchInferenceStatus,
)  # fmt: skip


@pytest.mark.parametrize("status_type", STATUSES)
def test_no_reason_is_told_twice_in_a_row(status_type: type[Any]) -> None:
    """For each reason of each condition: equal statuses and other messages give no Event."""
    for condition_type, kinds in CONDITIONS.items():
        for reason in (reason for kind in kinds for reason in kind):
            before = status_type(conditions=(a_condition(condition_type, reason),))
            after = status_type(conditions=(a_condition(condition_type, reason, "another text"),))
            assert notes(before, before) == []
            assert notes(before, after) == [], reason


def test_every_reason_of_an_event_is_documented() -> None:
    words = {
        str(reason)
        for module in (reasons, pool_reasons, budget_reasons, batch_reasons)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, StatusReason)
        for reason in kind
    }
    for status_type in STATUSES:
        for condition_type, kinds in CONDITIONS.items():
            for reason in (reason for kind in kinds for reason in kind):
                status = status_type(conditions=(a_condition(condition_type, reason),))
                assert {note.reason for note in notes(status_type(), status)} <= words


@settings(max_examples=examples(50))
@given(services, nodes)
def test_a_fleet_has_events_once(random_services: list[Any], random_nodes: tuple[Any, ...]) -> None:
    snapshot = a_snapshot(
        *random_services, nodes=random_nodes, pools=(a_pool(),), budgets=(a_budget(),)
    )
    plan = plan_of(snapshot)
    written: list[tuple[Any, Any]] = [
        (service_plan.service.status, service_status(snapshot, service_plan, None, None))
        for service_plan in plan.service_plans.values()
    ]
    written += [(view.pool.status, pool_status(view, None, NOW)) for view in plan.pools]
    written += [(view.budget.status, budget_status(view, NOW)) for view in plan.budgets]
    # Its first status says where a service is placed; why it is not is an Event too.
    assert all(notes(old, new) for old, new in written if getattr(new, "variant", old) is None)
    assert [note for _, new in written for note in notes(new, new)] == []
