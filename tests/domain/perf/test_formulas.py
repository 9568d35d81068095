"""Rules of thumb about speed that can be checked by hand: the form of a step must give them."""

import math
from decimal import Decimal

import pytest

from tessera.domain.money import money, per_million_tokens
from tessera.domain.perf.footprint import kv_bytes_per_token, weight_bytes
from tessera.domain.perf.roofline import min_read_seconds
from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore, ServedRequest, Timeline
from tessera_lab.engine.requests import EngineLimits, EngineRequest

GIB = 2**30
HOUR = money(Decimal("3.50"), "USD")


def bare(*, weights: float = 0.0, token: float = 0.0, fixed: float = 0.0) -> StepTime:
    """A step that costs nothing but what is named."""
    return StepTime(weights=weights, kv_token=0.0, token=token, sequence=0.0, fixed=fixed)


@pytest.mark.parametrize(("bits", "per_second"), [(16, 1e12), (4, 4e12)])
def test_an_a100_reads_a_trillion_wide_weights_a_second_and_four_of_the_narrow_ones(
    bits: int, per_second: float
) -> None:
    assert 1 / min_read_seconds(bits / 8, 2e12) == per_second


@pytest.mark.parametrize(
    ("devices", "bits", "milliseconds"), [(1, 16, 70.0), (2, 16, 35.0), (1, 4, 17.5)]
)
def test_a_step_of_70b_takes_what_reading_its_weights_takes(
    devices: int, bits: int, milliseconds: float
) -> None:
    least_seconds = min_read_seconds(weight_bytes(70 * 10**9, bits), devices * 2e12)
    assert bare(weights=least_seconds).seconds(decoding=1, kv_tokens=0) * 1e3 == pytest.approx(
        milliseconds
    )


@pytest.mark.parametrize(
    ("batch", "tokens_per_second", "price"),
    [(1, 57.1, 17.01), (8, 457.1, 2.127), (16, 914.3, 1.063), (32, 1828.6, 0.532)],
)
def test_70b_in_four_bits_at_the_least_time_gets_cheaper_with_the_batch(
    batch: int, tokens_per_second: float, price: float
) -> None:
    step = bare(weights=min_read_seconds(weight_bytes(70 * 10**9, 4), 2e12))
    rate = batch / step.seconds(decoding=batch, kv_tokens=0)
    assert rate == pytest.approx(tokens_per_second, rel=1e-3)
    cost = per_million_tokens(HOUR, rate).rounded(6)
    assert float(cost) == pytest.approx(price, rel=1e-3)


def test_against_ninety_cents_a_million_it_takes_a_batch_of_nineteen() -> None:
    step = bare(weights=min_read_seconds(weight_bytes(70 * 10**9, 4), 2e12))

    def price(batch: int) -> float:
        rate = batch / step.seconds(decoding=batch, kv_tokens=0)
        return float(per_million_tokens(HOUR, rate).rounded(6))

    assert price(19) < 0.90 < price(18)


@pytest.mark.parametrize(
    ("heads", "gib", "of_gigabytes", "of_gibibytes"), [(32, 2.0, 29, 32), (8, 0.5, 119, 128)]
)
def test_sequences_of_4096_tokens_in_64_gb_depend_on_the_kv_heads(
    heads: int, gib: float, of_gigabytes: int, of_gibibytes: int
) -> None:
    sequence = kv_bytes_per_token(32, heads, 128) * 4096
    assert sequence == gib * GIB
    assert (64 * 10**9 // sequence, 64 * GIB // sequence) == (of_gigabytes, of_gibibytes)


@pytest.mark.parametrize(
    ("shared", "prompt", "saving"), [(200, 500, 0.40), (1200, 2000, 0.60), (5000, 5500, 0.909)]
)
def test_a_shared_beginning_saves_its_share_of_reading_the_prompt(
    shared: int, prompt: int, saving: float
) -> None:
    step = bare(token=1e-5)
    part = step.prefill_seconds(prompt, chunk=8192, cached=shared)
    assert 1 - part / step.prefill_seconds(prompt, chunk=8192) == pytest.approx(saving, abs=1e-3)


def alone(step: StepTime, output: int) -> ServedRequest:
    limits = EngineLimits(
        max_model_len=4096, max_num_seqs=8, max_num_batched_tokens=4096, blocks=300
    )
    timeline = Timeline(EngineCore(limits, step))
    timeline.submit(EngineRequest(id=0, prompt_tokens=100, output_tokens=output))
    [served] = timeline.advance(math.inf)
    return served


@pytest.mark.parametrize(("rate", "milliseconds"), [(15, 66.67), (30, 33.33), (60, 16.67)])
def test_what_a_user_reads_in_a_second_is_one_over_the_time_of_a_token(
    rate: float, milliseconds: float
) -> None:
    between = alone(bare(fixed=milliseconds / 1e3), 200).tpot_seconds
    assert between is not None
    assert 1 / between == pytest.approx(rate, rel=1e-3)


def test_ten_times_the_answer_takes_ten_times_as_long_and_less_with_a_long_first_token() -> None:
    def ratio(step: StepTime) -> float:
        return alone(step, 1000).ended_at / alone(step, 100).ended_at

    assert ratio(bare(fixed=0.02)) == pytest.approx(10)
    assert 5 < ratio(bare(fixed=0.02, token=0.01)) < 10


def test_a_whole_answer_takes_its_first_token_and_all_the_others() -> None:
    served = alone(bare(fixed=0.02, token=0.001), 251)
    first, between = served.ttft_seconds, served.tpot_seconds
    assert first is not None
    assert between is not None
    assert served.ended_at == pytest.approx(first + 250 * between)
