"""The headroom follows what the demand grew by within a start-up."""

import math
from datetime import timedelta

import pytest

from tessera.domain.scaling.policies.capacity.growth import Growth, next_growth
from tests.builders import at

LEAD = timedelta(seconds=120)


def after(demands: list[float]) -> Growth:
    """Return the growth after a demand each half minute."""
    growth = Growth()
    for index, demand in enumerate(demands):
        growth = next_growth(growth, at(30 * index), demand, LEAD)
    return growth


def test_without_a_history_the_headroom_follows_the_lead() -> None:
    assert Growth().headroom(timedelta(seconds=110)) == pytest.approx(1.15)
    assert Growth().headroom(timedelta(minutes=10)) == 1.3
    # Of each moment the next 120 s must be known.
    assert after([3.0] * 23).measured is None
    assert after([3.0] * 24).measured == pytest.approx(1.02)


def test_a_ramp_needs_what_it_rises_by_within_a_lead() -> None:
    ramp = [2.0 * 1.01**index for index in range(120)]
    assert after(ramp).headroom(LEAD) == pytest.approx(1.01**4)


def test_rare_jumps_do_not_count_and_frequent_ones_do() -> None:
    rare = [2.0 if index % 120 == 60 else 1.5 for index in range(120)]
    assert after(rare).headroom(LEAD) == 1.02
    frequent = [2.0 if index % 6 == 0 else 1.8 for index in range(120)]
    assert after(frequent).headroom(LEAD) == pytest.approx(2.0 / 1.8)
    wild = [2.0 if index % 5 == 0 else 0.5 for index in range(120)]
    assert after(wild).headroom(LEAD) == 1.4


def test_what_is_older_than_an_hour_is_forgotten() -> None:
    wild = [2.0 + math.sin(index) for index in range(120)]
    assert after(wild).headroom(LEAD) > 1.2
    growth = after(wild + [2.0] * 121)
    assert growth.headroom(LEAD) == 1.02
    assert len(growth.demands) == 120


def test_a_moment_counts_once() -> None:
    growth = next_growth(Growth(), at(0), 2.0, LEAD)
    assert next_growth(growth, at(15), 9.0, LEAD) == growth
    assert after([0.0] * 120).measured is None
