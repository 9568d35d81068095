"""The finding of a check, and the context of all checks."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeAlias

from tessera.adapters.kube import object_parsing as wire
from tessera.adapters.prometheus.queries import Queries
from tessera.adapters.prometheus.rows import QueryRow
from tessera.cli.cluster import Reader
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES
from tessera.domain.observed.snapshot import Node, ObservedService, Pool
from tessera.resources.api_resources import NODES

# Names that a finding lists before it counts the rest.


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


def ok(check: str, message: str) -> Finding:
    return Finding(check, FindingState.OK, message)


def warning(check: str, message: str, fix: str) -> Finding:
    return Finding(check, FindingState.WARNING, message, fix)


def problem(check: str, message: str, fix: str = "") -> Finding:
    return Finding(check, FindingState.PROBLEM, message, fix)


def skipped(check: str, message: str, fix: str = "") -> Finding:
    return Finding(check, FindingState.SKIPPED, message, fix)


class SeriesCounter(Protocol):
    """Counts and reads series in Prometheus; MetricsError without a response."""

    async def count_series(self, selectors: Sequence[str]) -> Mapping[str, int]:
        """Return how many series each selector matches."""

    async def query_union(self, queries: Queries) -> Mapping[str, Sequence[QueryRow]]:
        """Return the rows of each query."""


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

    async def services(self) -> list[ObservedService]:
        bodies = await self.reader.list_objects(INFERENCE_SERVICES)
        return [wire.parse_own(INFERENCE_SERVICES, body) for body in bodies]

    async def nodes(self) -> list[Node]:
        return [wire.parse_node(body) for body in await self.reader.list_objects(NODES)]

    async def pools(self) -> list[Pool]:
        return [
            wire.parse_own(ACCELERATOR_POOLS, body)
            for body in await self.reader.list_objects(ACCELERATOR_POOLS)
        ]


Findings: TypeAlias = Finding | Iterable[Finding]
Check: TypeAlias = Callable[[CheckContext], Awaitable[Findings]]
