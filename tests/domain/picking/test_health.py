"""Ejection doubles, ends with a success, and slow start grows to the whole share."""

import pytest

from tessera.domain.picking.health import HEALTHY, ReplicaHealth, after_failure, start_share


def failed(health: ReplicaHealth, *moments: float) -> ReplicaHealth:
    for moment in moments:
        health = after_failure(health, moment)
    return health


def test_two_failures_eject_nothing_and_the_third_does() -> None:
    assert failed(HEALTHY, 10, 11).ejected_until == 0
    assert failed(HEALTHY, 10, 11, 12).ejected_until == 17


def test_each_failure_after_an_ejection_doubles_it_up_to_the_maximum() -> None:
    health, lengths = failed(HEALTHY, 0, 0), []
    now = 0.0
    for _ in range(12):
        health = after_failure(health, now)
        lengths.append(health.ejected_until - now)
        now = health.ejected_until
    assert lengths[:7] == [5, 10, 20, 40, 80, 160, 300]
    assert lengths[-1] == 300


def test_failures_of_requests_from_before_an_ejection_do_not_prolong_it() -> None:
    ejected = failed(HEALTHY, 0, 0, 0)
    assert failed(ejected, *[4.9] * 1000) == ejected


def test_requests_of_one_tenant_alone_eject_nothing() -> None:
    def suspected(*tenants: str | None) -> ReplicaHealth:
        health = HEALTHY
        for tenant in tenants:
            health = after_failure(health, 10.0, suspect=tenant)
        return health

    assert suspected(*["a"] * 1000).ejected_until == 0
    assert suspected("a", "a", "b", "b", "b", "a", "a").ejected_until == 0
    assert suspected("a", "b", "a", "b").ejected_until == 15
    # Without a connection, it is the replica's.
    assert suspected("a", None, None, "a").ejected_until == 0
    assert suspected("a", None, None, None).ejected_until == 15


def test_thousands_of_failures_are_counted() -> None:
    assert after_failure(ReplicaHealth(failures=5000), 0.0).ejected_until == 300


@pytest.mark.parametrize(("seconds", "share"), [(-1, 0.1), (0, 0.1), (2.5, 0.5), (5, 1), (99, 1)])
def test_a_new_replica_takes_a_growing_share(seconds: float, share: float) -> None:
    assert start_share(seconds) == share
