"""When a lease may be taken: judged by watching, never by comparing times of day."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.adapters.kube.leader_election import (
    LEASE_DURATION,
    RENEW_DEADLINE,
    ObservedLease,
    can_acquire,
)


def lease(holder: str | None, seconds: int = 15) -> dict[str, Any]:
    return {"holderIdentity": holder, "leaseDurationSeconds": seconds}


@pytest.mark.parametrize(
    ("holder", "idle_seconds", "free"),
    [
        ("me", 0, True),
        ("other", 14.9, False),
        ("other", 15.1, True),
        ("", 0, True),
        (None, 0, True),
    ],
)
def test_a_lease_is_free_when_released_own_or_not_renewed_for_its_duration(
    holder: str | None, idle_seconds: float, free: bool
) -> None:
    watched = ObservedLease(version="1", observed_at=1000.0)
    assert can_acquire(lease(holder), "me", watched, 1000.0 + idle_seconds) is free


@given(
    skew=st.floats(-1e6, 1e6),
    renewed=st.floats(0, 1e5),
    seen_after=st.floats(0, 5),
    elapsed=st.floats(0, 60),
)
def test_two_electors_with_skewed_clocks_never_lead_at_once(
    skew: float, renewed: float, seen_after: float, elapsed: float
) -> None:
    """The old leader counts from before its write, the other from when it saw the write."""
    moment = renewed + elapsed
    old_leads = moment < renewed + RENEW_DEADLINE
    watched = ObservedLease(version="7", observed_at=renewed + seen_after + skew)
    other_may = can_acquire(lease("old", int(LEASE_DURATION)), "other", watched, moment + skew)
    assert not (old_leads and other_may)
