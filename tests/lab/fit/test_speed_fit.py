"""The fit finds the speed of an engine whose speed is known: the machine itself."""

import random
from collections.abc import Sequence
from statistics import median

import pytest

from tessera.domain.perf.step import StepTime
from tessera_lab.engine.requests import EngineLimits
from tessera_lab.fit.nelder_mead import Point, minimize
from tessera_lab.fit.speed_fit import (
    ObservedRequest,
    ObservedRun,
    RepeatedLoad,
    fit_engine_speed,
    latency_percentiles,
    replay,
)

LIMITS = EngineLimits(
    max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=128, blocks=400, block_size=16
)
FRONT = 0.008
TRUE = StepTime(weights=6e-3, kv_token=2e-7, token=5e-4, sequence=1e-3, fixed=3e-3)


def unserved_run(
    seed: int, rate: float, count: int = 30, *, inputs: int = 90, outputs: int = 25
) -> ObservedRun:
    """Requests before anybody served them."""
    rng, now, requests = random.Random(seed), 0.0, []  # noqa: S311 - no secret
    for _ in range(count):
        now += rng.expovariate(rate)
        request = ObservedRequest(
            arrival=now,
            prompt_tokens=rng.randint(inputs // 3, 2 * inputs),
            output_tokens=rng.randint(outputs // 3, 2 * outputs),
            ttft_seconds=0.0,
            tpot_seconds=None,
        )
        requests.append(request)
    return requests


def serve(speed: StepTime, rate: float, *, inputs: int = 90, outputs: int = 25) -> RepeatedLoad:
    runs = [unserved_run(seed, rate, inputs=inputs, outputs=outputs) for seed in (1, 2, 3)]
    return [replay(run, LIMITS, speed, FRONT) for run in runs]


@pytest.mark.full
@pytest.mark.long
def test_the_speed_of_a_known_engine_is_found_and_foretells_other_loads() -> None:
    fit = fit_engine_speed([serve(TRUE, 2.0), serve(TRUE, 4.0)], LIMITS)
    assert fit.error < 0.02
    assert fit.frontend_seconds == pytest.approx(FRONT, rel=0.25)
    for decoding, prefill in ((1, 0), (3, 0), (6, 0), (0, 90), (2, 60), (4, 124)):
        seconds = fit.speed.seconds(decoding=decoding, kv_tokens=300, prefill_tokens=prefill)
        true = TRUE.seconds(decoding=decoding, kv_tokens=300, prefill_tokens=prefill)
        assert seconds == pytest.approx(true, rel=0.06), (decoding, prefill)
    for unseen in (serve(TRUE, 6.0), serve(TRUE, 3.0, inputs=40, outputs=60)):
        again = [replay(run, LIMITS, fit.speed, fit.frontend_seconds) for run in unseen]
        predicted = latency_percentiles(again, (50, 95))
        true_ones = latency_percentiles(unseen, (50, 95))
        assert predicted.ttft == pytest.approx(true_ones.ttft, rel=0.1)
        assert predicted.tpot == pytest.approx(true_ones.tpot, rel=0.1)


def test_the_same_run_gives_the_same_speed_and_one_that_explains_it() -> None:
    loads = [[served_run(5, 3.0)]]
    fit = fit_engine_speed(loads, LIMITS)
    assert fit == fit_engine_speed(loads, LIMITS)
    assert fit.error < 0.03


def served_run(seed: int, rate: float) -> ObservedRun:
    return replay(unserved_run(seed, rate, 15), LIMITS, TRUE, FRONT)


def test_a_replay_keeps_the_requests_and_serves_a_lonely_one_at_once() -> None:
    (got,) = replay(unserved_run(1, 1.0, 1), LIMITS, TRUE, FRONT)
    (before,) = unserved_run(1, 1.0, 1)
    assert got.arrival == pytest.approx(before.arrival)
    assert (got.prompt_tokens, got.output_tokens) == (before.prompt_tokens, before.output_tokens)
    chunks = [128] * (before.prompt_tokens // 128) + [before.prompt_tokens % 128]
    read, expected = 0, FRONT
    for chunk in chunks:
        read += chunk
        expected += TRUE.seconds(decoding=0, kv_tokens=read, prefill_tokens=chunk)
    assert got.ttft_seconds == pytest.approx(expected)


def test_latencies_are_medians_of_the_runs_percentiles() -> None:
    def run(*firsts: float) -> Sequence[ObservedRequest]:
        return [
            ObservedRequest(
                arrival=0.0,
                prompt_tokens=1,
                output_tokens=1 if first > 5 else 2,
                ttft_seconds=first,
                tpot_seconds=None if first > 5 else first / 10,
            )
            for first in firsts
        ]

    percentiles = latency_percentiles(
        [run(1.0, 2.0, 9.0), run(3.0, 4.0, 5.0), run(2.0, 2.5, 3.0)], (50, 95)
    )
    assert percentiles.ttft == (median([2.0, 4.0, 2.5]), median([9.0, 5.0, 3.0]))
    assert percentiles.tpot == pytest.approx((0.25, 0.3))


def test_the_search_finds_the_bottom_of_a_bent_valley() -> None:
    def valley(point: Point) -> float:
        """Rosenbrock's, which is at its lowest at (1, 1)."""
        x, y = point
        return (1 - x) ** 2 + 100 * (y - x * x) ** 2

    assert minimize(valley, (-1.2, 1.0), tolerance=1e-7) == pytest.approx((1.0, 1.0), abs=1e-4)


def test_the_search_ends_after_as_many_evaluations_as_it_was_given() -> None:
    looks = 0

    def slope(point: Point) -> float:
        nonlocal looks
        looks += 1
        return point[0]

    minimize(slope, (0.0,), max_evaluations=50)
    assert 50 <= looks <= 53
