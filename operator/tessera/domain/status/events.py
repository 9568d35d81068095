"""The Events of an object: what changed between two of its statuses.

The first status is the one in the cluster and the second the one that replaces it, so a restarted
operator repeats nothing and a steady fleet has no Events.
"""

from collections.abc import Iterator

from tessera.api.accelerator_pool import AcceleratorPoolStatus
from tessera.api.batch_inference import TERMINAL_STATES, AttemptStatus, BatchInferenceStatus
from tessera.api.budget_reasons import LimitAction
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import (
    NAME_WARNINGS,
    EventReason,
    PlacementReason,
    Progressing,
    ScalingReason,
    UpdateAvailable,
)
from tessera.api.service_status import InferenceServiceStatus
from tessera.api.tenant_budget import LimitStatus, TenantBudgetStatus
from tessera.api.text import counted
from tessera.domain.aspects.aspects import aspect_events
from tessera.domain.budget.actions import consequences
from tessera.domain.reporting.event_note import EventNote
from tessera.domain.reporting.transitions import (
    before_and_after,
    begun,
    failure,
    note_of,
    transitions,
)

_HELD = frozenset(
    {
        ScalingReason.BUDGET_EXHAUSTED,
        ScalingReason.GPU_QUOTA_EXCEEDED,
        ScalingReason.FAIR_SHARE,
    }
)


def event_notes(old: object, new: object) -> Iterator[EventNote]:
    """Yield the Events of one change of a status, in the order in which they are decided."""
    match old, new:
        case InferenceServiceStatus(), InferenceServiceStatus():
            yield from _service_notes(old, new)
        case AcceleratorPoolStatus(), AcceleratorPoolStatus():
            yield from _pool_notes(old, new)
        case TenantBudgetStatus(), TenantBudgetStatus():
            yield from transitions(old.conditions, new.conditions, "Accepted", "WithinBudget")
            recorded = {limit.name: limit for limit in old.limits}
            for limit in new.limits:
                yield from _limit_notes(recorded.get(limit.name), limit)
        case BatchInferenceStatus(), BatchInferenceStatus():
            yield from _batch_notes(old, new)
        case _ if type(old) is type(new):
            before, after = (getattr(status, "conditions", ()) for status in (old, new))
            yield from transitions(before, after, "Accepted")


def _service_notes(old: InferenceServiceStatus, new: InferenceServiceStatus) -> Iterator[EventNote]:
    before, after = old.conditions, new.conditions
    yield from transitions(before, after, "Accepted")
    for reason in NAME_WARNINGS:
        yield from begun("Accepted", reason, before, after, is_warning=True)
    yield from failure("Placed", before, after)
    yield from _placed(old, new)
    yield from _scaled(old, new)
    yield from _variants(old, new)
    yield from _progress(old, new)
    yield from begun("Progressing", Progressing.GATE_RUNNING, before, after)
    yield from _rollouts(old, new)
    yield from begun("UpdateAvailable", UpdateAvailable.NEW_TEMPLATE_AVAILABLE, before, after)
    yield from aspect_events(old, new)


def _rollouts(old: InferenceServiceStatus, new: InferenceServiceStatus) -> Iterator[EventNote]:
    """Yield an Event for each change under a gate that ended, and for one that skipped it."""
    known = {(record.digest, record.reason, record.ended_at) for record in old.rollouts}
    for record in new.rollouts:
        if (record.digest, record.reason, record.ended_at) not in known:
            who = f" by {record.by}" if record.by else ""
            yield EventNote(
                action="Rollout",
                reason=record.reason,
                message=f"ControllerRevision/{record.revision}{who}: {record.message}",
                is_warning=record.is_refused or record.skipped,
            )


def _pool_notes(old: AcceleratorPoolStatus, new: AcceleratorPoolStatus) -> Iterator[EventNote]:
    yield from transitions(old.conditions, new.conditions, "Accepted", "Discovered")
    begun = {(unit.node, gpu) for unit in (old.mig.units if old.mig else ()) for gpu in unit.gpus}
    for unit in new.mig.units if new.mig else ():
        if gpus := [gpu for gpu in unit.gpus if (unit.node, gpu) not in begun]:
            yield EventNote(
                action="LayoutReady",
                reason=LayoutReady.REPARTITIONING,
                message=f"Node/{unit.node}: repartition of {counted(len(gpus), 'GPU')} "
                f"({', '.join(map(str, gpus))}) begins: {unit.message or unit.phase}",
            )
    yield from transitions(old.conditions, new.conditions, "LayoutReady", "NodesProvisioned")


def _limit_notes(old: LimitStatus | None, new: LimitStatus) -> Iterator[EventNote]:
    """Yield the Events of a limit of which more is spent, of what it does, and of its end."""
    is_same = old is not None and old.start == new.start
    before = old.actions if old is not None else ()
    member = f" of {new.nearest[0].member}" if new.nearest else ""
    text = (
        f"{new.name}{member}: {new.reached} % reached, {new.spent:f} of {new.limit:f} spent until "
        f"{new.end:%Y-%m-%dT%H:%MZ}"
    )
    if new.outside is not None:
        text += f", {new.outside:f} of it at outside providers"
    begun = [action for action in new.actions if action not in before]
    if begun:
        what = ", ".join(consequences(begun))
        yield EventNote(action="Limit", reason=begun[0], message=f"{text}: {what}", is_warning=True)
    elif new.reached > (old.reached if old is not None and is_same else 0):
        yield EventNote(action="Limit", reason=LimitAction.NOTIFY, message=text)
    if ended := [action for action in before if action not in new.actions]:
        message = f"{text}: {', '.join(ended)} ended"
        yield EventNote(action="Limit", reason=LimitAction.RESUME, message=message)


def _batch_notes(old: BatchInferenceStatus, new: BatchInferenceStatus) -> Iterator[EventNote]:
    yield from transitions(old.conditions, new.conditions, "Accepted")
    if new.state not in TERMINAL_STATES:
        yield from _attempts(old, new)
        yield from failure("Running", old.conditions, new.conditions)
    elif old.state not in TERMINAL_STATES:
        yield EventNote(
            action="Complete",
            reason=new.reason,
            message=new.message,
            is_warning=new.state != "completed",
        )


def _placed(old: InferenceServiceStatus, new: InferenceServiceStatus) -> Iterator[EventNote]:
    """Yield the Event of a service that moved, or is placed after it was not."""
    previous, current = before_and_after("Placed", old.conditions, new.conditions)
    # A new service that is placed at once would repeat the condition of its first status.
    if previous is None or current is None or current.status != "True" or new.variant is None:
        return
    name, previous_name = new.variant.name, old.variant.name if old.variant else ""
    if previous.status != "True":
        waited = previous.reason == PlacementReason.UNSCHEDULABLE
        message = f"{'scheduled' if waited and name == previous_name else 'placed'} on {name}"
    elif previous_name not in ("", name):
        message = f"moved from {previous_name} to {name}"
    else:
        return
    yield EventNote(action="Placed", reason=current.reason, message=f"{message}: {current.message}")


def _scaled(old: InferenceServiceStatus, new: InferenceServiceStatus) -> Iterator[EventNote]:
    """Yield the Event of another number of replicas, or of one that is held by new limits."""
    previous, current = old.scaling, new.scaling
    if current is None or current.reason == ScalingReason.NOT_PLACED:
        return
    if previous is not None and previous.reason == ScalingReason.NOT_PLACED:
        previous = None  # the first number comes with the placement
    replicas, limited = counted(current.desired_replicas, "replica"), current.reason in _HELD
    if previous is not None and previous.desired_replicas != current.desired_replicas:
        message = f"scaled from {previous.desired_replicas} to {replicas}"
    elif limited and (previous is None or previous.reason != current.reason):
        message = f"held at {replicas}"
    else:
        return
    yield EventNote(
        action="Scaled",
        reason=current.reason,
        message=f"{message}: {current.message}",
        is_warning=limited,
    )


def _variants(old: InferenceServiceStatus, new: InferenceServiceStatus) -> Iterator[EventNote]:
    """Yield an Event for each of several variants that gets another number of replicas."""
    desired = {variant.name: variant.desired_replicas for variant in old.variants or ()}
    if old.variants is None and old.variant is not None:
        desired[old.variant.name] = _desired(old)
    for variant in new.variants or ():
        previous = desired.get(variant.name, 0)
        if variant.desired_replicas != previous and variant.reason is not None:
            yield EventNote(
                action="Variant",
                reason=variant.reason,
                message=f"{variant.name} from {previous} to "
                f"{counted(variant.desired_replicas, 'replica')}: {variant.message}",
            )


def _progress(old: InferenceServiceStatus, new: InferenceServiceStatus) -> Iterator[EventNote]:
    """Yield the Events of drained, replaced and rolled replicas, and of failures to start."""
    previous, current = before_and_after("Progressing", old.conditions, new.conditions)
    before, after = previous.reason if previous else "", current.reason if current else ""
    was_draining = before == Progressing.DRAINING != after and _desired(new) <= _desired(old)
    if was_draining and current is not None and current.status == "True":
        yield EventNote(
            action="Progressing",
            reason=EventReason.DRAINED,
            message=f"drained replicas stop, {counted(_desired(new), 'replica')} desired",
        )
    if new.replacement is not None and new.replacement != old.replacement:
        yield EventNote(
            action="Replaced",
            reason=Progressing.ENGINE_STALLED,
            message=f"Pod/{new.replacement.pod} is replaced: {new.replacement.message}",
            is_warning=True,
        )
    elif current is not None and _is_rollout_step(before, after):
        yield note_of(current)
    else:
        yield from failure("Progressing", old.conditions, new.conditions)


def _is_rollout_step(before: str, after: str) -> bool:
    """Return whether a rollout began or is complete."""
    begins = before != Progressing.ROLLING_OUT == after
    return begins or (before == Progressing.ROLLING_OUT and after == Progressing.ROLLOUT_COMPLETE)


def _desired(status: InferenceServiceStatus) -> int:
    return status.scaling.desired_replicas if status.scaling else 0


def _attempts(old: BatchInferenceStatus, new: BatchInferenceStatus) -> Iterator[EventNote]:
    """Yield the Events of an attempt that ended before its rows, and of one that begins."""
    previous, current, progress = old.attempt, new.attempt, new.progress
    if current is None:
        return
    is_new = previous is None or previous.number != current.number
    ended = previous is not None and previous.finished_at is None
    ended = ended and (is_new or current.finished_at is not None)
    if previous is not None and ended and (progress is None or progress.done < progress.rows):
        done = f"{progress.done} of {counted(progress.rows, 'row')}" if progress else "0 rows"
        outcome = current.previous_outcome if is_new else current.termination_message
        yield EventNote(
            action="Attempt",
            reason=EventReason.ATTEMPT_INTERRUPTED,
            message=f"attempt {previous.number} ended with {done} done: {outcome}",
            is_warning=True,
        )
    if is_new and current.finished_at is None:
        yield EventNote(
            action="Attempt",
            reason=EventReason.ATTEMPT_STARTED,
            message=f"attempt {current.number} starts {_attempt_hardware(current)}",
        )


def _attempt_hardware(attempt: AttemptStatus) -> str:
    if not attempt.has_engine:
        return "without a GPU, to publish the results"
    return f"on {attempt.variant} of AcceleratorPool/{attempt.pool} ({attempt.tier})"
