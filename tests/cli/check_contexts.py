"""Contexts for the checks of `tessera doctor`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.adapters.prometheus.queries import Queries
from tessera.adapters.prometheus.rows import QueryRow
from tessera.api.ref import Ref
from tessera.cli.cluster import Reader
from tessera.cli.doctor.finding import CheckContext
from tessera.ports import MetricsError
from tests.builders import NOW
from tests.cli.memory_api import MemoryApi


@dataclass(frozen=True)
class Counts:
    """A Prometheus with these numbers of series."""

    active: int = 7
    renamed: int = 0
    contradicted: int = 0
    repeated: int = 0
    engines: int = 2
    operators: int = 1
    repeated_pods: Sequence[Ref] = ()
    problem: str = ""

    async def query_union(self, queries: Queries) -> Mapping[str, Sequence[QueryRow]]:
        if self.problem:
            raise MetricsError(self.problem)
        rows = [
            {"metric": {"namespace": pod.namespace, "pod": pod.name}} for pod in self.repeated_pods
        ]
        return {name: rows for name in queries}

    async def count_series(self, selectors: Sequence[str]) -> Mapping[str, int]:
        if self.problem:
            raise MetricsError(self.problem)
        return dict(
            zip(
                selectors,
                (
                    self.active,
                    self.renamed,
                    self.contradicted,
                    self.repeated,
                    self.engines,
                    self.operators,
                ),
                strict=True,
            )
        )


def a_check_context(api: MemoryApi, counts: Counts | None = None, **fields: Any) -> CheckContext:
    return CheckContext(
        **{
            "reader": Reader(api, "team-a"),
            "at": NOW,
            "version": "0.1.0",
            "prometheus_url": "http://given",
            "series_counter": lambda _: counts or Counts(),
            **fields,
        }
    )
