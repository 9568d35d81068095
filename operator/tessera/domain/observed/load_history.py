"""The recorded load of a service, in spans of ten minutes."""

from dataclasses import dataclass
from datetime import datetime, timedelta

SPAN = timedelta(minutes=10)
# As far as Prometheus is asked.
LONGEST = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpan:
    """The requests that came in ten minutes."""

    end: datetime
    rate: float
    """Requests per second."""
    input_tokens: float
    """Mean tokens of a prompt."""
    output_tokens: float
    """Mean tokens of an answer."""
    input_variation: float
    """Squared coefficient of variation of prompts."""
    resident_tokens: float
    """Cached tokens of a request while it runs, on average over the time that requests run."""
    cached_share: float = 0.0
    """Share of the prompts' tokens that prefix caches had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadHistory:
    """What was recorded of a service: spans without requests are there, gaps are not."""

    read_at: datetime
    spans: tuple[LoadSpan, ...] = ()
    """Oldest first."""
