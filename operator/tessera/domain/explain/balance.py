"""Explanation of how requests are spread over the replicas."""

import math
from collections.abc import Iterator

from tessera.api.reasons import LoadBalanced
from tessera.api.text import counted
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision
from tessera.domain.rollout.balance import (
    FULL_SHARE,
    IDLE_SHARE,
    UNBALANCED_FULL_SHARE,
    UNBALANCED_IDLE_SHARE,
    balance_of,
)
from tessera.domain.scaling.load import usable_readings


def explain_balance(snapshot: Snapshot, service_plan: ServicePlan) -> Iterator[Decision]:
    """Yield the decision about the spread with the numbers of now; nothing for 1 replica."""
    choice = service_plan.choice
    if choice is None or len(service_plan.pods) < 2:
        return
    reason, limit = service_plan.balance.reason, choice.fit.limits.max_num_seqs
    balance = balance_of(
        service_plan.pods, usable_readings(snapshot.readings, snapshot.at), snapshot.at
    )
    counts = "unknown" if balance is None else ", ".join(f"{n:.0f}" for n in balance.requests)
    change = (
        f"every replica above {UNBALANCED_IDLE_SHARE:.0%} of the mean, or fewer than "
        f"{counted(math.ceil(limit * UNBALANCED_FULL_SHARE), 'request')} on the fullest one"
        if reason is LoadBalanced.UNBALANCED
        else f"{counted(math.ceil(limit * FULL_SHARE), 'request')} or more on one replica while "
        f"another has at most {IDLE_SHARE:.0%} of the mean"
    )
    yield Decision(
        topic="balance",
        reason=reason,
        message=service_plan.balance.message,
        numbers=(("requests per replica", counts or "fewer than 2 are ready for a minute"),),
        would_change=(change,),
    )
