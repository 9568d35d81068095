"""What goes wrong in a run, at given seconds of the trace."""

from collections.abc import Sequence
from dataclasses import dataclass

Spans = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """The default is a calm run."""

    start_up_factor: float = 1.0
    """Start-ups take so many times as long."""
    metrics_delay: float = 0.0
    """Seconds by which scrapes come late."""
    no_metrics: Spans = ()
    """No scrape succeeds."""
    partial_metrics: Spans = ()
    """The metrics of the oldest replica are missing or NaN."""
    counter_resets: tuple[float, ...] = ()
    """The counters of all engines start again at 0."""
    dead_nodes: tuple[float, ...] = ()
    """The oldest ready replica vanishes with its streams."""
    full_pools: Spans = ()
    """No further node can be had, of a pool that is always there because others use it."""
    full_pool: str | None = None
    """The only pool that is full; None is all of them."""


CALM = Disturbance()


def within(at: float, spans: Sequence[tuple[float, float]]) -> bool:
    """Return whether a moment lies in one of the spans."""
    return any(begin <= at < end for begin, end in spans)
