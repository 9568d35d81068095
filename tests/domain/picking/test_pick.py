"""Which replica gets a request, and why."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.picking.health import ReplicaHealth
from tessera.domain.picking.pick import PickReason, pick, with_prefix, with_room
from tessera.domain.picking.prediction import RequestMeans
from tessera.domain.picking.replica_state import ReplicaState
from tests.builders import NOW
from tests.gateway_builders import (
    STEP,
    a_replica_state,
    a_request,
    an_engine_load,
    an_engine_replica,
)
from tests.gateway_simulation import ClosedLoop

EJECTED = ReplicaHealth(failures=3, ejected_until=10.0)


def picked(*states: ReplicaState, turn: int = 0, adapter: str | None = None) -> str | None:
    choice = pick(a_request(adapter=adapter), states, now=1.0, turn=turn)
    return choice.replica.pod.name if choice else None


def test_the_least_predicted_ttft_wins() -> None:
    busy = a_replica_state("busy", awaiting=3)
    idle = a_replica_state("idle", decoding=3)
    choice = pick(a_request(), (busy, idle), now=1.0)
    assert choice is not None
    assert (choice.replica.pod.name, choice.reason) == ("idle", PickReason.LEAST_PREDICTED_TTFT)
    assert choice.predicted_ttft_seconds == pytest.approx(0.025, rel=0.2)


def test_a_faster_replica_takes_more() -> None:
    slow = a_replica_state("slow", awaiting=2, step_time=STEP.scaled(4, "Measured"))
    fast = a_replica_state("fast", awaiting=5)
    assert picked(slow, fast) == "fast"


def test_cached_tokens_of_a_replica_need_no_time() -> None:
    states = (a_replica_state("cold"), a_replica_state("warm", awaiting=1))
    request = a_request(4000)
    choices = [
        pick(request, states, now=1.0, cached_tokens=cached) for cached in ((), (0, 0), (0, 3900))
    ]
    assert [choice and choice.replica.pod.name for choice in choices] == ["cold", "cold", "warm"]


@pytest.mark.parametrize(
    ("cached", "name", "reason"),
    [
        ((0, 3900), "busy", PickReason.CACHED_PREFIX),
        ((3900, 3900), "idle", PickReason.LEAST_PREDICTED_TTFT),
        ((3900, 0), "idle", PickReason.LEAST_PREDICTED_TTFT),
        ((0, 0), "idle", PickReason.LEAST_PREDICTED_TTFT),
    ],
)
def test_a_cached_prefix_is_the_reason_where_it_decides(
    cached: tuple[int, int], name: str, reason: PickReason
) -> None:
    states = (a_replica_state("idle"), a_replica_state("busy", awaiting=1))
    choice = pick(a_request(4000), states, now=1.0, cached_tokens=cached)
    assert choice is not None
    assert (choice.replica.pod.name, choice.reason) == (name, reason)
    assert choice.cached_tokens == cached[name == "busy"]


def test_a_cache_is_worth_a_detour_for_those_who_wait_for_the_prompt() -> None:
    idle, busy = a_replica_state("idle"), a_replica_state("busy", decoding=3)
    others = a_replica_state("other", decoding=30), a_replica_state("warm", decoding=33)
    for states, name in (((idle, busy), "idle"), (others, "warm")):
        choice = pick(a_request(2000), states, now=1.0, cached_tokens=(0, 1000))
        assert choice is not None
        assert choice.replica.pod.name == name


def test_a_cache_is_worth_no_detour_to_a_much_busier_replica() -> None:
    states = (a_replica_state("other", decoding=10), a_replica_state("warm", decoding=100))
    choice = pick(a_request(2000), states, now=1.0, cached_tokens=(0, 1000))
    assert choice is not None
    assert choice.replica.pod.name == "other"


def test_a_replica_that_reads_prompts_may_be_picked_for_those_that_begin_like_them() -> None:
    reading, full = a_replica_state("reading", awaiting=40), a_replica_state("full", decoding=300)
    idle = a_replica_state("idle")
    means = RequestMeans()
    states = reading, full, idle
    room = with_room(states, means, now=1.0)
    assert room == [idle]
    assert with_prefix(room, states, (0, 0, 0), now=1.0) == [idle]
    assert with_prefix(room, states, (900, 900, 0), now=1.0) == [reading, idle]
    assert with_room((reading, full), means, now=1.0) == []


def test_an_unknown_speed_falls_back_to_the_fewest_requests_for_the_limit() -> None:
    small = a_replica_state("small", decoding=10, max_num_seqs=16)
    large = a_replica_state("large", decoding=20, max_num_seqs=64, step_time=None)
    choice = pick(a_request(), (small, large), now=1.0)
    assert choice is not None
    assert (choice.replica.pod.name, choice.reason) == ("large", PickReason.LEAST_IN_FLIGHT)
    assert choice.predicted_ttft_seconds is None


def test_equal_replicas_take_turns() -> None:
    states = [a_replica_state(f"chat-{index}") for index in range(3)]
    names = [picked(*states, turn=turn) for turn in range(6)]
    assert names == ["chat-0", "chat-1", "chat-2"] * 2


def test_replicas_that_leave_or_are_not_ready_get_nothing() -> None:
    leaving = a_replica_state("leaving", leaving=True)
    starting = a_replica_state("starting", ready_since=None)
    busy = a_replica_state("busy", awaiting=100)
    assert picked(leaving, starting) is None
    choice = pick(a_request(), (leaving, starting, busy), now=1.0)
    assert choice is not None
    assert (choice.replica.pod.name, choice.reason) == ("busy", PickReason.ONLY_REPLICA)


def test_an_ejected_replica_gets_nothing_until_its_time_is_over() -> None:
    ejected, busy = a_replica_state("ejected"), a_replica_state("busy", awaiting=9)
    ejected.health = EJECTED
    assert picked(ejected, busy) == "busy"
    ejected.health = replace(EJECTED, ejected_until=0.9)
    assert picked(ejected, busy) == "ejected"


@given(st.lists(st.sampled_from([0.0, 5.0, 8.0, 9.0]), min_size=1, max_size=9))
def test_at_most_half_of_the_replicas_are_ejected(ejections: list[float]) -> None:
    states = [a_replica_state(f"chat-{index}") for index in range(len(ejections))]
    for state, until in zip(states, ejections, strict=True):
        state.health = ReplicaHealth(failures=3, ejected_until=until)
    open_states = with_room(states, RequestMeans(), now=1.0)
    assert len(open_states) >= -(-len(states) // 2)
    healthy = [state for state in states if not state.health.ejected_until]
    assert all(state in open_states for state in healthy)
    longest = max(state.health.ejected_until for state in open_states)
    excluded = [state for state in states if state not in open_states]
    assert all(state.health.ejected_until >= longest for state in excluded)


def test_a_replica_with_the_adapter_is_preferred_for_less_than_its_load() -> None:
    other, loaded = a_replica_state("other"), a_replica_state("loaded", awaiting=2)
    loaded.polled(an_engine_load(running=2, adapters=frozenset({"sql"})))
    assert picked(other, loaded) == "other"
    assert picked(other, loaded, adapter="sql") == "loaded"
    for _ in range(90):
        loaded.sent(1000)
    assert picked(other, loaded, adapter="sql") == "other"


def test_a_new_replica_begins_with_a_small_share() -> None:
    def share(seconds: float) -> float:
        now = 100.0
        old = a_replica_state("old", decoding=30)
        replica = an_engine_replica("new", ready_since=NOW - timedelta(seconds=seconds))
        new = ReplicaState.create(replica, now=now, utc_now=NOW)
        for turn in range(40):
            choice = pick(a_request(), (old, new), now, turn=turn)
            assert choice is not None
            choice.state.sent(512)
        return new.requests / 40

    shares = [share(seconds) for seconds in (0.0, 1.0, 2.5, 5.0)]
    assert shares == sorted(shares)
    assert shares[0] < 0.2
    assert shares[-1] == 0.5


@pytest.mark.parametrize("holds", [True, False], ids=["held in the gateway", "sent at once"])
@pytest.mark.parametrize("output_tokens", [100, 400, 800])
def test_a_second_replica_runs_its_share_of_60_clients_within_10_seconds(
    output_tokens: int, holds: bool
) -> None:
    loop = ClosedLoop(clients={"team-a": 60}, output_tokens=output_tokens, holds=holds)
    loop.add_engine("old")
    loop.run(until=30.0)
    new = loop.add_engine("new")
    loop.run(until=40.0)
    assert len(new.running) >= 0.4 * sum(len(engine.running) for engine in loop.engines)
    assert new.state.requests >= 0.4 * 60
