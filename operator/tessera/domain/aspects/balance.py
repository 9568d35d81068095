"""How the requests are spread over the replicas of a service: LoadBalanced."""

import math
from datetime import datetime

from tessera.api.reasons import LoadBalanced, StatusVerdict
from tessera.api.text import counted
from tessera.domain.aspects.aspect import Aspect, Explanation, Measurements, PlacedService, Reported
from tessera.domain.incremental import Until
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.reporting.transitions import transitions
from tessera.domain.rollout.balance import (
    FULL_SHARE,
    IDLE_SHARE,
    UNBALANCED_FULL_SHARE,
    UNBALANCED_IDLE_SHARE,
    assess_balance,
    balance_of,
    reported_balance,
)
from tessera.domain.scaling.load import usable_readings


def _following(
    placed: PlacedService,
    measurements: Measurements,
    current: StatusVerdict[LoadBalanced],
    at: datetime,
) -> Until[StatusVerdict[LoadBalanced]]:
    if placed.choice is None:
        return Until(current)
    readings = measurements.readings
    return assess_balance(
        placed.service.status,
        placed.pods,
        readings.pods,
        placed.choice.fit.limits.max_num_seqs,
        at,
        is_fleet_measured=readings.is_usable,
    )


def _explain(placed: PlacedService, snapshot: Snapshot, reported: Reported) -> Explanation | None:
    if placed.choice is None or len(placed.pods) < 2:
        return None
    limit = placed.choice.fit.limits.max_num_seqs
    balance = balance_of(placed.pods, usable_readings(snapshot.readings, snapshot.at), snapshot.at)
    counts = "unknown" if balance is None else ", ".join(f"{n:.0f}" for n in balance.requests)
    change = (
        f"every replica above {UNBALANCED_IDLE_SHARE:.0%} of the mean, or fewer than "
        f"{counted(math.ceil(limit * UNBALANCED_FULL_SHARE), 'request')} on the fullest one"
        if reported.balance.reason is LoadBalanced.UNBALANCED
        else f"{counted(math.ceil(limit * FULL_SHARE), 'request')} or more on one replica while "
        f"another has at most {IDLE_SHARE:.0%} of the mean"
    )
    numbers = (("requests per replica", counts or "fewer than 2 are ready for a minute"),)
    return Explanation(numbers, (change,))


BALANCE: Aspect[StatusVerdict[LoadBalanced]] = Aspect(
    name="balance",
    measured_by="loads",
    condition="LoadBalanced",
    reported=lambda placed: reported_balance(placed.service.status, placed.pods),
    following=_following,
    verdict=lambda _placed, verdict: verdict,
    as_status=None,
    events=lambda old, new: transitions(old.conditions, new.conditions, "LoadBalanced"),
    explain=_explain,
)
