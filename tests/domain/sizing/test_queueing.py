"""Waiting times by formulas are those of the processes that they describe."""

import math

import pytest

from tessera.domain.sizing.queueing import EngineOccupancy, share_waiting_longer, waiting_share


def exact_waiting(occupancy: EngineOccupancy, rate: float) -> float:
    """Return the share of arrivals that find no place, from the chain of all states."""
    weight, free = 1.0, 0.0
    for requests in range(1, occupancy.places + 1):
        free += weight
        seconds = occupancy.alone_seconds + (requests - 1) * occupancy.shared_seconds
        weight *= rate * seconds / requests
    busy = rate * seconds / occupancy.places
    taken = weight / (1 - busy)
    return taken / (free + taken)


def rate_with_waiting(occupancy: EngineOccupancy, share: float) -> float:
    low, high = 0.0, occupancy.places / occupancy.alone_seconds
    high /= 1 + (occupancy.places - 1) * occupancy.shared_seconds / occupancy.alone_seconds
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_waiting(occupancy, middle) < share else (low, middle)
    return low


@pytest.mark.parametrize("places", [2, 3, 5, 8, 20, 88, 256])
@pytest.mark.parametrize("shared_seconds", [0.0, 0.04, 0.5, 2.0])
def test_as_many_wait_for_a_place_as_in_the_chain_of_all_states(
    places: int, shared_seconds: float
) -> None:
    occupancy = EngineOccupancy(places, 2.0, shared_seconds)
    rate = rate_with_waiting(occupancy, 0.05)
    assert occupancy.share_waiting_longer(0.0, rate, 1) == pytest.approx(0.053, abs=0.004)
    assert occupancy.share_waiting_longer(0.0, 0.95 * rate, 1) < 0.05


def test_one_place_is_one_server() -> None:
    occupancy = EngineOccupancy(1, 2.0, 0.0)
    assert occupancy.share_waiting_longer(0.0, 0.03, 1) == pytest.approx(waiting_share(1, 0.06))


def test_more_wait_for_a_place_the_more_arrive() -> None:
    for places, replicas, shared_seconds in (
        (1, 1, 0.0),
        (2, 1, 2.0),
        (8, 5_000, 1.9),
        (256, 1, 1),
    ):
        occupancy = EngineOccupancy(places, 2.0, shared_seconds)
        full = places / (2.0 + (places - 1) * shared_seconds)
        shares = [
            occupancy.share_waiting_longer(0.01, full * step / 200, replicas)
            for step in range(1, 210)
        ]
        assert shares == sorted(shares)
        assert 0 <= shares[0] < 0.05 < shares[-1] == 1


def test_fewer_wait_for_long_and_where_replicas_share_their_places() -> None:
    occupancy = EngineOccupancy(8, 2.0, 0.1)
    rate = rate_with_waiting(occupancy, 0.05)
    alone, beside_others = (occupancy.share_waiting_longer(0.0, rate, n) for n in (1, 4))
    assert beside_others < alone / 5
    # 8 requests take 2.7 s each, so that one of them ends every third of a second.
    relief = 8 / 2.7 - rate
    assert occupancy.share_waiting_longer(1.0, rate, 1) == pytest.approx(alone * math.exp(-relief))


def test_the_mean_grows_faster_than_the_rate_and_has_an_end() -> None:
    occupancy = EngineOccupancy(8, 2.0, 0.5)
    # Little's law: alone, and then with one other request in the mean.
    assert occupancy.mean(1e-9) == pytest.approx(2e-9)
    assert occupancy.mean(1.0) == pytest.approx(2.0 / (1 - 0.5))
    assert occupancy.mean(2.0) == math.inf


@pytest.mark.parametrize(
    ("servers", "busy", "share"), [(1, 0.5, 0.5), (2, 0.5, 1 / 3), (4, 0.8, 0.5964), (8, 0.0, 0.0)]
)
def test_the_share_that_waits_is_that_of_erlang(servers: int, busy: float, share: float) -> None:
    assert waiting_share(servers, busy) == pytest.approx(share, abs=1e-4)
    assert share_waiting_longer(0.0, servers, busy, 1.0) == pytest.approx(share, abs=1e-4)


def test_servers_that_are_always_busy_make_all_wait() -> None:
    assert share_waiting_longer(10.0, 4, 1.0, 1.0) == 1
