"""A day of requests as a gateway records them, drawn by a seed; a cause may be planted."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tessera.domain.economics.break_even import MONTH_DAYS
from tessera.domain.economics.forecast import UsageFactors
from tessera.domain.economics.measurement import LoggedRequest

DAY_SECONDS = 86_400
# Of lengths, which are log-normal; those of published chats vary as much or more.
_DEVIATION = 0.9
_THINK_SECONDS = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DayOfChats:
    """What the requests of a day are drawn from."""

    requests: int = 4500
    senders: int = 300
    """People, each with a key of his own; 1 is an application that sends for all."""
    prompt_tokens: float = 120
    hidden_tokens: int = 150
    most_turns: int = 5
    """Conversations have from 1 to as many turns, all equally often."""
    answer_tokens: float = 200
    retries: float = 0.02
    """How often a request is sent again: it fails, or its user asks once more."""

    @property
    def factors(self) -> UsageFactors:
        """The factors of a month of such days."""
        return UsageFactors(
            requests=self.requests * MONTH_DAYS,
            retries=self.retries,
            prompt_tokens=self.prompt_tokens,
            hidden_tokens=self.hidden_tokens,
            # Of a conversation drawn by one of its requests: sums of t and of t * (t - 1) / 2.
            turns=1 + 2 * (self.most_turns - 1) / 3,
            answer_tokens=self.answer_tokens,
            answers=1,
        )

    def records(self, seed: int) -> Sequence[LoggedRequest]:
        """Draw the day."""
        rng = random.Random(seed)  # noqa: S311 - not a secret
        records: list[LoggedRequest] = []
        conversations = round(self.requests / (self.most_turns + 1) * 2)
        for _ in range(conversations):
            sender = ("team-a", f"key-{rng.randrange(self.senders)}", "")
            records += self._conversation(rng, sender)
        return sorted(records, key=lambda record: record.started_at)

    def _conversation(self, rng: random.Random, sender: tuple[str, ...]) -> Sequence[LoggedRequest]:
        records: list[LoggedRequest] = []
        # Twice as many begin around noon as around midnight.
        at = rng.random() * DAY_SECONDS
        if rng.random() > 0.75 - 0.25 * math.cos(2 * math.pi * at / DAY_SECONDS):
            at = DAY_SECONDS / 4 + rng.random() * DAY_SECONDS / 2
        history = 0
        for _ in range(rng.randint(1, self.most_turns)):
            prompt = _length(rng, self.prompt_tokens)
            input_tokens = self.hidden_tokens + history + prompt
            while True:
                output_tokens = _length(rng, self.answer_tokens)
                seconds = 0.3 + 0.02 * output_tokens
                records.append(
                    LoggedRequest(
                        started_at=round(at, 3),
                        ended_at=round(at + seconds, 3),
                        sender=sender,
                        input_tokens=input_tokens,
                        output_tokens=output_tokens,
                    )
                )
                at += seconds
                if rng.random() >= self.retries / (1 + self.retries):
                    break
                at += rng.uniform(0.5, 10)
            history += prompt + output_tokens
            at += 5 + rng.expovariate(1 / _THINK_SECONDS)
        return records


def as_table(records: Sequence[LoggedRequest], service: str, started_at: int) -> str:
    """Return the records as CSV with columns of the gateway's table, from a Unix time on."""
    lines = ["started_at_ns,tenant,user,key,service,input_tokens,output_tokens,total_ns,requests"]
    for record in records:
        start_ns = started_at * 10**9 + round(record.started_at * 1000) * 10**6
        total_ns = round((record.ended_at - record.started_at) * 1000) * 10**6
        tenant, key, user = record.sender
        lines.append(
            f"{start_ns},{tenant},{user},{key},{service},{record.input_tokens},"
            f"{record.output_tokens},{total_ns},1"
        )
    return "\n".join(lines) + "\n"


def _length(rng: random.Random, mean: float) -> int:
    return max(1, round(rng.lognormvariate(math.log(mean) - _DEVIATION**2 / 2, _DEVIATION)))


# The day of examples/forecast: its forecast forgot the hidden prompt, and half of the answers.
EXAMPLE = DayOfChats(requests=2000, senders=150, hidden_tokens=1200, answer_tokens=400)


def example_text() -> str:
    """Return the file of the example."""
    return as_table(EXAMPLE.records(37), "team-a/chat", 1_795_132_800)
