"""Conversations: prompts that begin with all that was said before, after a system prompt."""

import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tessera_lab.fleet.generators import LONGEST_OUTPUT, LONGEST_PROMPT, arrival_times
from tessera_lab.fleet.trace import Trace, TurnSpans
from tessera_lab.load.lengths import LengthDistribution, log_normal

# Tokens of a block of the engine, which is what its prefix cache finds.
_BLOCK = 16
_QUESTIONS = log_normal(60.0, 400.0)
_ANSWERS = log_normal(150.0, 500.0)


class _Turn(NamedTuple):
    arrival: float
    prompt_tokens: int
    output_tokens: int
    tenant: int
    prefixes: tuple[int, ...]
    spans: TurnSpans


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """Sessions of several turns; each tenant has a system prompt that no other has."""

    tenants: int = 1
    system_tokens: int = 1200
    turns: int = 6
    questions: LengthDistribution = _QUESTIONS
    answers: LengthDistribution = _ANSWERS
    think_seconds: float = 30.0
    """Mean time, exponentially distributed, from the end of an answer to the next question."""
    token_seconds: float = 0.033
    """Time of a token of an answer; arrivals are fixed, so it is an estimate."""

    def draw(self, sessions_per_second: float, seconds: float, seed: int) -> Trace:
        """Return the turns within a window in which sessions begin as a Poisson process."""
        rng = random.Random(seed)  # noqa: S311 - not a secret
        # Names of the blocks of system prompts come before those of sessions.
        blocks = self.tenants * (self.system_tokens // _BLOCK)
        turns = list[_Turn]()
        for begin in arrival_times(lambda _: sessions_per_second, seconds, rng):
            session = list(self._session(begin, blocks, rng))
            blocks += len(session[-1].prefixes)
            turns += [turn for turn in session if turn.arrival < seconds]
        turns.sort()
        return Trace(
            name="conversations",
            seconds=seconds,
            arrivals=array("d", (turn.arrival for turn in turns)),
            input_tokens=array("i", (turn.prompt_tokens for turn in turns)),
            output_tokens=array("i", (turn.output_tokens for turn in turns)),
            clients=array("i", (turn.tenant for turn in turns)),
            prefixes=tuple(turn.prefixes for turn in turns),
            prefix_tokens=_BLOCK,
            turns=tuple(turn.spans for turn in turns),
        )

    def _session(self, begin: float, first_block: int, rng: random.Random) -> Iterator[_Turn]:
        """Yield the turns of a session, whose own blocks have names from `first_block` on."""
        tenant = rng.randrange(self.tenants)
        system_blocks = self.system_tokens // _BLOCK
        system = range(tenant * system_blocks, (tenant + 1) * system_blocks)
        arrival, context = begin, self.system_tokens
        opening = 0
        for _ in range(self.turns):
            prompt = context + self.questions.draw(rng)
            output = min(self.answers.draw(rng), LONGEST_OUTPUT)
            if prompt > LONGEST_PROMPT and context > self.system_tokens:
                return
            prompt = min(prompt, LONGEST_PROMPT)
            earlier = context if opening else 0
            opening = opening or prompt
            spans = TurnSpans(first_block, tenant, self.system_tokens, opening, earlier)
            context = prompt + output
            own = context // _BLOCK - system_blocks
            prefixes = (*system, *range(first_block, first_block + own))
            yield _Turn(arrival, prompt, output, tenant, prefixes, spans)
            arrival += output * self.token_seconds + rng.expovariate(1 / self.think_seconds)
