"""Loads with the lengths of typical uses, drawn by a seed."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from tessera_lab.engine.play import TimedRequest
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.engine.setup import BLOCK_TOKENS
from tessera_lab.load.lengths import LengthDistribution, fixed_length, log_normal
from tessera_lab.load.trace_rows import MAX_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadMix:
    """Lengths of prompts and outputs; each is drawn on its own and cut to its bounds."""

    name: str
    prompts: LengthDistribution
    outputs: LengthDistribution
    prompt_bounds: tuple[int, int] = (1, MAX_TOKENS)
    output_bounds: tuple[int, int] = (1, MAX_TOKENS)
    system_tokens: int = 0
    """Tokens of a system prompt before every prompt; their whole blocks are shared prefixes."""

    def draw(
        self, count: int, rate: float | None = None, seed: int = 1
    ) -> tuple[TimedRequest, ...]:
        """Return so many requests: Poisson arrivals at a rate per second, or all at 0.

        The same seed gives the same lengths at every rate, and the same arrivals but for their
        scale. `count` of them arrive in exactly `count / rate` seconds.
        """
        lengths = random.Random(seed)  # noqa: S311 - not a secret
        moments = random.Random(seed)  # noqa: S311 - not a secret
        seconds = 0.0 if rate is None else count / rate
        shared = tuple(range(self.system_tokens // BLOCK_TOKENS))
        requests: list[TimedRequest] = []
        # Poisson arrivals are uniform where their number is known.
        for number, share in enumerate(sorted(moments.random() for _ in range(count))):
            prompt = self.system_tokens + _bounded(self.prompts.draw(lengths), self.prompt_bounds)
            output = _bounded(self.outputs.draw(lengths), self.output_bounds)
            request = EngineRequest(
                id=number, prompt_tokens=prompt, output_tokens=output, shared_prefixes=shared
            )
            requests.append(TimedRequest(share * seconds, request))
        return tuple(requests)


def _bounded(length: int, bounds: tuple[int, int]) -> int:
    least, most = bounds
    return min(max(length, least), most)


# Log-normal between 10 and 2,000: their geometric mean, and two standard deviations to each.
_CHAT_LENGTHS = log_normal(141.4, 1249.0)
CHAT = LoadMix(
    name="chat",
    prompts=_CHAT_LENGTHS,
    outputs=_CHAT_LENGTHS,
    prompt_bounds=(10, 2000),
    output_bounds=(10, 2000),
)
RAG = LoadMix(
    name="rag",
    prompts=fixed_length(2000),
    outputs=fixed_length(400),
)
# The lengths of the Azure code trace of 2023.
CODE = LoadMix(
    name="code",
    prompts=log_normal(1500.0, 6500.0),
    outputs=log_normal(13.0, 90.0),
    prompt_bounds=(1, 7000),
    output_bounds=(1, 1000),
)
MIXES: Mapping[str, LoadMix] = {mix.name: mix for mix in (CHAT, RAG, CODE)}
