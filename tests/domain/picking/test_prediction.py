"""Predicted seconds until the first token, and whether one more request starts soon."""

from typing import Any

import pytest

from tessera.domain.picking.prediction import (
    ADAPTER_LOAD_SECONDS,
    RequestMeans,
    has_room,
    has_spare_room,
    is_late_alone,
    predicted_ttft,
    read_seconds,
    read_until,
    work_seconds,
)
from tessera.domain.picking.replica_state import ReplicaState
from tests.gateway_builders import STEP, a_replica_state, a_request, an_engine_load
from tests.gateway_builders import an_engine_replica as a_replica

MEANS = RequestMeans(prompt_tokens=512, output_tokens=128)


def ttft(state: ReplicaState, input_tokens: int = 512, cached_tokens: int = 0) -> float:
    request = a_request(input_tokens)
    return predicted_ttft(state, STEP, request, MEANS, 0.0, cached_tokens)


@pytest.mark.parametrize("input_tokens", [1, 500, 2048, 10_000, 30_000])
@pytest.mark.parametrize("cached_tokens", [0, 400])
def test_an_idle_replica_reads_the_prompt_alone(input_tokens: int, cached_tokens: int) -> None:
    state = a_replica_state(max_num_batched_tokens=2048)
    cached = min(cached_tokens, input_tokens - 1)
    alone = STEP.prefill_seconds(input_tokens, chunk=2048, cached=cached)
    assert ttft(state, input_tokens, cached) == pytest.approx(alone, rel=0.02)


def test_prompts_that_wait_are_read_first() -> None:
    full_step = STEP.seconds(decoding=0, kv_tokens=0, prefill_tokens=8192)
    state = a_replica_state(awaiting=64, max_num_seqs=256)
    assert ttft(state) == pytest.approx(4 * full_step, rel=0.15)


def test_waiting_requests_of_others_count_with_the_mean_prompt() -> None:
    own, foreign = a_replica_state(awaiting=30), a_replica_state()
    foreign.polled(an_engine_load(waiting=30))
    assert ttft(foreign) == ttft(own)


def test_a_full_replica_answers_when_sequences_end() -> None:
    step = STEP.seconds(decoding=64, kv_tokens=64 * 576)
    # One of 64 ends every 2 steps, since an answer takes 128.
    full = [ttft(a_replica_state(decoding=count, max_num_seqs=64)) for count in (63, 64)]
    assert full[1] - full[0] == pytest.approx(2 * step, rel=0.1)
    behind = [ttft(a_replica_state(decoding=64, awaiting=count)) for count in (40, 50)]
    assert behind[1] - behind[0] == pytest.approx(10 * 2 * step, rel=0.1)


def test_texts_that_generate_nothing_wait_for_no_sequence() -> None:
    means = RequestMeans(prompt_tokens=512, output_tokens=0).after(512, 0).after(2048, 7)
    assert means.output_tokens == 0
    assert means.prompt_tokens > 512
    full = a_replica_state(awaiting=64, max_num_seqs=64)
    seconds = predicted_ttft(full, STEP, a_request(512), means, 0.0)
    full_step = STEP.seconds(decoding=0, kv_tokens=0, prefill_tokens=8192)
    assert seconds == pytest.approx(4 * full_step, rel=0.2)
    replica = a_replica(max_num_seqs=64, max_num_batched_tokens=8192)
    assert work_seconds(replica, a_request(512), means) == pytest.approx(full_step / 16, rel=0.1)


def test_a_replica_with_a_full_cache_is_full() -> None:
    state = a_replica_state(decoding=10)
    state.polled(an_engine_load(running=10, kv_usage=0.2))
    roomy = ttft(state)
    state.polled(an_engine_load(running=10, kv_usage=1.0))
    assert ttft(state) > roomy + 0.05


def test_an_adapter_that_the_engine_does_not_use_costs_its_load() -> None:
    state = a_replica_state()
    state.polled(an_engine_load(adapters=frozenset({"sql"})))
    request = [a_request(adapter=adapter) for adapter in (None, "sql", "law")]
    base, known, unknown = [predicted_ttft(state, STEP, each, MEANS, 0.0) for each in request]
    assert known == base
    assert unknown == base + ADAPTER_LOAD_SECONDS


def test_every_request_more_takes_longer() -> None:
    seconds = [ttft(a_replica_state(awaiting=count)) for count in range(150)]
    assert seconds == sorted(seconds)
    seconds = [ttft(a_replica_state(decoding=count)) for count in range(150)]
    assert seconds == sorted(seconds)


def test_a_replica_has_room_for_a_second_prompt_that_is_longer_than_two_steps() -> None:
    def room(awaiting: int) -> bool:
        state = a_replica_state(awaiting=awaiting, max_num_seqs=30, max_num_batched_tokens=128)
        return has_room(state, MEANS, 0.0)

    assert [room(awaiting) for awaiting in range(4)] == [True, True, False, False]


def test_a_replica_has_room_until_its_sequences_and_two_steps_of_prompts_are_taken() -> None:
    def room(**fields: Any) -> bool:
        return has_room(a_replica_state(**fields), MEANS, 0.0)

    assert room(decoding=64)
    assert room(decoding=67)
    assert not room(decoding=68)
    assert room(awaiting=31, max_num_seqs=256)
    assert not room(awaiting=32, max_num_seqs=256)
    assert room(decoding=5000, max_num_seqs=None)


def yielding_until_full(*, decoding: int, max_num_seqs: int | None = 64) -> int:
    state, now = a_replica_state(decoding=decoding, max_num_seqs=max_num_seqs), 0.0
    while has_spare_room(state, now):
        state.sent(512, read_until=read_until(state, 512, 0, now), yields=True)
        assert not has_spare_room(state, now)
        now = state.read_until
    return state.yielding


def test_requests_that_yield_leave_half_of_the_rest_and_a_quarter_of_all() -> None:
    counts = [yielding_until_full(decoding=decoding) for decoding in (0, 20, 40, 48, 64, 70)]
    assert counts == [32, 22, 8, 0, 0, 0]
    assert yielding_until_full(decoding=0, max_num_seqs=1) == 1
    assert yielding_until_full(decoding=0, max_num_seqs=None) == 128


def test_requests_that_yield_begin_while_no_other_prompt_is_read() -> None:
    state = a_replica_state()
    for tokens in (100, 8192):
        state.sent(tokens, read_until=read_until(state, tokens, 0, 1.0))
    both = 1.0 + read_seconds(state.replica, 100) + read_seconds(state.replica, 8192)
    assert state.read_until == both
    # The first token of neither is seen: they are no streams.
    assert [has_spare_room(state, now) for now in (both - 0.01, both)] == [False, True]
    state.polled(an_engine_load(running=1, waiting=3))
    assert not has_spare_room(state, both)
    state.polled(an_engine_load(running=40))
    assert has_spare_room(state, both)
    unknown = a_replica_state(awaiting=1, step_time=None)
    assert not has_spare_room(unknown, 9.0)
    unknown.first_token(512)
    assert has_spare_room(unknown, 9.0)


@pytest.mark.parametrize("input_tokens", [1, 2048, 30_000])
@pytest.mark.parametrize("cached_tokens", [0, 400])
def test_a_prompt_is_read_as_fast_as_an_idle_replica_has_its_first_token(
    input_tokens: int, cached_tokens: int
) -> None:
    state = a_replica_state(max_num_batched_tokens=2048)
    seconds = read_seconds(state.replica, input_tokens, cached_tokens)
    assert seconds == pytest.approx(ttft(state, input_tokens + cached_tokens, cached_tokens))
    assert read_seconds(a_replica(step_time=None), input_tokens) == 0.0


def test_a_prompt_is_late_alone_where_it_is_read_too_long_after_the_step_under_way() -> None:
    replica = a_replica(max_num_batched_tokens=2048)
    seconds = read_seconds(replica, 10_000) + read_seconds(replica, 2048)
    assert is_late_alone(replica, 10_000, 0, 0.97 * seconds)
    assert not is_late_alone(replica, 10_000, 0, 1.03 * seconds)
    # The others are in the cache.
    assert not is_late_alone(replica, 2_000, 8_000, 0.97 * seconds)
    assert not is_late_alone(a_replica(step_time=None), 10_000, 0, 0.0)


def test_work_is_the_share_of_a_busy_replica() -> None:
    replica = a_replica(max_num_seqs=64)
    decode = STEP.seconds(decoding=64, kv_tokens=64 * 576)
    prefill = STEP.seconds(decoding=0, kv_tokens=0, prefill_tokens=8192)
    expected = 512 / 8192 * prefill + 128 / 64 * decode
    assert work_seconds(replica, a_request(512, 4096), MEANS) == pytest.approx(expected)
    short = work_seconds(replica, a_request(512, 1), MEANS)
    assert short == pytest.approx(512 / 8192 * prefill + decode / 64)


def test_without_a_speed_work_is_counted_in_tokens() -> None:
    replica = a_replica(step_time=None)
    assert work_seconds(replica, a_request(500, 100), MEANS) == pytest.approx(0.6)


def test_means_follow_the_last_requests() -> None:
    means = RequestMeans()
    for _ in range(200):
        means = means.after(2000, 20)
    assert means.prompt_tokens == pytest.approx(2000, rel=0.01)
    assert means.output_tokens == pytest.approx(20, rel=0.02)
