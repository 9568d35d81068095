"""Services that sleep while no request comes, and wake for the first one."""

from dataclasses import replace

from tessera.api.meta import format_duration
from tessera.api.reasons import ScalingReason
from tessera.api.text import counted
from tessera.domain.scaling.decisions import changed, current_replicas, desired_replicas, recent
from tessera.domain.scaling.state import (
    MAX_READING_GAP,
    Decided,
    RequestWatch,
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import ScaleTarget


def decide_idle(
    target: ScaleTarget, load: ServiceLoad, history: ScalingHistory
) -> tuple[ScaleDecision | None, ScalingHistory]:
    """Return the decision for a service that sleeps, or goes to sleep or wakes; else None."""
    if not target.spec.may_sleep:
        return None, replace(history, requests=None) if history.requests else history
    current = current_replicas(load, history)
    history = replace(history, requests=_watch_requests(load, history.requests))
    if current == 0 or _is_idle(target, load, history.requests):
        return _idle_decision(target, load, current, history), history
    return None, history


def _watch_requests(load: ServiceLoad, watch: RequestWatch | None) -> RequestWatch:
    """Return since when no request is seen; what is not known counts as one.

    `finished` rises with every request, also with one too short for a reading of its run.
    """
    if not load.serving and load.queued is not None:
        # Without a replica all requests are at the gateways.
        seen = load.queued + load.gateway_requests > 0
    elif load.waiting is None or load.running is None:
        return watch or RequestWatch(last_request=load.at, read_at=load.at, finished=None)
    else:
        seen = load.waiting + load.running + load.gateway_requests > 0
        seen = seen or _has_risen(load.finished, watch.finished if watch is not None else None)
    if watch is None or seen or load.at - watch.read_at >= MAX_READING_GAP:
        return RequestWatch(last_request=load.at, read_at=load.at, finished=load.finished)
    return replace(watch, read_at=load.at, finished=load.finished)


def _has_risen(finished: float | None, before: float | None) -> bool:
    """Return whether a request finished: of an extrapolated increase less than half is none."""
    return finished is None or before is None or finished > before + 0.5


def _is_idle(target: ScaleTarget, load: ServiceLoad, watch: RequestWatch | None) -> bool:
    idle = target.spec.idle
    return (
        idle is not None
        and watch is not None
        and watch.read_at == load.at
        and load.at - watch.last_request >= idle.after
    )


def _idle_decision(
    target: ScaleTarget, load: ServiceLoad, current: int, history: ScalingHistory
) -> ScaleDecision:
    """Remove all replicas of an idle service, or start the first one for requests that wait.

    Neither waits for a window: the time without requests is one itself, and requests that wait
    for a replica need it at once.
    """
    spec = target.spec
    if current == 0 and load.queued:
        needed = desired_replicas(load.queued, target.replica_requests)
        decided = Decided(
            min(needed, target.most, target.step),
            ScalingReason.SCALED_FROM_ZERO,
            f"{counted(load.queued, 'request')} waiting at the gateway, 0 replicas",
        )
    elif current == 0:
        # It is not known for how long, as after a refusal of the budget or of another leader.
        decided = Decided(
            0, ScalingReason.SCALED_TO_ZERO, "0 replicas, no request waiting at the gateway"
        )
    else:
        after = format_duration(spec.idle.after) if spec.idle is not None else ""
        decided = Decided(
            0, ScalingReason.SCALED_TO_ZERO, f"no request for {after} (spec.scaling.idle.after)"
        )
    decisions = history.decisions or (TimestampedReplicas(load.at, current),)
    bare = ScalingHistory(
        decisions=recent(decisions, load.at, spec.scale_up.period), change=history.change
    )
    decision = changed(decided, load.at, current, bare)
    is_asleep = current == decided.replicas == 0 and decisions[-1].at < load.at
    return replace(decision, until=load.until) if is_asleep else decision
