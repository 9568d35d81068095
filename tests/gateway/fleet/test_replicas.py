"""Replicas as a gateway sees them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tessera.domain.gateway.directory import OfferedModel, model_changes
from tessera.domain.gateway.prefixes import BLOCK_BYTES, PromptBlocks, block_hashes
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.perf.step import StepTime
from tessera.domain.picking.pick import Exclusion, PickReason
from tessera.domain.picking.prediction import read_seconds
from tessera.domain.picking.replica_state import EngineLoad, ReplicaState
from tessera.gateway.fleet.replicas import Replicas, SentRequest
from tests.gateway.harness import a_model, a_replica
from tests.gateway_builders import a_request

NOW = datetime(2026, 11, 22, tzinfo=UTC)
STEP = StepTime(weights=0.01, token=1e-5, kv_token=1e-8)
TEXT = "a long beginning " * 2000


def test_one_absurd_count_leaves_room_for_those_that_follow() -> None:
    model = a_model(a_replica("127.0.0.1:1", max_num_seqs=64, max_num_batched_tokens=8192))
    replicas = Replicas()
    replicas.update(model_changes((), (model,)), 0.0, NOW)
    replicas.learn(model, 10**9, 10**9)
    work = replicas.work_seconds(model, a_request())
    for _ in range(32):
        states = replicas.with_room(model, 1.0)
        assert states
        assert replicas.send(model, a_request(), 1.0, states)
    assert not replicas.with_room(model, 1.0)
    untouched = Replicas()
    untouched.update(model_changes((), (model,)), 0.0, NOW)
    assert work == untouched.work_seconds(model, a_request())


def serving(*names: str, **changes: Any) -> tuple[Replicas, OfferedModel]:
    model = a_model(*(a_replica("127.0.0.1:1", name, step_time=STEP, **changes) for name in names))
    replicas = Replicas(lambda: 100.0)
    replicas.update(model_changes((), (model,)), 100.0, NOW)
    return replicas, model


def ask(
    replicas: Replicas,
    model: OfferedModel,
    text: str,
    session: bytes | None = None,
    cached_share: float | None = None,
) -> SentRequest:
    """Send a prompt that is answered at once."""
    sent = send(replicas, model, text, session)
    sent.answered(10, cached_share)
    sent.end()
    return sent


def send(
    replicas: Replicas,
    model: OfferedModel,
    text: str,
    session: bytes | None = None,
    states: Sequence[ReplicaState] | None = None,
) -> SentRequest:
    shape = shape_of(text, session)
    sent = replicas.send(model, shape, 100.0, states or replicas.states(model))
    assert sent is not None
    return sent


def shape_of(text: str, session: bytes | None = None) -> RequestShape:
    prompt = PromptBlocks(
        owner="team-a",
        hashes=block_hashes(text.encode(), ""),
        tokens_per_block=BLOCK_BYTES,
        prompt_tokens=len(text),
        session=hash(session) if session else None,
    )
    return replace(a_request(len(text)), prompt=prompt)


def test_what_a_replica_has_of_a_prompt_is_not_late_alone() -> None:
    replicas, model = serving("chat-0", "chat-1")
    model = replace(model, ttft_seconds=1e-9)
    first = ask(replicas, model, TEXT)
    assert first.prompt is None
    shape = shape_of(TEXT)
    # All but its last block, of which an engine reads one token at least.
    tokens = 100 * len(TEXT)
    whole = read_seconds(first.choice.replica, tokens)
    model = replace(model, ttft_seconds=0.9 * whole)
    assert not replicas.is_late_alone(model, shape, tokens)
    assert replicas.is_late_alone(model, shape_of("others " + TEXT), tokens)


def test_a_replica_is_the_only_one_where_no_other_is_ready() -> None:
    replicas, model = serving("a", "b")
    first = replicas.states(model)[:1]
    assert send(replicas, model, TEXT, states=first).choice.reason is PickReason.ONLY_CANDIDATE
    alone, model = serving("a")
    assert send(alone, model, TEXT).choice.reason is PickReason.ONLY_REPLICA


def test_a_prompt_goes_to_the_replica_that_has_its_beginning() -> None:
    replicas, model = serving("chat-0", "chat-1", "chat-2")
    first = ask(replicas, model, TEXT).choice
    for _ in range(3):
        again = ask(replicas, model, TEXT + "and more")
        assert (again.choice.replica, again.choice.reason) == (
            first.replica,
            PickReason.CACHED_PREFIX,
        )
        assert again.prefill_tokens < len(TEXT) / 10


def test_what_a_replica_without_room_has_of_a_prompt_is_known_and_computed_again() -> None:
    replicas, model = serving("chat-0", "chat-1")
    holder = ask(replicas, model, TEXT).choice.state
    others = [state for state in replicas.states(model) if state is not holder]
    sent = send(replicas, model, TEXT, states=others)
    assert sent.predicted_cached_share == 0
    assert sent.known_prefix_share > 0.9
    assert sent.comparison.exclusions == [(holder, Exclusion.NO_ROOM)]


def test_an_engine_that_was_started_again_has_nothing() -> None:
    replicas, model = serving("chat-0", "chat-1")
    replica = ask(replicas, model, TEXT).choice.replica
    started = [
        replace(each, ready_since=NOW) if each == replica else each for each in model.replicas
    ]
    changed = replace(model, replicas=tuple(started))
    replicas.update(model_changes((model,), (changed,)), 100.0, NOW)
    assert ask(replicas, changed, TEXT).predicted_cached_share == 0


def test_a_replica_that_left_keeps_no_record() -> None:
    replicas, model = serving("chat-0")
    sent = send(replicas, model, TEXT)
    assert replicas.record_bytes > 0
    replicas.update(model_changes((model,), ()), 100.0, NOW)
    # Its answer is still under way.
    sent.answered(10, 0.5)
    sent.end()
    assert replicas.record_bytes == 0


def test_of_a_replica_that_left_nothing_is_kept_that_its_engine_wrote() -> None:
    replicas, model = serving("chat-0")
    (state,) = replicas.states(model)
    replicas.polled({state.replica.uid: EngineLoad(running=1, waiting=0, observed_at=100.0)})
    sent = send(replicas, model, TEXT)
    assert sent.choice.state.engine is not None
    replicas.update(model_changes((model,), ()), 100.0, NOW)
    assert sent.choice.state.engine is None
    sent.end()
    assert state.requests == 0


def test_a_request_without_an_answer_left_nothing_in_the_cache() -> None:
    replicas, model = serving("chat-0")
    sent = send(replicas, model, TEXT)
    sent.end()
    assert ask(replicas, model, TEXT).predicted_cached_share == 0


def test_a_session_is_preferred_where_its_prompts_differ_in_their_text() -> None:
    replicas, model = serving("chat-0", "chat-1", "chat-2")
    first = ask(replicas, model, f"1 {TEXT}", session=b"x").choice.replica
    for number in range(2, 6):
        assert ask(replicas, model, f"{number} {TEXT}", session=b"x").choice.replica is first


def test_a_session_whose_prompts_are_not_alike_is_preferred_no_more() -> None:
    replicas, model = serving("chat-0", "chat-1", "chat-2")
    for number in range(2):
        ask(replicas, model, f"{number} {TEXT}", session=b"x", cached_share=0.0)
    sent = [ask(replicas, model, f"{number} {TEXT}", session=b"x") for number in range(2, 8)]
    assert {each.predicted_cached_share for each in sent} == {0}
    assert len({each.choice.replica.uid for each in sent}) == 3


def test_a_session_of_thousands_does_not_fill_its_replica_alone() -> None:
    replicas, model = serving("chat-0", "chat-1", "chat-2")
    ask(replicas, model, TEXT, session=b"x")
    picks = Counter[str]()
    for number in range(60):
        sent = send(replicas, model, f"{number} {TEXT}", session=b"x")
        picks[sent.choice.replica.uid] += 1
    assert max(picks.values()) <= 30


def test_a_first_token_that_is_predicted_after_the_end_counts_for_nothing() -> None:
    replicas, model = serving("chat-0")
    sent = ask(replicas, model, TEXT)
    sent.first_token()
    (state,) = replicas.states(model)
    assert (state.requests, state.awaiting, state.prefill_tokens) == (0, 0, 0)


def test_prompts_of_clients_that_left_keep_no_room_from_what_yields() -> None:
    replicas, model = serving("chat-0")
    for _ in range(100):
        send(replicas, model, "x" * 100_000).end()
    assert replicas.with_room(model, 100.0, yields=True)


def test_a_prompt_that_was_read_sooner_than_predicted_keeps_no_room_from_what_yields() -> None:
    replicas, model = serving("chat-0")
    waits, long = send(replicas, model, "y" * 1000), send(replicas, model, "x" * 1_000_000)
    long.first_token()
    assert not replicas.with_room(model, 100.0, yields=True)
    # What is left to be read is the short one.
    assert replicas.with_room(model, 100.1, yields=True)
    waits.first_token()
    assert replicas.with_room(model, 100.0, yields=True)
