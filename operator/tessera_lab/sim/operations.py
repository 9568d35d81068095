"""Metrics of what development mode does with an engine: sleep and wake, and weights."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge, Histogram

from tessera.domain.vllm.facts import Metric
from tessera_lab.sim.meters import PREFIX

SLEEP, WEIGHTS = "sleep_mode", "rl_weight_update"


class OperationMetrics:
    """How long each operation took, and what is under way; shown from the first one on."""

    def __init__(self, metrics: Mapping[str, Metric], registry: CollectorRegistry) -> None:
        self._metrics = metrics
        self._registry = registry
        self._meters: dict[str, tuple[Histogram, Gauge]] = {}

    @contextmanager
    def record(self, kind: str, operation: str) -> Iterator[None]:
        """Count the operation, however it ends."""
        if kind not in self._meters:
            self._meters[kind] = self._create(kind)
        duration, under_way = self._meters[kind]
        started = time.monotonic()
        with under_way.labels(operation).track_inprogress():
            try:
                yield
            finally:
                duration.labels(operation).observe(time.monotonic() - started)

    def _create(self, kind: str) -> tuple[Histogram, Gauge]:
        metric = self._metrics[f"{PREFIX}{kind}_operation_duration_seconds"]
        duration = Histogram(
            metric.name,
            "",
            labelnames=metric.labels,
            buckets=metric.buckets,
            registry=self._registry,
        )
        name = f"{PREFIX}{kind}_operations_in_flight"
        return duration, Gauge(name, "", labelnames=metric.labels, registry=self._registry)
