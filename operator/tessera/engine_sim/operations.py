"""Metrics of what development mode does with an engine: sleep and wake, and weights."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge, Histogram

from tessera.domain.engine_facts import Metric
from tessera.engine_sim.meters import PREFIX

SLEEP, WEIGHTS = "sleep_mode", "rl_weight_update"
_KINDS = (SLEEP, WEIGHTS)


class Operations:
    """How long each operation took, and what is under way."""

    def __init__(self, metrics: Mapping[str, Metric], registry: CollectorRegistry) -> None:
        self._took: dict[str, Histogram] = {}
        self._under_way: dict[str, Gauge] = {}
        for kind in _KINDS:
            name = f"{PREFIX}{kind}_operation_duration_seconds"
            self._took[kind] = Histogram(
                name,
                "",
                labelnames=("operation",),
                buckets=metrics[name].buckets,
                registry=registry,
            )
            self._under_way[kind] = Gauge(
                f"{PREFIX}{kind}_operations_in_flight",
                "",
                labelnames=("operation",),
                registry=registry,
            )

    @contextmanager
    def recorded(self, kind: str, operation: str) -> Iterator[None]:
        """Count the operation, however it ends."""
        began = time.monotonic()
        with self._under_way[kind].labels(operation).track_inprogress():
            try:
                yield
            finally:
                self._took[kind].labels(operation).observe(time.monotonic() - began)
