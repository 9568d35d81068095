"""A recorded minute, replayed, makes the same choices."""

from pathlib import Path

from tessera.domain.picking.pick import PickReason
from tests.domain.picking.recording import record, replay

GOLDEN = Path(__file__).parents[2] / "golden" / "picks.jsonl"
# What is known of a prompt, and what the other replicas could not take, is no part of it.
_ELSEWHERE = {
    PickReason.CACHED_PREFIX,
    PickReason.CONVERSATION_OWNER,
    PickReason.ONLY_CANDIDATE,
}


def test_a_recorded_minute_makes_the_same_choices_again() -> None:
    choices = list(replay(GOLDEN.read_text(encoding="utf-8").splitlines()))
    assert [(recorded, now) for recorded, now in choices if recorded != now] == []
    assert {reason for (_, reason, _), _ in choices} == {*PickReason} - _ELSEWHERE
    assert {name for (name, _, _), _ in choices} == {"chat-0", "chat-1", "chat-2", "chat-3"}


def test_any_minute_makes_the_same_choices_again() -> None:
    for seed in range(20):
        assert all(recorded == now for recorded, now in replay(record(seed)))
