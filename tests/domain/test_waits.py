"""Every reason that says that something is held back has one kind of wait, with its exit."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest

from enum_texts import member_texts
from tessera.api.batch_reasons import BatchComplete, BatchRunning
from tessera.api.budget_reasons import LimitAction
from tessera.api.gate_reasons import GateOutcome
from tessera.api.meta import Condition
from tessera.api.pool_reasons import LayoutReady, NodesProvisioned
from tessera.api.provider_reasons import ProviderAccepted
from tessera.api.reasons import (
    EnergyKnown,
    EventReason,
    LoadBalanced,
    PrecisionReason,
    Progressing,
    Ready,
    RevisionReason,
    ScalingReason,
    SLOMet,
    Speculating,
    SpeedAsPredicted,
    StatusReason,
    StatusVerdict,
    UpdateAvailable,
    VariantReason,
)
from tessera.api.route_reasons import RouteAccepted, TargetState
from tessera.domain.status.conditions import conditions
from tessera.domain.waits import CONSEQUENCES, KINDS, Wait, WaitKind, kind_of
from tests.builders import NOW, a_service

# Sets of reasons that say what was measured, chosen or done; nothing is held back by them.
_REPORTS = {
    EnergyKnown, EventReason, GateOutcome, LimitAction, LoadBalanced, PrecisionReason,
    RevisionReason, SLOMet, Speculating, SpeedAsPredicted, TargetState, UpdateAvailable,
    VariantReason,
}  # fmt: skip
# Progress, stabilization and numbers as they are wanted.
_PROGRESS = {
    (type(reason), reason.value)
    for reason in (
        ScalingReason.STEADY,
        ScalingReason.LATE_PROMPTS,
        ScalingReason.QUEUE_ABOVE_TARGET,
        ScalingReason.ACTIVITY_ABOVE_TARGET_WITH_QUEUE,
        ScalingReason.LOAD_BELOW_TARGET,
        ScalingReason.SCALE_UP_STABILIZED,
        ScalingReason.SCALE_DOWN_STABILIZED,
        ScalingReason.SCALE_UP_LIMIT,
        ScalingReason.DEMAND_ABOVE_CAPACITY,
        ScalingReason.BACKLOG_ABOVE_TARGET,
        ScalingReason.REPLICAS_FULL,
        ScalingReason.CAPACITY_ABOVE_DEMAND,
        ScalingReason.STARTING_REPLICA_WITHDRAWN,
        ScalingReason.ESTIMATED_ARRIVALS,
        ScalingReason.SCALED_FROM_ZERO,
        ScalingReason.BOUNDS_CHANGED,
        ScalingReason.TOO_MANY_REPLICAS,
        ScalingReason.METRICS_PARTIAL,
        ScalingReason.INCONSISTENT_METRICS,
        ScalingReason.SET_BY_USER,
        ScalingReason.SCALED_EXTERNALLY,
        NodesProvisioned.NODES_AVAILABLE,
        BatchComplete.FINALIZING,
        BatchComplete.IN_PROGRESS,
        BatchComplete.VALIDATING,
        BatchRunning.FINISHED,
        BatchRunning.STARTING,
        BatchRunning.VALIDATION_JOB_RUNNING,
        LayoutReady.PLANNING,
        LayoutReady.REPARTITIONING,
        Ready.PROBE_PENDING,
        Ready.TERMINATING,
    )
}


def _sets_of_reasons() -> list[type[StatusReason]]:
    # The two sets that no import above brings are loaded with these.
    assert issubclass(ProviderAccepted, StatusReason)
    assert issubclass(RouteAccepted, StatusReason)
    return [each for each in StatusReason.__subclasses__() if each not in _REPORTS]


def test_every_reason_that_holds_something_back_has_a_kind_of_wait() -> None:
    known = _PROGRESS | {(type(reason), reason.value) for reason in CONSEQUENCES}
    without = [
        reason
        for reasons in _sets_of_reasons()
        for reason in reasons
        if not reason.is_true and kind_of(reason) is None and (reasons, reason.value) not in known
    ]
    assert without == []


def test_every_reason_whose_text_says_that_something_waits_has_a_kind_of_wait() -> None:
    known = _PROGRESS | {(type(reason), reason.value) for reason in CONSEQUENCES}
    without = [
        reason
        for reasons in _sets_of_reasons()
        for name, text in member_texts(reasons).items()
        for reason in (reasons[name],)
        if " wait" in text and kind_of(reason) is None and (reasons, reason.value) not in known
    ]
    assert without == []


def test_no_reason_has_two_kinds_of_wait_and_none_repeats_another_condition() -> None:
    counts = Counter((type(reason), reason.value) for kind in KINDS for reason in kind.reasons)
    assert [reason for reason, count in counts.items() if count > 1] == []
    assert [reason for reason in CONSEQUENCES if kind_of(reason) is not None] == []
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_of_wait_says_its_exit_in_one_sentence(kind: WaitKind) -> None:
    assert kind.exit.count(". ") == 0
    assert kind.exit.endswith(".")
    assert (kind.limit is None) == (kind.then == ""), "a limit says what follows, and only a limit"
    assert len(kind.exit) < 300


def _condition(reason: Progressing, last: Condition | None, minutes: int) -> Condition:
    service = a_service()
    if last is not None:
        status = service.status.model_copy(update={"conditions": (last,)})
        service = replace(service, status=status)
    verdict = StatusVerdict(reason, "replicas of older templates stay")
    at = NOW + timedelta(minutes=minutes)
    return conditions({"Progressing": verdict}, service, at)[0]


def test_a_condition_says_since_when_it_waits_and_what_ends_that() -> None:
    first = _condition(Progressing.WAITING_FOR_DEVICE, None, 0)
    assert first.waiting_since == NOW
    assert first.message.startswith("replicas of older templates stay. This ends when it gets a")
    assert _condition(Progressing.WAITING_FOR_DEVICE, first, 9) == first


def test_another_wait_begins_at_its_own_moment_and_progress_has_none() -> None:
    first = _condition(Progressing.WAITING_FOR_DEVICE, None, 0)
    other = _condition(Progressing.QUOTA_EXCEEDED, first, 9)
    assert other.waiting_since == NOW + timedelta(minutes=9)
    assert other.last_transition_time == NOW
    assert _condition(Progressing.ROLLING_OUT, other, 10).waiting_since is None


def test_a_wait_that_began_in_the_future_began_now() -> None:
    """A clock that stepped back makes no wait longer."""
    ahead = _condition(Progressing.WAITING_FOR_DEVICE, None, 60)
    assert _condition(Progressing.WAITING_FOR_DEVICE, ahead, 0).waiting_since == NOW


def test_a_wait_is_overdue_after_its_limit_alone() -> None:
    limited = next(kind for kind in KINDS if isinstance(kind.limit, timedelta))
    wait = Wait(kind=limited, subject="InferenceService/chat", since=NOW)
    assert wait.until is not None
    assert not wait.is_overdue(wait.until)
    assert wait.is_overdue(wait.until + timedelta(seconds=1))
    forever = next(kind for kind in KINDS if kind.limit is None)
    assert not replace(wait, kind=forever).is_overdue(NOW + timedelta(days=365))
