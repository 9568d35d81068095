"""A minute of one model's requests as JSON lines: what happened at each replica, and the choices.

`python -m tests.domain.picking.recording > tests/golden/picks.jsonl` records it again.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.picking.pick import Choice, pick
from tessera.domain.picking.prediction import RequestMeans
from tessera.domain.picking.replica_state import EngineLoad, ReplicaState
from tests.builders import NOW
from tests.gateway_builders import STEP, a_request, an_engine_replica

Line = list[Any]
MEANS = RequestMeans(prompt_tokens=700, output_tokens=150)

# Name, ready since, leaving, ratio of the step time, max_num_seqs.
CHANGES: tuple[Line, ...] = (
    ["replica", 0.0, "chat-0", -3600.0, False, 1.0, 32],
    ["replica", 0.0, "chat-1", -3600.0, False, 1.2, 32],
    ["replica", 0.0, "chat-2", None, False, 1.0, 64],
    ["replica", 15.0, "chat-2", 14.5, False, 1.0, 64],
    ["replica", 35.0, "chat-0", -3600.0, True, 1.0, 32],
    ["replica", 45.0, "chat-3", 45.0, False, None, 32],
    ["replica", 52.0, "chat-3", 45.0, False, 0.9, 32],
)


@dataclass(slots=True)
class Player:
    """Replicas that change by the lines of a recording, and the choices among them."""

    states: dict[str, ReplicaState] = field(default_factory=dict)
    turn: int = 0

    def play(self, line: Line) -> Choice | None:
        """Apply a line; return the choice of a `pick`."""
        match line:
            case ["replica", at, name, *description]:
                replica = _replica(name, *description)
                utc_now = NOW + timedelta(seconds=at)
                if name in self.states:
                    self.states[name].update(replica, now=at, utc_now=utc_now)
                else:
                    self.states[name] = ReplicaState.create(replica, now=at, utc_now=utc_now)
            case ["polled", at, name, running, waiting, kv_usage, adapters]:
                engine = EngineLoad(
                    running=running,
                    waiting=waiting,
                    kv_usage=kv_usage,
                    adapters=frozenset(adapters),
                    observed_at=at,
                )
                self.states[name].polled(engine)
            case ["first_token", _, name, tokens]:
                self.states[name].first_token(tokens)
                self.states[name].succeeded()
            case ["ended", _, name, unanswered_tokens]:
                self.states[name].ended(unanswered_tokens)
            case ["failed", at, name]:
                self.states[name].failed(at)
            case ["pick", at, tokens, adapter, *_]:
                self.turn += 1
                request = a_request(tokens, adapter=adapter)
                states = list(self.states.values())
                choice = pick(request, states, at, turn=self.turn, means=MEANS)
                if choice is not None:
                    choice.state.sent(tokens)
                return choice
            case _:
                raise ValueError(line)
        return None


def _replica(
    name: str, ready_after: float | None, leaving: bool, ratio: float | None, max_num_seqs: int
) -> EngineReplica:
    return an_engine_replica(
        name,
        ready_since=None if ready_after is None else NOW + timedelta(seconds=ready_after),
        leaving=leaving,
        step_time=STEP.scaled(ratio, "Measured") if ratio else None,
        max_num_seqs=max_num_seqs,
    )


def replay(lines: Iterable[str]) -> Iterator[tuple[Line, Line]]:
    """Yield the choice that each `pick` recorded, and the one that it makes now."""
    player = Player()
    for text in lines:
        line = json.loads(text)
        choice = player.play(line)
        if line[0] == "pick":
            yield line[4:], _chosen(choice)


def _chosen(choice: Choice | None) -> Line:
    if choice is None:
        return []
    return [choice.replica.pod.name, choice.reason.value, choice.predicted_ttft_seconds]


def record(seed: int) -> Iterator[str]:
    """Make up a minute: a replica starts, one fails for a while, one leaves, one has no speed."""
    for line in _events(Random(seed)):  # noqa: S311
        yield json.dumps(line)


def _events(random: Random) -> Iterator[Line]:
    player, at, next_poll = Player(), 0.0, 0.0
    awaiting: list[tuple[str, int]] = []
    decoding: list[str] = []
    changes = list(CHANGES)
    while at < 60:
        while changes and changes[0][1] <= at:
            yield _played(player, changes.pop(0))
        if at >= next_poll:
            next_poll = at + 1.5
            yield from [_played(player, _poll(random, at, name)) for name in player.states]
        at = round(at + random.expovariate(8), 4)
        event = random.choice(("pick", "pick", "first_token", "first_token", "ended", "failed"))
        if event == "pick":
            tokens = int(random.lognormvariate(6, 1.2)) + 1
            pick_line: Line = ["pick", at, tokens, random.choice((None, None, "sql"))]
            choice = player.play(pick_line)
            yield pick_line + _chosen(choice)
            if choice is not None:
                awaiting.append((choice.replica.pod.name, tokens))
        elif event == "first_token" and awaiting:
            name, tokens = awaiting.pop(random.randrange(len(awaiting)))
            decoding.append(name)
            yield _played(player, ["first_token", at, name, tokens])
        elif event == "ended" and decoding:
            name = decoding.pop(random.randrange(len(decoding)))
            yield _played(player, ["ended", at, name, None])
        elif event == "failed" and 20 < at < 30:
            yield _played(player, ["failed", at, "chat-1"])
            if (own := next((each for each in awaiting if each[0] == "chat-1"), None)) is not None:
                awaiting.remove(own)
                yield _played(player, ["ended", at, *own])


def _poll(random: Random, at: float, name: str) -> Line:
    running, waiting = random.randint(0, 30), random.choice((0, 0, 0, 2, 9))
    adapters = random.sample(("law", "sql"), random.randint(0, 2))
    return ["polled", at, name, running, waiting, round(random.random(), 3), adapters]


def _played(player: Player, line: Line) -> Line:
    player.play(line)
    return line


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in record(seed=18))
