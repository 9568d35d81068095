import pytest

from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import (
    EngineLimits,
    EngineRequest,
    EngineStep,
    FinishedRequest,
    FinishReason,
    RejectionReason,
    SchedulingPolicy,
)

SPEED = StepTime(weights=5e-3, kv_token=1e-6, token=1e-5)


def an_engine(
    *,
    seqs: int = 4,
    batched: int = 64,
    blocks: int = 101,
    policy: SchedulingPolicy = SchedulingPolicy.FCFS,
    queued_requests: int | None = None,
    queued_tokens: int | None = None,
) -> EngineCore:
    limits = EngineLimits(
        max_model_len=128,
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        blocks=blocks,
        policy=policy,
        max_queued_requests=queued_requests,
        max_queued_tokens=queued_tokens,
    )
    return EngineCore(limits, SPEED)


def submit(engine: EngineCore, *shapes: tuple[int, int], priority: int = 0) -> list[int]:
    """Requests of (prompt, output) tokens, all of them accepted; their ids."""
    first = engine.waiting + engine.running
    ids = range(first, first + len(shapes))
    for number, (prompt, output) in zip(ids, shapes, strict=True):
        request = EngineRequest(
            id=number, prompt_tokens=prompt, output_tokens=output, priority=priority
        )
        assert engine.submit(request) is None
    return list(ids)


def step(engine: EngineCore) -> EngineStep:
    done = engine.step()
    assert done is not None
    return done


def run_until_idle(engine: EngineCore) -> list[EngineStep]:
    """All steps until the engine is idle."""
    return list(iter(engine.step, None))


def test_an_idle_engine_has_no_step() -> None:
    assert an_engine().step() is None


def test_the_prompts_step_emits_the_first_token_and_every_later_step_one_more() -> None:
    engine = an_engine()
    submit(engine, (20, 3))
    steps = run_until_idle(engine)
    assert [done.emitted for done in steps] == [(0,), (0,), (0,)]
    assert [done.first for done in steps] == [(0,), (), ()]
    assert [done.prefill_tokens for done in steps] == [20, 0, 0]
    assert [done.kv_tokens for done in steps] == [20, 21, 22]
    assert steps[-1].finished == (
        FinishedRequest(
            request=EngineRequest(id=0, prompt_tokens=20, output_tokens=3),
            reason=FinishReason.LENGTH,
            output_tokens=3,
            preemptions=0,
        ),
    )


def test_a_step_takes_what_the_performance_model_says() -> None:
    engine = an_engine()
    submit(engine, (20, 5), (30, 5))
    step(engine)
    submit(engine, (10, 5))
    assert step(engine).seconds == SPEED.seconds(decoding=2, kv_tokens=62, prefill_tokens=10)


def test_a_request_says_itself_why_its_last_token_is_the_last() -> None:
    engine = an_engine()
    engine.submit(
        EngineRequest(id=7, prompt_tokens=4, output_tokens=1, finish_reason=FinishReason.STOP)
    )
    [finished] = step(engine).finished
    assert finished.reason is FinishReason.STOP


def test_a_long_prompt_is_computed_in_chunks_beside_the_decoding_ones() -> None:
    engine = an_engine(batched=16)
    submit(engine, (10, 9), (40, 2))
    steps = [step(engine) for _ in range(4)]
    assert [done.prefill_tokens for done in steps] == [16, 15, 15, 4]
    assert [done.emitted for done in steps] == [(0,), (0,), (0,), (0, 1)]


def test_no_more_than_max_num_seqs_run_and_the_rest_wait() -> None:
    engine = an_engine(seqs=2)
    submit(engine, (5, 2), (5, 3), (5, 2))
    assert step(engine).admitted == (0, 1)
    assert (engine.running, engine.waiting) == (2, 1)
    assert [done.admitted for done in run_until_idle(engine)] == [(), (2,), ()]


def test_a_request_waits_until_blocks_for_its_whole_prompt_are_free() -> None:
    engine = an_engine(blocks=9, batched=16)  # 8 usable blocks
    submit(engine, (60, 2), (80, 2))
    steps = run_until_idle(engine)
    assert [done.admitted for done in steps if done.admitted] == [(0,), (1,)]
    assert engine.free_blocks == 8


def test_short_of_blocks_the_last_one_is_preempted_and_loses_no_token() -> None:
    engine = an_engine(blocks=9, batched=128)  # 8 usable blocks of 16 tokens
    submit(engine, (60, 20), (62, 20))
    steps = run_until_idle(engine)
    [(at, preempted)] = [(n, done.preempted) for n, done in enumerate(steps) if done.preempted]
    assert preempted == (1,)
    assert steps[at].emitted == (0,)
    assert sum(1 in done.emitted for done in steps) == 20
    assert [done.resumed for done in steps if done.resumed] == [(1,)]
    assert {f.request.id: f.preemptions for done in steps for f in done.finished} == {0: 0, 1: 1}


def test_by_arrival_a_priority_changes_nothing() -> None:
    engine = an_engine(seqs=1)
    submit(engine, (5, 1), (5, 1), priority=5)
    submit(engine, (5, 1), priority=-5)
    assert [done.admitted for done in run_until_idle(engine)] == [(0,), (1,), (2,)]


def test_by_priority_the_lower_number_goes_first_and_arrival_breaks_ties() -> None:
    engine = an_engine(seqs=1, policy=SchedulingPolicy.PRIORITY)
    submit(engine, (5, 1), priority=5)
    submit(engine, (5, 1), (5, 1), priority=-5)
    submit(engine, (5, 1), priority=0)
    assert [done.admitted for done in run_until_idle(engine)] == [(1,), (2,), (3,), (0,)]


def test_by_priority_the_worst_is_preempted() -> None:
    engine = an_engine(blocks=9, batched=128, policy=SchedulingPolicy.PRIORITY)
    submit(engine, (60, 20), priority=1)
    step(engine)
    submit(engine, (60, 20), priority=0)
    preempted = [done.preempted for done in run_until_idle(engine) if done.preempted]
    assert preempted == [(0,)]


def test_in_a_step_that_preempts_no_request_is_admitted() -> None:
    engine = an_engine(seqs=2, blocks=9, batched=128, policy=SchedulingPolicy.PRIORITY)
    submit(engine, (60, 20), priority=0)
    submit(engine, (62, 20), priority=1)
    step(engine)
    submit(engine, (5, 1), priority=0)
    steps = run_until_idle(engine)
    [at] = [number for number, done in enumerate(steps) if done.preempted]
    assert steps[at].admitted == ()
    assert steps[at + 1].admitted == (2,)


def test_an_aborted_request_leaves_at_once_with_what_it_got() -> None:
    engine = an_engine(seqs=1)
    submit(engine, (20, 9), (20, 9))
    step(engine)
    step(engine)
    running, waiting = engine.abort(0), engine.abort(1)
    assert running is not None
    assert (running.reason, running.output_tokens) == (FinishReason.ABORT, 2)
    assert waiting is not None
    assert waiting.output_tokens == 0
    assert engine.idle
    assert (engine.free_blocks, engine.kv_tokens, engine.queued_tokens) == (100, 0, 0)
    assert engine.abort(0) is None


def test_an_aborted_id_may_be_used_again_and_takes_its_place_at_the_end() -> None:
    engine = an_engine(seqs=1)
    submit(engine, (5, 1), (5, 1))
    engine.abort(0)
    engine.submit(EngineRequest(id=0, prompt_tokens=5, output_tokens=1))
    assert [done.admitted for done in run_until_idle(engine)] == [(1,), (0,)]


def test_the_queue_limit_counts_waiting_and_running() -> None:
    engine = an_engine(seqs=1, queued_requests=2)
    submit(engine, (5, 3))
    step(engine)
    submit(engine, (5, 3))
    refused = EngineRequest(id=9, prompt_tokens=5, output_tokens=3, priority=-9)
    assert engine.submit(refused) is RejectionReason.QUEUED_REQUESTS
    run_until_idle(engine)
    assert engine.submit(refused) is None


def test_the_token_limit_counts_prompts_without_a_first_token() -> None:
    engine = an_engine(seqs=1, queued_tokens=30)
    submit(engine, (29, 3), (29, 3))
    refused = EngineRequest(id=9, prompt_tokens=1, output_tokens=1)
    assert engine.submit(refused) is RejectionReason.QUEUED_TOKENS
    step(engine)
    assert engine.queued_tokens == 29
    assert engine.submit(refused) is None


def test_a_request_beyond_the_model_length_is_refused() -> None:
    request = EngineRequest(id=0, prompt_tokens=120, output_tokens=9)
    assert an_engine().submit(request) is RejectionReason.TOO_LONG


def test_an_id_that_is_present_cannot_be_submitted_again() -> None:
    engine = an_engine()
    submit(engine, (5, 3))
    with pytest.raises(ValueError, match="request 0"):
        engine.submit(EngineRequest(id=0, prompt_tokens=5, output_tokens=3))


@pytest.mark.parametrize(("blocks", "batched"), [(8, 64), (101, 3)])
def test_limits_that_no_engine_would_start_with_are_refused(blocks: int, batched: int) -> None:
    with pytest.raises(ValueError, match="max_"):
        an_engine(blocks=blocks, batched=batched)
