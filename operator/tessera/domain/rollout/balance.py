"""Whether the replicas of a service share its requests.

A Service assigns connections and not requests, so clients that keep a connection never reach a
new replica. Readings change all the time and a condition must not: it changes at thresholds that
are apart, at most once a minute, and keeps its message while its reason stays. The condition itself
is the only memory of this.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.meta import Condition, find_condition
from tessera.api.reasons import LoadBalanced, StatusVerdict
from tessera.api.service_status import InferenceServiceStatus
from tessera.api.text import counted
from tessera.domain.incremental import FOREVER, Until
from tessera.domain.observed.snapshot import Pod, PodReading, Ref

# How long after it became ready a replica should have its share of the requests, and how long a
# verdict stands at least.
SETTLING_TIME = timedelta(seconds=60)
# A replica with at most this share of the mean is idle.
IDLE_SHARE = 0.25
# Idle replicas matter once the fullest one holds requests for this share of `maxNumSeqs`.
FULL_SHARE = 0.5
# The same for a service that is unbalanced, until it is not.
UNBALANCED_IDLE_SHARE = 0.5
UNBALANCED_FULL_SHARE = 0.25
BALANCED = StatusVerdict(
    LoadBalanced.BALANCED, "no replica is idle while requests fill another one"
)
_UNKNOWN = StatusVerdict(
    LoadBalanced.FAILED_GET_METRICS,
    "running or waiting requests of a replica are unknown: check with tessera doctor",
)
_NO_REPLICA = StatusVerdict(LoadBalanced.NO_REPLICA_READY, "0 replicas take requests")
_BY_NAME = {reason.value: reason for reason in LoadBalanced}


class Balance(NamedTuple):
    """How the running and waiting requests are spread over the settled replicas."""

    requests: tuple[float, ...]
    """Of each replica, fewest first."""
    fullest: str
    """Name of the pod with the most."""

    @property
    def total(self) -> float:
        return sum(self.requests)

    def idle(self, max_num_seqs: int, full_share: float, idle_share: float) -> int:
        """Return how many replicas have at most this share of the mean; 0 while none is full."""
        if not self.requests or self.requests[-1] < max_num_seqs * full_share:
            return 0
        return sum(each <= idle_share * self.total / len(self.requests) for each in self.requests)


def balance_of(
    pods: Sequence[Pod],
    readings: Mapping[Ref, PodReading],
    at: datetime,
    settling: timedelta = SETTLING_TIME,
) -> Balance | None:
    """Return the spread over replicas that are ready for so long; nothing for a single one.

    None is "not known": one of them has no reading.
    """
    settled = [pod for pod in _receiving(pods) if not _is_new(pod, at, settling)]
    if len(settled) < 2:
        return Balance((), "")
    counts = []
    for pod in settled:
        reading = readings.get(pod.ref)
        if reading is None or reading.running is None or reading.waiting is None:
            return None
        counts.append((reading.running + reading.waiting, pod.ref.name))
    counts.sort()
    return Balance(tuple(count for count, _ in counts), counts[-1][1])


def assess_balance(
    status: InferenceServiceStatus,
    pods: Sequence[Pod],
    readings: Mapping[Ref, PodReading],
    max_num_seqs: int,
    at: datetime,
    *,
    is_fleet_measured: bool,
) -> Until[StatusVerdict[LoadBalanced]]:
    """Return the condition that follows from the readings and from the one in the status.

    A new replica is expected to have a reading soon only where other replicas of the fleet have
    one. Elsewhere it is unknown at once, so that no second status says so a minute later.
    """
    reported = _condition(status)
    moments = [reported.last_transition_time] if reported is not None else []
    moments += [pod.ready_since for pod in pods if pod.ready_since is not None]
    settled = (moment + SETTLING_TIME for moment in moments if at - moment < SETTLING_TIME)
    until = min(settled, default=FOREVER)
    if not _receiving(pods):
        return Until(_NO_REPLICA, until)
    if (
        reported is not None
        and reported.reason != LoadBalanced.NO_REPLICA_READY
        and at - reported.last_transition_time < SETTLING_TIME
    ):
        return Until(_reported_verdict(reported), until)
    is_unknown = len(pods) > 1 and not is_fleet_measured
    verdict = _verdict(
        None if is_unknown else balance_of(pods, readings, at),
        max_num_seqs,
        was_unbalanced=reported is not None and reported.reason == LoadBalanced.UNBALANCED,
    )
    if reported is not None and reported.reason == verdict.reason:
        verdict = _reported_verdict(reported)
    return Until(verdict, until)


def reported_balance(
    status: InferenceServiceStatus, pods: Sequence[Pod]
) -> StatusVerdict[LoadBalanced]:
    """Return the condition of the status; Balanced where replicas have none."""
    if not _receiving(pods):
        return _NO_REPLICA
    condition = _condition(status)
    return BALANCED if condition is None else _reported_verdict(condition)


def _reported_verdict(condition: Condition) -> StatusVerdict[LoadBalanced]:
    return StatusVerdict(_BY_NAME[condition.reason], condition.message)


def _verdict(
    balance: Balance | None, max_num_seqs: int, *, was_unbalanced: bool
) -> StatusVerdict[LoadBalanced]:
    if balance is None:
        return _UNKNOWN
    full_share = UNBALANCED_FULL_SHARE if was_unbalanced else FULL_SHARE
    idle_share = UNBALANCED_IDLE_SHARE if was_unbalanced else IDLE_SHARE
    if not (idle := balance.idle(max_num_seqs, full_share, idle_share)):
        return BALANCED
    replicas = counted(len(balance.requests), "replica")
    return StatusVerdict(
        LoadBalanced.UNBALANCED,
        f"{balance.requests[-1]:.0f} of {balance.total:.0f} running and waiting requests are on "
        f"Pod/{balance.fullest}, while {idle} of {replicas} hold hardly any: clients that keep "
        "their connection stay with their replica. Send requests through the gateway, which picks "
        "a replica for each one, or let clients connect again.",
    )


def _condition(status: InferenceServiceStatus) -> Condition | None:
    """Return the condition, if it has a reason that this version knows."""
    condition = find_condition(status.conditions, "LoadBalanced")
    return condition if condition is not None and condition.reason in _BY_NAME else None


def _receiving(pods: Sequence[Pod]) -> list[Pod]:
    """Return the replicas that get new requests."""
    return [pod for pod in pods if pod.takes_requests and pod.serving]


def _is_new(pod: Pod, at: datetime, settling: timedelta) -> bool:
    return pod.ready_since is not None and at - pod.ready_since < settling
