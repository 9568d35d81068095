"""A replica that is not needed stays for as long as its start-up would cost where it may pay."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.scaling.decisions import push
from tessera.domain.scaling.policies.capacity.hold import (
    Lulls,
    hold_of,
    longest_hold,
    next_lulls,
)
from tessera.domain.scaling.state import TimestampedReplicas
from tests.builders import at

WINDOW, LONGEST = timedelta(seconds=300), timedelta(seconds=480)
COURSES = st.lists(
    st.tuples(st.integers(1, 400), st.integers(1, 4)).map(tuple), min_size=1, max_size=40
)


def replicas(second: int, count: int) -> TimestampedReplicas:
    return TimestampedReplicas(at(second), count)


def recommendations(course: Sequence[tuple[int, int]]) -> list[TimestampedReplicas]:
    """Return recommendations from the seconds between them and their replicas."""
    second, result = 0, []
    for elapsed, count in course:
        second += elapsed
        result.append(replicas(second, count))
    return result


def play(course: Sequence[TimestampedReplicas]) -> Lulls:
    lulls, recommended = Lulls(), tuple[TimestampedReplicas, ...]()
    for new in course:
        lulls = next_lulls(lulls, recommended, new, 3, WINDOW, LONGEST)
        recommended = push(recommended, new, new, LONGEST, lowest=False)
    return lulls


def last_lull_returned(course: Sequence[TimestampedReplicas]) -> bool:
    """Look at the lulls of each number of replicas by themselves."""
    events = [(at(0), False)]
    for level in range(1, 5):
        began = None
        for before, new in zip([None, *course], course, strict=False):
            if began is None and before and new.replicas < level <= before.replicas:
                began = new.at
            elif began and new.at - began >= LONGEST:
                events.append((new.at, False))
                began = None
            elif began and new.replicas >= level:
                if new.at - began > WINDOW:
                    events.append((new.at, True))
                began = None
    return max(events)[1]


@given(COURSES)
def test_it_is_longer_after_a_lull_that_ended_within_it_until_one_outlasts_it(
    course: list[tuple[int, int]],
) -> None:
    recommended = recommendations(course)
    assert play(recommended).returned == last_lull_returned(recommended)


@given(COURSES, st.timedeltas(timedelta(), timedelta(hours=2)), st.integers(0, 1200))
def test_it_is_bounded_by_the_window_and_ten_minutes(
    course: list[tuple[int, int]], window: timedelta, lead: int
) -> None:
    longest = longest_hold(window, timedelta(seconds=lead))
    lulls = play(recommendations(course))
    assert longest in (window, min(timedelta(seconds=4 * lead), timedelta(minutes=10)))
    assert hold_of(lulls, replicas(20_000, 3), window, longest) in (window, longest)
    assert window <= longest


@pytest.mark.parametrize(
    ("second", "count", "hold"), [(0, 3, LONGEST), (479, 3, LONGEST), (480, 3, WINDOW)]
)
def test_replicas_of_an_unknown_past_are_held(second: int, count: int, hold: timedelta) -> None:
    lulls = play([replicas(0, 1)])
    assert lulls.first == replicas(0, 3)
    assert hold_of(Lulls(), replicas(second, count), WINDOW, LONGEST) == LONGEST
    assert hold_of(lulls, replicas(second, count), WINDOW, LONGEST) == hold
    # It is known why a fourth was added.
    assert hold_of(lulls, replicas(second, count + 1), WINDOW, LONGEST) == WINDOW


@pytest.mark.parametrize(
    ("lull", "hold"), [(300, WINDOW), (301, LONGEST), (479, LONGEST), (480, WINDOW)]
)
def test_one_lull_says_how_long_the_next_is_held(lull: int, hold: timedelta) -> None:
    lulls = play(recommendations([(1, 3), (600, 1), (lull, 2)]))
    assert hold_of(lulls, replicas(2000, 3), WINDOW, LONGEST) == hold


def test_what_came_back_counts_for_more_than_what_stayed_away() -> None:
    # Four were needed until the 100th second, three until the 200th, and three are again.
    course = recommendations([(50, 4), (50, 3), (100, 1), (400, 3)])
    assert play(course).returned
