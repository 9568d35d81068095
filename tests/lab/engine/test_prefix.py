"""What the prefix cache finds, shares and forgets."""

import math
from dataclasses import replace

import pytest

from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore, Timeline
from tessera_lab.engine.requests import Allocator, EngineLimits, EngineRequest, EngineStep

SPEED = StepTime(weights=5e-3, kv_token=1e-6, token=1e-5)
# 32 usable blocks of 16 tokens.
LIMITS = EngineLimits(
    max_model_len=128, max_num_seqs=4, max_num_batched_tokens=512, blocks=33, prefix_cache=True
)


def a_request(number: int, prompt: int, *shared: int, output: int = 2) -> EngineRequest:
    return EngineRequest(
        id=number, prompt_tokens=prompt, output_tokens=output, shared_prefixes=shared
    )


def run(engine: EngineCore, *requests: EngineRequest) -> list[EngineStep]:
    """All steps until the engine is idle again."""
    for request in requests:
        assert engine.submit(request) is None
    return list(iter(engine.step, None))


def test_a_beginning_that_was_computed_before_is_not_computed_again() -> None:
    engine = EngineCore(LIMITS, SPEED)
    run(engine, a_request(0, 50, 1, 2, 3))
    steps = run(engine, a_request(1, 60, 1, 2, 9))
    assert (steps[0].prefill_tokens, steps[0].hit_tokens, steps[0].queried_tokens) == (28, 32, 60)
    assert steps[0].kv_tokens == 60
    [finished] = steps[-1].finished
    assert finished.cached_tokens == 32


def test_without_a_prefix_cache_nothing_is_found() -> None:
    engine = EngineCore(replace(LIMITS, prefix_cache=False), SPEED)
    run(engine, a_request(0, 50, 1, 2, 3))
    steps = run(engine, a_request(1, 50, 1, 2, 3))
    assert (steps[0].prefill_tokens, steps[0].hit_tokens, steps[0].queried_tokens) == (50, 0, 0)


def test_of_a_prompt_that_is_there_as_a_whole_the_last_block_is_computed_again() -> None:
    """The last token has to be computed, and a block is the least that can be."""
    engine = EngineCore(LIMITS, SPEED)
    run(engine, a_request(0, 48, 1, 2, 3))
    steps = run(engine, a_request(1, 48, 1, 2, 3))
    assert steps[0].prefill_tokens == 16


def test_requests_of_one_step_share_what_the_first_of_them_computes() -> None:
    engine = EngineCore(LIMITS, SPEED)
    for number in range(3):
        engine.submit(a_request(number, 50, 1, 2, 3))
    step = engine.step()
    assert step is not None
    assert step.prefill_tokens == 50 + 2 + 2
    assert engine.logical_blocks == 12
    assert engine.limits.blocks - 1 - engine.free_blocks == 6


def test_a_beginning_in_use_costs_the_second_request_no_blocks() -> None:
    engine = EngineCore(replace(LIMITS, blocks=10), SPEED)  # 9 usable blocks
    engine.submit(a_request(0, 100, 1, 2, 3, 4, 5, 6, output=20))
    engine.submit(a_request(1, 120, 1, 2, 3, 4, 5, 6, output=2))
    step = engine.step()
    assert step is not None
    assert step.admitted == (0, 1)
    assert engine.free_blocks == 0


@pytest.mark.parametrize(("prefixes", "cached_tokens"), [((1, 2, 3), 16), ((11, 12, 13), 48)])
def test_the_longest_unused_is_forgotten_first_and_an_end_before_its_beginning(
    prefixes: tuple[int, ...], cached_tokens: int
) -> None:
    engine = EngineCore(replace(LIMITS, blocks=10), SPEED)  # 9 usable blocks
    run(engine, a_request(0, 60, 1, 2, 3), a_request(1, 60, 11, 12, 13))
    run(engine, a_request(2, 50))  # takes the empty block, what the first had for itself, 3 and 2
    assert run(engine, a_request(3, 50, *prefixes))[0].hit_tokens == cached_tokens


def test_an_answer_is_a_cache_hit_for_the_next_turn_of_its_conversation() -> None:
    engine = EngineCore(LIMITS, SPEED)
    run(engine, a_request(0, 40, 1, 2, 3, 4, output=25))  # 64 tokens are computed of 65
    steps = run(engine, a_request(1, 90, 1, 2, 3, 4, 5))
    assert steps[0].hit_tokens == 64


def test_after_a_preemption_what_is_left_of_its_own_is_not_computed_again() -> None:
    limits = replace(LIMITS, blocks=9, max_num_batched_tokens=128)  # 8 usable blocks
    engine = EngineCore(limits, SPEED)
    with_cache = run(engine, a_request(0, 60, output=20), a_request(1, 62, output=20))
    engine = EngineCore(replace(limits, prefix_cache=False), SPEED)
    without = run(engine, a_request(0, 60, output=20), a_request(1, 62, output=20))
    again = [sum(step.prefill_tokens for step in steps) - 122 for steps in (with_cache, without)]
    assert 0 < again[0] < again[1]
    assert sum(step.queried_tokens for step in with_cache) == 122


def test_names_of_512_tokens_work_as_traces_have_them() -> None:
    limits = replace(
        LIMITS,
        max_model_len=8192,
        blocks=1001,
        max_num_batched_tokens=8192,
        shared_tokens=512,
    )
    engine = EngineCore(limits, SPEED)
    run(engine, a_request(0, 6758, *range(14)))
    [first, *_] = run(engine, a_request(1, 7322, 0, *range(14, 28)))
    assert first.hit_tokens == 512
    [again, *_] = run(engine, a_request(2, 6758, *range(14)))
    assert again.hit_tokens == 13 * 512


def test_everything_that_is_free_can_be_taken_though_it_holds_something() -> None:
    engine = EngineCore(LIMITS, SPEED)
    for number in range(40):
        run(engine, a_request(number, 100, *range(number * 10, number * 10 + 6)))
        assert engine.free_blocks == 32
    assert run(engine, a_request(99, 120))[0].admitted == (99,)


def test_the_more_of_a_prompt_is_there_the_sooner_its_first_token_comes() -> None:
    slow = StepTime(weights=1e-4, kv_token=0, token=1e-4)
    timeline, waits = Timeline(EngineCore(LIMITS, slow)), []
    for number, shared in enumerate(((1, 2, 3, 4, 5, 6), (), (1, 2, 3), (1, 2, 3, 4, 5, 6))):
        timeline.submit(a_request(number, 100, *shared))
        [served] = timeline.advance(math.inf)
        waits.append((served.cached_tokens, served.ttft_seconds))
    cached, seconds = zip(*waits[1:], strict=True)
    assert cached == (0, 48, 96)
    assert seconds[0] > seconds[1] > seconds[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared_tokens": 40}, "whole blocks"),
        ({"allocator": Allocator.CONTIGUOUS}, "paged"),
        ({"chunked_prefill": False, "max_num_batched_tokens": 127}, "chunks"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LIMITS, **changes)  # type: ignore[arg-type] # any field
