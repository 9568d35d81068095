"""Replicas of one service that differ in speed, in room or in context."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.gateway.directory import EngineReplica, OfferedModel, model_changes
from tessera.domain.gateway.requests import RequestPriority
from tessera.domain.picking.pick import Exclusion, PickReason, pick
from tessera.domain.picking.prediction import work_seconds
from tessera.gateway.fleet.replicas import Replicas
from tests.gateway.harness import a_model, a_replica
from tests.gateway_builders import STEP, a_request

NOW = datetime(2026, 11, 22, tzinfo=UTC)
AT = 100.0


def large(name: str = "large", **changes: Any) -> EngineReplica:
    values = {
        "step_time": STEP,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "max_model_len": 32_768,
        **changes,
    }
    return a_replica("127.0.0.1:1", name, **values)


def small(name: str = "small", **changes: Any) -> EngineReplica:
    """Return one that takes three times as long for a step."""
    step = STEP.scaled(3, "Measured")
    return large(name, **{"step_time": step, "max_num_seqs": 20, "max_model_len": 8192, **changes})


def serving(*engines: EngineReplica) -> tuple[Replicas, OfferedModel]:
    model, replicas = a_model(*engines), Replicas(lambda: AT)
    replicas.update(model_changes((), (model,)), AT, NOW)
    return replicas, model


def fill(replicas: Replicas, model: OfferedModel, name: str, prompts: Sequence[int]) -> None:
    """Send prompts to the replica of this name."""
    states = [each for each in replicas.states(model) if each.replica.pod.name == name]
    for tokens in prompts:
        assert replicas.send(model, a_request(tokens), AT, states)


@given(
    contexts=st.lists(st.sampled_from([4096, 8192, 32_768, None]), min_size=1, max_size=6),
    context_tokens=st.integers(1, 60_000),
    turns=st.integers(1, 4),
)
def test_no_request_goes_to_a_replica_that_cannot_take_it_while_another_can(
    contexts: list[int | None], context_tokens: int, turns: int
) -> None:
    replicas, model = serving(
        *(large(f"chat-{at}", max_model_len=context) for at, context in enumerate(contexts))
    )
    shape = replace(a_request(context_tokens), context_tokens=context_tokens)
    able = {context for context in contexts if context is None or context >= context_tokens}
    longest = {max(context or 0 for context in contexts)}
    for _ in range(turns):
        sent = replicas.send(model, shape, AT, replicas.states(model), beyond_room=True, within=0.1)
        assert sent is not None
        assert sent.choice.replica.max_model_len in (able or longest)


def test_a_long_request_has_no_place_at_a_free_replica_of_a_short_context() -> None:
    replicas, model = serving(small(), large())
    fill(replicas, model, "large", [3000] * 3)
    room = replicas.with_room(model, AT)
    assert [state.replica.pod.name for state in room] == ["small"]
    long_request = replace(a_request(7900), context_tokens=8200)
    assert not replicas.taking(model, long_request, room)
    assert replicas.send(model, long_request, AT, room) is None
    sent = replicas.send(model, long_request, AT, replicas.states(model))
    assert sent is not None
    (excluded,) = sent.comparison.exclusions
    assert (excluded[0].replica.pod.name, excluded[1]) == ("small", Exclusion.CONTEXT_TOO_SHORT)


@pytest.mark.parametrize(
    ("tokens", "within", "name"),
    [
        # Both keep it, and the one with room has it first.
        (100, 1.0, "small"),
        # 6000 tokens take 0.54 s on the small one, and 0.4 s behind those on the large one.
        (6000, 0.45, "large"),
        # No one keeps it: what waits in the queue of an engine is bounded.
        (6000, 0.2, "small"),
    ],
)
def test_a_prompt_that_only_a_faster_replica_reads_in_time_goes_there_without_room(
    tokens: int, within: float, name: str
) -> None:
    replicas, model = serving(small(max_model_len=32_768), large())
    fill(replicas, model, "large", [2500, 2500])
    room = replicas.with_room(model, AT)
    assert [state.replica.pod.name for state in room] == ["small"]
    shape = a_request(tokens)
    predicted = replicas.predicted_ttft(model, shape, AT, room, within)
    sent = replicas.send(model, shape, AT, room, beyond_room=True, within=within)
    assert sent is not None
    assert (sent.choice.replica.pod.name, sent.choice.predicted_ttft_seconds) == (name, predicted)
    if name == "large":
        assert predicted <= within
        assert sent.choice.reason is PickReason.LEAST_PREDICTED_TTFT
        assert len(sent.choice.candidates) == 2


def test_a_replica_that_runs_all_its_sequences_is_not_faster() -> None:
    replicas, model = serving(small(max_model_len=32_768), large(max_num_seqs=2))
    fill(replicas, model, "large", [10] * 3)
    room = replicas.with_room(model, AT)
    sent = replicas.send(model, a_request(6000), AT, room, beyond_room=True, within=0.45)
    assert sent is not None
    assert sent.choice.replica.pod.name == "small"


@given(
    loads=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    tokens=st.integers(1, 9000),
    within=st.sampled_from([0.0, 0.1, math.inf]),
)
def test_equal_replicas_are_picked_by_their_ttft_alone(
    loads: list[int], tokens: int, within: float
) -> None:
    replicas, model = serving(*(large(f"chat-{at}") for at in range(len(loads))))
    for at, load in enumerate(loads):
        fill(replicas, model, f"chat-{at}", [900] * load)
    shape = replace(a_request(tokens), context_tokens=50_000)
    for turn, states in enumerate((replicas.with_room(model, AT), replicas.states(model)), 1):
        expected = pick(shape, states, AT, turn=sum(loads) + turn)
        sent = replicas.send(model, shape, AT, states, beyond_room=True, within=within)
        assert (expected and expected.replica) == (sent and sent.choice.replica)
        if sent is not None:
            break


def test_a_request_that_yields_goes_where_its_prompt_is_read_in_half_of_the_objective() -> None:
    replicas, model = serving(small(max_model_len=32_768), large())
    # 0.2 s on the large one, and 0.6 s on the small one; of an objective of 1 s.
    shape = replace(a_request(6500), priority=RequestPriority.SHEDDABLE)
    assert replicas.read_seconds(model, shape) == pytest.approx(0.22, abs=0.03)
    places = replicas.taking(model, shape, replicas.with_room(model, AT, yields=True))
    assert [state.replica.pod.name for state in places] == ["large"]
    short = replace(shape, input_tokens=3000)
    assert len(replicas.taking(model, short, replicas.states(model))) == 2


def test_a_prompt_is_late_alone_where_the_fastest_that_takes_it_is_too_slow() -> None:
    slow, fast = small(max_model_len=32_768), large(max_model_len=16_384)
    # 0.22 s on the large one, and 0.66 s on the small one.
    late = {}
    for name, engines in {"slow": [slow], "fast": [fast], "both": [slow, fast]}.items():
        replicas, model = serving(*engines)
        model = replace(model, ttft_seconds=0.4)
        late[name] = replicas.is_late_alone(model, a_request(6500), 6500)
        long = replace(a_request(6500), context_tokens=20_000)
        late[f"{name}, long"] = replicas.is_late_alone(model, long, 6500)
    assert late == {
        "slow": True,
        "slow, long": True,
        "fast": False,
        "fast, long": False,
        "both": False,
        "both, long": True,
    }
    none, model = serving()
    assert not none.is_late_alone(model, a_request(6500), 6500)


def test_the_work_of_a_request_is_what_all_replicas_do_together() -> None:
    engines = [small("small-1"), small("small-2"), large()]
    replicas, model = serving(*engines)
    shape = a_request(1000)
    means = replicas.means(model)
    rate = sum(1 / work_seconds(each, shape, means) for each in engines)
    assert replicas.work_seconds(model, shape) == pytest.approx(3 / rate)
    only_small, model = serving(small("small-1"), small("small-2"), large(ready_since=None))
    assert only_small.work_seconds(model, shape) == work_seconds(engines[0], shape, means)


def test_a_replica_without_a_known_speed_makes_all_take_requests_by_their_limits() -> None:
    replicas, model = serving(small(), large(step_time=None))
    counts = Counter[str]()
    for _ in range(42):
        sent = replicas.send(model, a_request(100), AT, replicas.states(model))
        assert sent is not None
        assert sent.choice.reason is PickReason.LEAST_IN_FLIGHT
        counts[sent.choice.replica.pod.name] += 1
    assert counts == {"large": 32, "small": 10}


def test_what_differs_is_forgotten_with_the_replica_that_did() -> None:
    replicas, model = serving(small(), large())
    assert replicas.differ(model)
    changed = replace(model, replicas=model.replicas[:1])
    replicas.update(model_changes((model,), (changed,)), AT, NOW)
    assert not replicas.differ(changed)
    replicas.update(model_changes((changed,), (model,)), AT, NOW)
    assert replicas.differ(model)
    replicas.update(model_changes((model,), ()), AT, NOW)
    assert not replicas.differ(model)
