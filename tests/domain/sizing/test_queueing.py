"""Waiting times by formulas are those of the processes that they describe."""

import math
import random
from collections.abc import Callable
from itertools import pairwise, repeat

import pytest

from tessera.domain.sizing.queueing import (
    EngineOccupancy,
    OwnTime,
    late_last,
    share_waiting_longer,
    waiting_share,
)


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


def late_at_one_server(
    own: Callable[[random.Random], float], busy: float, slack: float, requests: int = 200_000
) -> float:
    """Return the share of requests that wait, and are served, for longer than `slack`."""
    rng, late, wait = random.Random(1), 0, 0.0  # noqa: S311 - not a secret
    for _ in repeat(None, requests):
        seconds = own(rng)
        late += wait + seconds > slack
        wait = max(0.0, wait + seconds - rng.expovariate(busy))
    return late / requests


@pytest.mark.parametrize(("busy", "slack"), [(0.1, 3.5), (0.5, 6.0), (0.8, 15.0)])
def test_exponential_prompts_are_late_as_at_one_server(busy: float, slack: float) -> None:
    own = OwnTime.of(1.0, 1.0)
    late = own.share_longer(slack) + share_waiting_longer(slack, 1, busy, 1.0, own=own)
    # The time in such a system is exponential.
    assert late == pytest.approx(math.exp(-slack * (1 - busy)))
    assert late_at_one_server(lambda rng: rng.expovariate(1), busy, slack) == pytest.approx(
        late, rel=0.1
    )


@pytest.mark.parametrize(("busy", "slack"), [(0.1, 1.4), (0.3, 2.1), (0.6, 3.5), (0.8, 6.0)])
def test_equal_prompts_wait_for_hardly_more_than_one_other(busy: float, slack: float) -> None:
    own = OwnTime.of(1.0, 0.0)
    late = share_waiting_longer(slack, 1, busy, 1.0, variation=0.0, own=own)
    assert own.share_longer(slack) == 0
    played = late_at_one_server(lambda _: 1.0, busy, slack)
    assert played - 0.004 < late < played + 0.02
    assert own.share_longer(0.99) == 1


def test_more_are_late_the_more_prompts_vary() -> None:
    shares = []
    for tenth in range(21):
        variation = tenth / 10
        own = OwnTime.of(1.0, variation)
        wait = share_waiting_longer(4.0, 1, 0.3, 1.0, variation=variation, own=own)
        shares.append(own.share_longer(4.0) + wait)
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.01
    assert 0.05 < shares[-1] < 1


@pytest.mark.parametrize("slack", [0.0, 0.5, 2.0])
def test_a_sum_of_two_times_of_nearly_the_same_mean_has_no_gap(slack: float) -> None:
    own = OwnTime(least=0.0, spread=1.0)
    shares = [own.share_longer(slack, 1 + step / 1e4) for step in range(-30, 31)]
    for first, second in pairwise(shares):
        assert first == pytest.approx(second, abs=1e-3)


def test_only_the_excess_is_late_where_late_requests_wait_for_others() -> None:
    for busy in (0.3, 0.9, 0.99):
        shares = [late_last(late / 10, busy) for late in range(11)]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 1)
        assert all(share <= late / 10 for late, share in enumerate(shares))
    # Half are late by arrival at 95 % of the load, and only a twentieth is.
    assert late_last(0.5, 0.95) == pytest.approx(0.048, abs=0.001)
    assert late_last(0.5, 1.0) == 1
