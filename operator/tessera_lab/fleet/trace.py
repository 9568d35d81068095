"""Requests over time: what came when, and how long it was."""

import random
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from typing import NamedTuple

from tessera_lab.engine.play import TimedRequest
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.load.trace_rows import TRACE_BLOCK_TOKENS


class TurnSpans(NamedTuple):
    """Where the turns of a prompt are, in tokens."""

    conversation: int
    """Its name."""
    beginning: int
    """Name of what precedes the first user message."""
    beginning_tokens: int
    opening_tokens: int
    """To the end of its first user message."""
    earlier_tokens: int
    """Before its last user message; 0 of a first turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival; the columns have equal lengths."""

    name: str
    seconds: float
    """Length of the window; no request arrives later."""
    arrivals: "array[float]"
    """Seconds since the start of the window."""
    input_tokens: "array[int]"
    output_tokens: "array[int]"
    clients: "array[int] | None" = None
    """Anonymous tenant of each request; None where the trace has none."""
    prefixes: tuple[tuple[int, ...], ...] | None = None
    """Names of each prompt's prefixes, as `EngineRequest.shared_prefixes`."""
    prefix_tokens: int = TRACE_BLOCK_TOKENS
    """Tokens that each name covers."""
    turns: tuple[TurnSpans, ...] | None = None
    """Of each prompt; None where they are not known."""

    def __len__(self) -> int:
        return len(self.arrivals)

    def timed_requests(self) -> tuple[TimedRequest, ...]:
        """Return the requests as one engine gets them."""
        prefixes = self.prefixes or repeat(())
        rows = zip(self.arrivals, self.input_tokens, self.output_tokens, prefixes, strict=False)
        return tuple(
            TimedRequest(
                arrival,
                EngineRequest(
                    id=number,
                    prompt_tokens=prompt,
                    output_tokens=output,
                    shared_prefixes=shared,
                ),
            )
            for number, (arrival, prompt, output, shared) in enumerate(rows)
        )

    def repeated_tokens(self) -> int:
        """Return the tokens with which prompts begin like an earlier one and its answer.

        It is what one cache of all replicas that keeps everything would have.
        """
        names, tokens = set[int](), 0
        for prompt, prefixes in zip(self.input_tokens, self.prefixes or (), strict=False):
            known = next((at for at, name in enumerate(prefixes) if name not in names), None)
            whole = len(prefixes) if known is None else known
            # The last token of a prompt is always computed.
            tokens += min(whole, (prompt - 1) // self.prefix_tokens) * self.prefix_tokens
            names.update(prefixes)
        return tokens

    def cut(self, begin: float, end: float) -> "Trace":
        """Return the requests from `begin` up to before `end`, whose window starts at `begin`.

        Raises ValueError where this is no part of the window.
        """
        if not 0 <= begin < end <= self.seconds:
            raise ValueError(
                f"{begin:g} s to {end:g} s is no part of the window of {self.seconds:g} s"
            )
        first, last = bisect_left(self.arrivals, begin), bisect_left(self.arrivals, end)
        rows = range(first, last)
        arrivals = array("d", (self.arrivals[row] - begin for row in rows))
        return replace(self._rows(rows, arrivals), seconds=end - begin)

    def overlaid(self, copies: int, shift_seconds: float) -> "Trace":
        """Return the trace on top of itself, each copy shifted and wrapped around the window.

        The first copy is not shifted. All have the same clients, and each has prefixes of its own:
        what is in the cache for one is not for another.
        """
        named = max((max(names, default=0) + 1 for names in self.prefixes or ()), default=0)
        rows = sorted(
            ((arrival + copy * shift_seconds) % self.seconds, row, copy)
            for copy in range(copies)
            for row, arrival in enumerate(self.arrivals)
        )
        return replace(
            self._rows([row for _, row, _ in rows], array("d", (arrival for arrival, *_ in rows))),
            prefixes=self.prefixes
            and tuple(
                tuple(name + copy * named for name in self.prefixes[row]) for _, row, copy in rows
            ),
        )

    def fitting(self, max_tokens: int) -> "Trace":
        """Return the requests whose prompt and answer have at most so many tokens."""
        lengths = zip(self.input_tokens, self.output_tokens, strict=True)
        return self.select([row for row, both in enumerate(lengths) if sum(both) <= max_tokens])

    def select(self, rows: Sequence[int]) -> "Trace":
        """Return these requests, in rising order, at their times."""
        return self._rows(rows, array("d", (self.arrivals[row] for row in rows)))

    def spread(self, step_seconds: float, seed: int) -> "Trace":
        """Return arrivals recorded in steps as times within their steps.

        A step that lasts beyond the next recorded arrival ends there.
        """
        rng = random.Random(seed)  # noqa: S311 - not a secret
        arrivals, counts = array("d"), Counter(self.arrivals)
        last_step = self.arrivals[-1] + step_seconds if counts else 0.0
        for begin, following in pairwise((*counts, last_step)):
            length = min(step_seconds, following - begin)
            arrivals.extend(sorted(begin + rng.random() * length for _ in range(counts[begin])))
        return replace(self, arrivals=arrivals, seconds=max(self.seconds, last_step))

    def _rows(self, rows: Sequence[int], arrivals: "array[float]") -> "Trace":
        return replace(
            self,
            arrivals=arrivals,
            input_tokens=array("i", (self.input_tokens[row] for row in rows)),
            output_tokens=array("i", (self.output_tokens[row] for row in rows)),
            clients=self.clients and array("i", (self.clients[row] for row in rows)),
            prefixes=self.prefixes and tuple(self.prefixes[row] for row in rows),
            turns=self.turns and tuple(self.turns[row] for row in rows),
        )
