"""Drawn traces have the rates, gaps and lengths that their names promise."""

import random
import statistics
from itertools import pairwise

import pytest

from tessera_lab.fleet.generators import (
    LONGEST_PROMPT,
    SITUATIONS,
    arrival_times,
    daily_wave,
    requests_at_rate,
    situation,
)
from tessera_lab.fleet.trace import Trace

HOUR = 3600.0


def per_second(trace: Trace, begin: float, end: float) -> float:
    return sum(begin <= arrival < end for arrival in trace.arrivals) / (end - begin)


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_is_drawn_by_its_seed_within_its_window(name: str) -> None:
    trace = situation(name, 0.5, HOUR, 7)
    assert trace == situation(name, 0.5, HOUR, 7) != situation(name, 0.5, HOUR, 8)
    assert (trace.name, trace.seconds) == (name, HOUR)
    assert list(trace.arrivals) == sorted(trace.arrivals)
    assert 0 <= trace.arrivals[0] <= trace.arrivals[-1] < HOUR
    assert 900 < len(trace) < 3000
    assert min(trace.input_tokens) >= 1 <= min(trace.output_tokens)
    assert max(trace.input_tokens) <= LONGEST_PROMPT


@pytest.mark.parametrize("cv", [1.0, 3.0])
def test_gaps_have_their_mean_and_their_variation(cv: float) -> None:
    rng = random.Random(3)  # noqa: S311
    arrivals = list(arrival_times(lambda _: 2.0, 30_000.0, rng, cv))
    gaps = [late - early for early, late in pairwise(arrivals)]
    assert statistics.mean(gaps) == pytest.approx(0.5, rel=0.05)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.05)


def test_arrivals_follow_the_rate() -> None:
    trace = requests_at_rate("day", daily_wave(2.0, 0.5, 4000.0), 4000.0, 1)
    assert per_second(trace, 0, 400) == pytest.approx(1.0, rel=0.2)
    assert per_second(trace, 1800, 2200) == pytest.approx(3.0, rel=0.15)
    half = requests_at_rate("half a second", lambda _: 1000.0, 0.5, 1)
    assert len(half) == pytest.approx(500, rel=0.2)


def test_a_ramp_rises_a_step_doubles_twice_and_a_spike_lasts_ten_seconds() -> None:
    rising, stepping, spiking = (
        situation(name, 4.0, HOUR, 1) for name in ("ramp", "step", "spike")
    )
    assert per_second(rising, 0, 360) == pytest.approx(4 * 0.34, rel=0.2)
    assert per_second(rising, 3240, 3600) == pytest.approx(4 * 1.91, rel=0.2)
    assert per_second(stepping, 0, 1200) == pytest.approx(2.0, rel=0.1)
    assert per_second(stepping, 1200, 3600) == pytest.approx(8.0, rel=0.1)
    assert per_second(spiking, 1800, 1810) == pytest.approx(40.0, rel=0.2)
    assert per_second(spiking, 1810, 1870) == pytest.approx(4.0, rel=0.3)


def test_a_silent_night_has_hours_without_a_request() -> None:
    trace = situation("silent-night", 1.0, HOUR, 1)
    assert per_second(trace, 0, 420) == 0.0
    assert per_second(trace, 1500, 2100) > 2.0


def test_few_heavy_prompts_have_most_of_the_tokens() -> None:
    lengths = sorted(situation("heavy-tail", 1.0, HOUR, 1).input_tokens, reverse=True)
    assert sum(lengths[: len(lengths) // 5]) > 0.6 * sum(lengths)


def test_code_traffic_comes_in_bursts_after_silent_minutes() -> None:
    trace = situation("code", 0.5, 6 * HOUR, 1)
    silences = [late - early for early, late in pairwise(trace.arrivals) if late - early > 10]
    assert statistics.mean(silences) == pytest.approx(180.0, rel=0.3)
    assert 30 < len(trace) / (len(silences) + 1) < 150
    assert statistics.median(trace.output_tokens) < 20
