"""What a check found, and from what checks look."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeAlias

from tessera.cli.cluster import Reader

SHOWN = 5
"""Names that a finding lists before it counts the rest."""


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor."""

    check: str
    state: State
    found: str
    mend: str = ""
    """What to do; empty where nothing is wrong."""


class Series(Protocol):
    """What Prometheus has."""

    async def present(self, selectors: Sequence[str]) -> Mapping[str, int]:
        """How many series each selector finds now; MetricsError when it cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """What checks may ask."""

    reader: Reader
    at: datetime
    version: str
    """Of this program."""
    prometheus: str | None
    """The URL that the user gave."""
    series: Callable[[str], Series]
    """The Prometheus at a URL."""


Check: TypeAlias = Callable[[Ward], Awaitable[Sequence[Finding]]]


def listed(names: Sequence[str]) -> str:
    """`a, b and 7 more`."""
    told = ", ".join(names[:SHOWN])
    return told if len(names) <= SHOWN else f"{told} and {len(names) - SHOWN} more"
