"""Replicas that would get nothing are not added: no node took the last one, or others are idle."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tessera.api.meta import format_duration
from tessera.api.reasons import ScalingReason
from tessera.api.text import counted
from tessera.domain.observed.snapshot import Pod, PodReading, Ref
from tessera.domain.rollout.balance import FULL_SHARE, IDLE_SHARE, balance_of
from tessera.domain.scaling.decisions import changed, current_replicas
from tessera.domain.scaling.load import MAX_READING_AGE
from tessera.domain.scaling.state import (
    Decided,
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import ScaleTarget

# After the scheduler found no node for a replica, none is added for so long. A pending replica
# stays while it is needed, so that an autoscaler of nodes sees it.
RETRY_INTERVAL = timedelta(minutes=5)


def with_refusal(history: ScalingHistory, pods: Sequence[Pod], at: datetime) -> ScalingHistory:
    """Return the history with the last time at which a replica found no node.

    It is forgotten after the interval, and once more replicas have a node than had one then.
    """
    placed = sum(pod.node is not None and not pod.terminating for pod in pods)
    if any(pod.unschedulable is not None and not pod.terminating for pod in pods):
        return replace(history, refused=TimestampedReplicas(at, placed))
    refused = history.refused
    if refused is None:
        return history
    if placed > refused.replicas or at - refused.at >= RETRY_INTERVAL:
        return replace(history, refused=None)
    return history


def without_useless(
    decision: ScaleDecision,
    target: ScaleTarget,
    load: ServiceLoad,
    history: ScalingHistory,
    pods: Sequence[Pod],
    readings: Mapping[Ref, PodReading],
) -> ScaleDecision:
    """Return the decision without an addition that would get nothing; `history` is the one before.

    What `minReplicas` and a waking service need is always added.
    """
    current = current_replicas(load, history)
    if decision.replicas <= current or current < max(1, target.spec.floor):
        return decision
    decided = _refused(decision, current, history, load.at) or _idle(
        current, target, load, pods, readings
    )
    if decided is None:
        return decision
    remaining = replace(
        decision.history, decisions=decision.history.decisions[:-1], change=history.change
    )
    return replace(
        changed(decided, load.at, current, remaining),
        assessment=decision.assessment,
    )


def _refused(
    decision: ScaleDecision, current: int, history: ScalingHistory, at: datetime
) -> Decided | None:
    refused = history.refused
    if refused is None:
        return None
    replicas = max(current, min(decision.replicas, refused.replicas))
    if replicas > current:
        return Decided(replicas, decision.reason, decision.message)
    if refused.at == at:
        # A time in it would rewrite the status in each cycle.
        pending = f"{current - refused.replicas} of them" if current > refused.replicas else "one"
        retry_at, why = None, f"the scheduler finds no node for {pending}, so none is added"
    else:
        retry_at = refused.at + RETRY_INTERVAL
        why = (
            f"at {refused.at:%H:%M:%S} UTC the scheduler found no node for more than "
            f"{refused.replicas}, so none is added until {retry_at:%H:%M:%S} UTC"
        )
    message = f"{counted(current, 'replica')}; {why}"
    return Decided(current, ScalingReason.UNSCHEDULABLE, message, retry_at)


def _idle(
    current: int,
    target: ScaleTarget,
    load: ServiceLoad,
    pods: Sequence[Pod],
    readings: Mapping[Ref, PodReading],
) -> Decided | None:
    balance = balance_of(pods, readings, load.at, settling=MAX_READING_AGE)
    if balance is None:
        return None
    if not (idle := balance.idle(target.max_num_seqs, FULL_SHARE, IDLE_SHARE)):
        return None
    replicas = counted(len(balance.requests), "replica")
    return Decided(
        current,
        ScalingReason.UNBALANCED,
        f"{target.counted(current)}; {idle} of {replicas} hold hardly any requests after "
        f"{format_duration(MAX_READING_AGE)}, and another one would get none either: send requests "
        "through the gateway, or let clients connect again",
    )
