"""Requests over time: what came when, and how long it was."""

from array import array
from dataclasses import dataclass


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
    """Names of each prompt's prefixes of 512 tokens, as `EngineRequest.shared_prefixes`."""

    def __len__(self) -> int:
        return len(self.arrivals)
