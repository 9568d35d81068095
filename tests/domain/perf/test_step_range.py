"""The ends of the error of step times."""

import pytest

from tessera.domain.hardware.device import whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.perf.roofline import roofline
from tessera.domain.perf.sources import step_time
from tessera.domain.perf.step import StepTime
from tessera.domain.perf.step_range import fastest_step
from tessera.domain.perf.table import family_of, peak_shares, shipped_speed_table
from tests.builders import A100, H100

SHAPE = models()["meta-llama/Llama-3.1-8B-Instruct"]


def test_decoding_and_prompts_err_by_their_own_shares() -> None:
    hardware = whole_gpu_hardware(products()[H100], 1)
    step = step_time(SHAPE, None, hardware)
    assert step.error is not None
    fast = fastest_step(step, SHAPE, None, hardware)
    assert (fast.weights, fast.pair) == pytest.approx(
        (step.weights / (1 + step.error.decode), step.pair / (1 + step.error.prompts))
    )


@pytest.mark.parametrize("product", [A100, H100])
def test_4_bits_may_be_read_as_fast_as_by_16_bit_kernels(product: str) -> None:
    hardware, table = whole_gpu_hardware(products()[product], 1), shipped_speed_table()
    family = family_of(table, product)
    assert family is not None
    shares = peak_shares(table.host, family, family.arithmetic["bf16"])
    wide = roofline(SHAPE, "awq-int4", hardware, shares)
    fastest = fastest_step(step_time(SHAPE, "awq-int4", hardware), SHAPE, "awq-int4", hardware)
    for decoding in (1, 32, 128):
        load = {"decoding": decoding, "kv_tokens": 512 * decoding}
        assert fastest.seconds(**load) <= wide.seconds(**load)


def test_a_step_time_that_was_given_has_no_range() -> None:
    step = StepTime(weights=1e-3, kv_token=1e-9, token=1e-6)
    hardware = whole_gpu_hardware(products()[H100], 1)
    assert fastest_step(step, SHAPE, None, hardware) is step
