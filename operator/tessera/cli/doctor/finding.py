"""What a check found, and from what checks look."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeAlias

from tessera.cli.cluster import Reader

# Names that a finding lists before it counts the rest.
MAX_NAMES_SHOWN = 5


class FindingState(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor."""

    check: str
    state: FindingState
    message: str
    fix: str = ""
    """What to do; empty where nothing is wrong."""


class SeriesCounter(Protocol):
    """What Prometheus has."""

    async def count_series(self, selectors: Sequence[str]) -> Mapping[str, int]:
        """How many series each selector finds now; MetricsError when it cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """What checks may ask."""

    reader: Reader
    at: datetime
    version: str
    """Of this program."""
    prometheus_url: str | None
    """The URL that the user gave."""
    series_counter: Callable[[str], SeriesCounter]
    """The Prometheus at a URL."""


Check: TypeAlias = Callable[[CheckContext], Awaitable[Sequence[Finding]]]


def join_names(names: Sequence[str]) -> str:
    """`a, b and 7 more`."""
    text = ", ".join(names[:MAX_NAMES_SHOWN])
    return (
        text if len(names) <= MAX_NAMES_SHOWN else f"{text} and {len(names) - MAX_NAMES_SHOWN} more"
    )
