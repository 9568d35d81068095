"""Counts of requests: own and others', as polled and since."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.picking.health import HEALTHY
from tessera.domain.picking.replica_state import ReplicaState
from tests.builders import NOW
from tests.gateway_builders import a_replica_state, an_engine_load, an_engine_replica


def test_what_was_sent_since_the_poll_counts_on_top_of_it() -> None:
    state = a_replica_state(decoding=2, awaiting=1)
    state.polled(an_engine_load(running=10, waiting=4))
    assert state.load(now=1.0) == (10, 4)
    state.sent(100)
    assert state.load(now=1.0) == (10, 5)
    state.first_token(100)
    assert state.load(now=1.0) == (11, 4)
    state.ended()
    assert state.load(now=1.0) == (10, 4)


def test_an_old_poll_counts_no_more() -> None:
    state = a_replica_state(decoding=2)
    state.polled(an_engine_load(running=10))
    assert state.load(now=5.0) == (10, 0)
    assert state.load(now=5.1) == (2, 0)


def test_an_engine_that_reports_less_than_was_sent_has_no_negative_load() -> None:
    state = a_replica_state(decoding=5, awaiting=5)
    state.polled(an_engine_load(running=1))
    assert state.load(now=0.0) == (5, 5)


@given(st.lists(st.tuples(st.integers(1, 9000), st.booleans())))
def test_a_state_without_requests_counts_nothing(requests: list[tuple[int, bool]]) -> None:
    state = a_replica_state()
    for tokens, _ in requests:
        state.sent(tokens)
    for tokens, is_answered in requests:
        if is_answered:
            state.first_token(tokens)
        state.ended(None if is_answered else tokens)
    assert (state.requests, state.awaiting, state.prefill_tokens) == (0, 0, 0)


def test_the_cache_limits_sequences_as_the_running_ones_use_it() -> None:
    state = a_replica_state(max_num_seqs=64)
    assert state.max_sequences == 64
    state.polled(an_engine_load(running=20, kv_usage=0.5))
    assert state.max_sequences == 40
    state.polled(an_engine_load(running=0, kv_usage=0.0))
    assert state.max_sequences == 64


def test_a_replica_that_is_ready_again_starts_slowly_again() -> None:
    state = a_replica_state(ready_since=NOW - timedelta(hours=1))
    assert state.ready_at == -3600
    state.update(an_engine_replica(ready_since=None), now=10.0, utc_now=NOW)
    assert state.ready_at is None
    state.update(an_engine_replica(ready_since=NOW), now=20.0, utc_now=NOW)
    assert state.ready_at == 20


def test_a_clock_behind_that_of_the_cluster_makes_no_replica_ready_in_the_future() -> None:
    replica = an_engine_replica(ready_since=NOW + timedelta(minutes=1))
    assert ReplicaState.create(replica, now=7.0, utc_now=NOW).ready_at == 7


def test_a_success_forgets_failures() -> None:
    state = a_replica_state()
    for _ in range(3):
        state.failed(now=0.0)
    assert state.health.ejected_until == 5
    state.succeeded()
    assert state.health == HEALTHY
