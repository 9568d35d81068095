import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore, Timeline
from tessera_lab.engine.requests import EngineLimits, EngineRequest
from tessera_lab.engine.speculation import Speculation
from tests.domain.perf.test_speculation import PUBLISHED

# Neither cache nor computing counts, so that the formula's assumption holds.
MEMORY_BOUND = StepTime(weights=40e-3, kv_token=0.0, token=1e-7, sequence=0.0, fixed=0.0)
COSTLY = StepTime(weights=10e-3, kv_token=1e-7, token=1e-4)
LIMITS = EngineLimits(
    max_model_len=4096, max_num_seqs=256, max_num_batched_tokens=4096, blocks=20_000
)


def a_speculation(acceptance: float = 0.8) -> Speculation:
    """An 8B model that drafts five tokens for a 70B one."""
    return Speculation(acceptance=acceptance, draft_tokens=5, draft_cost=8 / 70)


@pytest.mark.parametrize(("acceptance", "expected", "speedup"), PUBLISHED)
def test_the_formula_gives_its_table(acceptance: float, expected: float, speedup: float) -> None:
    speculation = a_speculation(acceptance)
    assert speculation.expected_tokens == pytest.approx(expected, abs=6e-5)
    assert speculation.speedup == pytest.approx(speedup, abs=1e-3)


@pytest.mark.parametrize(
    ("temperature", "acceptance", "speedup"),
    [(0.0, 0.75, 2.093), (0.5, 0.68, 1.792), (1.0, 0.61, 1.548)],
)
def test_a_warmer_sample_accepts_less_and_gains_less(
    temperature: float, acceptance: float, speedup: float
) -> None:
    speculation = Speculation.at_temperature(temperature, draft_tokens=5, draft_cost=8 / 70)
    assert speculation.acceptance == pytest.approx(acceptance)
    assert speculation.speedup == pytest.approx(speedup, abs=1e-3)


@pytest.mark.parametrize("temperature", [-0.1, 1.1, math.nan])
def test_acceptance_is_not_extrapolated_beyond_the_measured_temperatures(
    temperature: float,
) -> None:
    with pytest.raises(ValueError, match="acceptance is known from 0 to 1"):
        Speculation.at_temperature(temperature, draft_tokens=5, draft_cost=0.1)


def test_the_draft_model_reads_the_prompts_as_well() -> None:
    engine = EngineCore(LIMITS, COSTLY, a_speculation())
    engine.submit(EngineRequest(id=0, prompt_tokens=1000, output_tokens=5))
    plain = COSTLY.seconds(decoding=0, kv_tokens=1000, prefill_tokens=1000)
    assert engine.begin_step() == pytest.approx((1 + 8 / 70) * plain)


def test_drafts_without_a_model_cost_only_their_verification() -> None:
    lookup = Speculation(acceptance=0.5, draft_tokens=3, draft_cost=0.0)
    engine = EngineCore(LIMITS, COSTLY, lookup)
    engine.submit(EngineRequest(id=0, prompt_tokens=10, output_tokens=9))
    engine.begin_step()
    engine.end_step()
    seconds = engine.begin_step()
    read = engine.kv_tokens
    assert seconds == COSTLY.seconds(decoding=1, kv_tokens=read, prefill_tokens=3)


def _decode_seconds(
    speed: StepTime, speculation: Speculation | None, requests: int, output: int = 2000
) -> float:
    timeline = Timeline(EngineCore(LIMITS, speed, speculation))
    for number in range(requests):
        timeline.submit(EngineRequest(id=number, prompt_tokens=1, output_tokens=output))
    served = timeline.advance(math.inf)
    assert [request.output_tokens for request in served] == [output] * requests
    assert timeline.engine.counts.generated_tokens == requests * output
    assert timeline.engine.free_blocks == LIMITS.blocks - 1
    return timeline.busy_seconds


@pytest.mark.parametrize(("acceptance", "expected", "speedup"), PUBLISHED)
def test_an_engine_bound_by_memory_gains_what_the_formula_says(
    acceptance: float, expected: float, speedup: float
) -> None:
    del expected
    plain = _decode_seconds(MEMORY_BOUND, None, 1)
    drafted = _decode_seconds(MEMORY_BOUND, a_speculation(acceptance), 1)
    assert plain / drafted == pytest.approx(speedup, rel=0.005)


def test_the_gain_shrinks_with_the_batch_and_turns_into_a_loss() -> None:
    gains = [
        _decode_seconds(COSTLY, None, batch, 300)
        / _decode_seconds(COSTLY, a_speculation(0.6), batch, 300)
        for batch in (1, 8, 32, 128)
    ]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 1.3
    assert gains[-1] < 1


@given(st.floats(0, 0.99), st.integers(1, 8), st.integers(1, 400))
def test_the_steady_gains_keep_to_the_expected_mean(
    acceptance: float, tokens: int, steps: int
) -> None:
    speculation = Speculation(acceptance=acceptance, draft_tokens=tokens, draft_cost=0.1)
    gains = list(itertools.islice(speculation.steady_tokens(), steps))
    assert all(1 <= gain <= tokens + 1 for gain in gains)
    assert abs(sum(gains) - steps * speculation.expected_tokens) <= 1


def test_the_same_gains_give_the_same_run() -> None:
    def run() -> list[float]:
        tokens_per_step = itertools.cycle([2, 1, 4, 6])
        timeline = Timeline(EngineCore(LIMITS, COSTLY, a_speculation(), tokens_per_step))
        for number in range(5):
            timeline.submit(EngineRequest(id=number, prompt_tokens=50, output_tokens=90 + number))
        return [served.ended_at for served in timeline.advance(math.inf)]

    assert run() == run()


def test_a_step_says_how_many_tokens_each_one_got() -> None:
    engine = EngineCore(LIMITS, COSTLY, a_speculation(), iter([1, 3, 6]))
    engine.submit(EngineRequest(id=0, prompt_tokens=10, output_tokens=6))
    steps = list(iter(engine.step, None))
    assert [step.tokens_per_request for step in steps] == [1, 3, 6]
    assert steps[-1].finished[0].output_tokens == 6
    assert engine.kv_tokens == 0


requests = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 39)), min_size=1, max_size=8)


@given(st.integers(0, 5), st.integers(28, 60), requests)
def test_short_of_blocks_speculation_still_gives_every_request_all_tokens(
    drafted: int, blocks: int, wanted: list[tuple[int, int]]
) -> None:
    bounds = EngineLimits(
        max_model_len=100, max_num_seqs=4, max_num_batched_tokens=64, blocks=blocks, block_size=4
    )
    speculation = Speculation(acceptance=0.7, draft_tokens=drafted, draft_cost=0.1)
    timeline = Timeline(EngineCore(bounds, COSTLY, speculation))
    for number, (prompt, output) in enumerate(wanted):
        timeline.submit(EngineRequest(id=number, prompt_tokens=prompt, output_tokens=output))
    served = timeline.advance(math.inf)
    output_tokens = {request.request.id: request.output_tokens for request in served}
    assert output_tokens == {number: output for number, (_, output) in enumerate(wanted)}
    assert timeline.engine.counts.generated_tokens == sum(output_tokens.values())
    assert timeline.engine.free_blocks == blocks - 1
    assert timeline.engine.kv_tokens == 0


@pytest.mark.parametrize(("blocks", "batched"), [(257, 4096), (20_000, 1535)])
def test_limits_without_room_for_drafted_tokens_are_refused(blocks: int, batched: int) -> None:
    bounds = replace(LIMITS, blocks=blocks, max_num_batched_tokens=batched)
    with pytest.raises(ValueError, match="drafted tokens"):
        EngineCore(bounds, COSTLY, a_speculation())
