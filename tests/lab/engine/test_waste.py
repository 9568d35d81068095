import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_lab.engine.waste import (
    block_token_steps,
    cached_token_steps,
    padding_waste,
    slot_waste,
)


def test_padding_is_counted_for_each_request_and_for_the_batch() -> None:
    waste = padding_waste([50, 150, 200, 500])
    assert waste.requests == pytest.approx((0.90, 0.70, 0.60, 0.0))
    assert waste.batch == pytest.approx(0.55)


def test_a_short_request_leaves_almost_all_of_a_long_slot_empty() -> None:
    assert slot_waste(50, 2048) == pytest.approx(0.97559, abs=1e-5)


def test_lengths_that_are_evenly_spread_leave_half_of_their_slots_empty() -> None:
    lengths = range(50, 2049)
    mean = sum(slot_waste(length, 2048) for length in lengths) / len(lengths)
    assert mean == pytest.approx(0.4878, abs=1e-4)


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 20))
def test_tokens_over_steps_are_what_adding_step_by_step_gives(
    prompt: int, output: int, block: int
) -> None:
    steps = range(prompt, prompt + output)
    assert cached_token_steps(prompt, output) == sum(steps)
    assert block_token_steps(prompt, output, block) == sum(-(-n // block) * block for n in steps)
