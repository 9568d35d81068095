"""Where a request went, and why."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tessera.domain.explain.request import (
    AttemptExplanation,
    RequestExplanation,
    explain_attempt,
)
from tessera.domain.picking.health import ReplicaHealth
from tessera.domain.picking.owners import Ownership
from tessera.domain.picking.pick import Comparison, Exclusion, PickReason, exclusion, pick
from tessera.domain.picking.replica_state import ReplicaState
from tests.gateway_builders import a_replica_state, a_request


def explained(
    *states: ReplicaState,
    cached: Sequence[int] = (),
    held_tokens: Sequence[int] = (),
    owned: Ownership | None = None,
) -> AttemptExplanation:
    choice = pick(a_request(4000), states, 0.0, cached_tokens=cached, owned=owned)
    assert choice is not None
    return explain_attempt(choice, Comparison(states, held_tokens, 4000, ()))


IDLE, BUSY = a_replica_state("chat-0"), a_replica_state("chat-1", decoding=2)
OWNED = Ownership(
    uid=BUSY.replica.uid,
    is_of_beginning=False,
    promised_tokens=0,
    expected_tokens=0,
    saved_tokens=1e4,
)
UNKNOWN = a_replica_state("chat-2", step_time=None)


@pytest.mark.parametrize(
    ("explanation", "reason", "sentence"),
    [
        (explained(IDLE), PickReason.ONLY_REPLICA, "chat-0 was the only replica that could"),
        (
            explained(BUSY, IDLE),
            PickReason.LEAST_PREDICTED_TTFT,
            "chat-0 would give the first token after .* ms, and chat-1, the next best, after",
        ),
        (
            explained(BUSY, IDLE, cached=(3900, 0), held_tokens=(3000, 0)),
            PickReason.CACHED_PREFIX,
            "chat-1 had 3000 tokens of the prompt cached, and chat-0 0; else chat-0",
        ),
        (
            explained(BUSY, IDLE, cached=(3900, 0), held_tokens=(0, 0)),
            PickReason.CACHED_PREFIX,
            "chat-1 had the last prompt of its session; else chat-0",
        ),
        (
            explained(BUSY, IDLE, owned=OWNED),
            PickReason.CONVERSATION_OWNER,
            "chat-1 owns this conversation: .* Else chat-0 would have got it",
        ),
        (
            explained(BUSY, UNKNOWN),
            PickReason.LEAST_IN_FLIGHT,
            "chat-2 had the fewest requests relative to its maxNumSeqs, before chat-1",
        ),
    ],
)
def test_each_reason_has_a_sentence_with_its_numbers(
    explanation: AttemptExplanation, reason: PickReason, sentence: str
) -> None:
    assert explanation.reason is reason
    assert re.match(sentence, explanation.message), explanation.message


def test_the_chosen_replica_comes_first_and_the_share_is_of_the_prompt() -> None:
    replicas = explained(BUSY, IDLE, cached=(0, 1000), held_tokens=(0, 1000)).replicas
    assert [(each.replica, each.cached_share) for each in replicas] == [
        ("chat-0", 0.25),
        ("chat-1", 0.0),
    ]


def test_a_replica_that_was_not_compared_says_why() -> None:
    state = a_replica_state()
    ejected = replace(state, health=ReplicaHealth(ejected_until=10.0))
    leaving = replace(state, replica=replace(state.replica, leaving=True))
    unready = replace(state, ready_at=None)
    assert [exclusion(each, 5.0) for each in (state, ejected, leaving, unready)] == [
        Exclusion.NO_ROOM,
        Exclusion.EJECTED,
        Exclusion.DRAINING,
        Exclusion.NOT_READY,
    ]


def test_the_explanation_of_a_gateway_of_the_version_before_is_read() -> None:
    fields: dict[str, Any] = {
        **dict.fromkeys(RequestExplanation.model_fields, 0),
        **dict.fromkeys(("request_id", "tenant", "key", "service", "model", "reason"), "x"),
        **{"started_at": "2026-11-28T12:00:00Z", "attempts": (), "phase": "Completed"},
        "estimated": False,
    }
    for name in ("path", "model_route", "provider", "target", "target_reason", "skipped_targets"):
        del fields[name]
    of_before = RequestExplanation.model_validate({**fields, "route": "/score"})
    assert of_before == RequestExplanation.model_validate({**fields, "path": "/score"})
    assert of_before.model_dump(by_alias=True)["path"] == "/score"
