"""The finding of a check, and the context of all checks."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeAlias

from tessera.cli.cluster import Reader

# Names that a finding lists before it counts the rest.
MAX_NAMES_SHOWN = 5


class FindingState(StrEnum):
    """The outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `tessera doctor`."""

    check: str
    state: FindingState
    message: str
    fix: str = ""
    """What to do; empty when nothing is wrong."""


class SeriesCounter(Protocol):
    """Counts series in Prometheus."""

    async def count_series(self, selectors: Sequence[str]) -> Mapping[str, int]:
        """Return how many series each selector matches; MetricsError without a response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """What a check reads from."""

    reader: Reader
    at: datetime
    version: str
    """The version of this program."""
    prometheus_url: str | None
    """The URL that the user gave."""
    series_counter: Callable[[str], SeriesCounter]
    """Opens the Prometheus at a URL."""


Check: TypeAlias = Callable[[CheckContext], Awaitable[Sequence[Finding]]]


def join_names(names: Sequence[str]) -> str:
    """Return `a, b and 7 more`."""
    text = ", ".join(names[:MAX_NAMES_SHOWN])
    return (
        text if len(names) <= MAX_NAMES_SHOWN else f"{text} and {len(names) - MAX_NAMES_SHOWN} more"
    )
