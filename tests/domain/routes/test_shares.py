"""How tenants share the places of a provider."""

from collections import Counter, deque
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.routes.shares import Shares

EQUAL = {"a": 1.0, "b": 1.0}


def taken(shares: Shares, tenant: str, times: int, places: int, now: float = 0.0) -> int:
    return sum(shares.take(tenant, places, EQUAL, now) for _ in range(times))


def test_a_tenant_alone_takes_all_places() -> None:
    shares = Shares()
    assert taken(shares, "a", 10, 4) == 4
    assert shares.taken == 4


def test_a_place_that_is_given_back_goes_to_who_was_refused() -> None:
    shares = Shares()
    assert taken(shares, "a", 4, 4) == 4
    assert not shares.take("b", 4, EQUAL, 0.0)
    for _ in range(2):
        shares.give_back("a")
        assert not shares.take("a", 4, EQUAL, 1.0)
        assert shares.take("b", 4, EQUAL, 1.0)
    # Both have their share.
    assert shares.taken == 4


def test_a_refusal_that_is_long_ago_leaves_no_place_free() -> None:
    shares = Shares()
    assert taken(shares, "a", 4, 4) == 4
    assert not shares.take("b", 4, EQUAL, 0.0)
    shares.give_back("a")
    assert not shares.take("a", 4, EQUAL, 4.9)
    assert shares.take("a", 4, EQUAL, 5.0)


def test_what_is_free_beside_the_shares_of_others_is_taken() -> None:
    shares = Shares()
    assert taken(shares, "a", 10, 10) == 10
    assert not shares.take("b", 10, EQUAL, 0.0)
    for _ in range(6):
        shares.give_back("a")
    assert taken(shares, "a", 6, 10) == 1
    assert taken(shares, "b", 6, 10) == 5


@pytest.mark.parametrize("places", [1, 2, 3, 16])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_tenant_who_asks_seldom_gets_his_share_beside_who_asks_often(
    places: int, weight: float
) -> None:
    shares, running = Shares(), deque[str]()
    draw = Random(1)  # noqa: S311 - no secret
    weights, given_to = {"often": 1.0, "seldom": weight}, Counter[str]()
    for step in range(4_000):
        now = step * 0.01
        if len(running) == places:
            shares.give_back(running[0])
            running.popleft()
        # One asks ten times as often as the other, who always wants more than he gets.
        tenant = "seldom" if draw.random() < 0.5 else "often"
        for _ in range(10 if tenant == "often" else 1):
            if shares.take(tenant, places, weights, now):
                running.append(tenant)
                given_to[tenant] += 1
    share = given_to["seldom"] / given_to.total()
    assert share > 0.4 if weight == 1.0 else share > 0.45


calls = st.lists(
    st.tuples(st.sampled_from("abc"), st.booleans(), st.floats(0, 10)), min_size=1, max_size=60
)


@given(calls, st.integers(1, 6))
def test_no_place_is_given_twice_and_some_tenant_always_gets_a_free_place(
    events: list[tuple[str, bool, float]], places: int
) -> None:
    shares, running, now = Shares(), list[str](), 0.0
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    for tenant, ends, seconds in events:
        now += seconds
        if ends and running:
            shares.give_back(running.pop(0))
        if shares.take(tenant, places, weights, now):
            running.append(tenant)
        assert shares.taken == len(running) <= places
    if len(running) < places:
        assert any(shares.take(tenant, places, weights, now) for tenant in weights)


def test_a_place_is_wanted_while_who_was_refused_may_come_again() -> None:
    shares = Shares()
    assert taken(shares, "a", 2, 2) == 2
    assert not shares.is_wanted("a", 0.0)
    assert not shares.take("a", 2, EQUAL, 0.0)
    assert not shares.is_wanted("a", 0.0)
    assert not shares.take("b", 2, EQUAL, 1.0)
    assert [shares.is_wanted("a", now) for now in (1.0, 5.9, 6.0)] == [True, True, False]
