"""Metrics of the operator's process: its cycles, its requests, and what it left out."""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tessera.ports import EventOutcome, RejectedDemand, RejectedSample

log = logging.getLogger("tessera")

_RECONCILE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LAG_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 10)


class ProcessMetrics:
    """The series of the process; counters by a closed set begin at 0, so that a first increase
    is one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self._reconcile_seconds = histogram(
            "tessera_reconcile_duration_seconds",
            "Duration of reconcile cycles, without what they leave to write.",
            buckets=_RECONCILE_BUCKETS,
        )
        self._cpu = counter("tessera_reconcile_cpu_seconds", "CPU time of reconcile cycles.")
        self._errors = counter(
            "tessera_reconcile_errors",
            "Cycles, writes of single objects and parts of the process that raised an exception.",
        )
        self._writes = counter("tessera_api_write_requests", "Write requests to the API server.")
        self._events = counter(
            "tessera_events",
            "Events about objects, by `outcome`: Written, Refused by the API server, or Dropped "
            "above 10 a minute for an object.",
            ("outcome",),
        )
        # Its function is asked at each scrape, also while no cycle runs.
        self.leader = gauge("tessera_leader", "1 while this process is the leader.")
        self._gateways = gauge(
            "tessera_gateways",
            "Gateway pods that reported their requests to this process within 5 seconds; only the "
            "leader gets reports. `account` is the ServiceAccount that may.",
            ("account",),
        )
        self.clock_error = gauge(
            "tessera_clock_error_seconds",
            "How far the clock of the node is ahead of the time that the operator uses; 0 while "
            "the clock is believed.",
        )
        self.loop_lag = histogram(
            "tessera_event_loop_lag_seconds",
            "Delay with which the event loop wakes up, sampled 4 times a second.",
            buckets=_LAG_BUCKETS,
        )
        self._add_omissions(counter, gauge)
        self._certificate = gauge(
            "tessera_webhook_certificate_expiration_timestamp_seconds",
            "Expiry of the webhook certificate that this process serves, by `secret`.",
            ("secret",),
        )
        for outcome in EventOutcome:
            self._events.labels(outcome)

    def _add_omissions(self, counter: partial[Counter], gauge: partial[Gauge]) -> None:
        """Add the series of what was left out or not answered."""
        by_reason = ("reason",)
        self._rejected = counter(
            "tessera_rejected_samples",
            "Samples and rows of Prometheus that were left out, by reason.",
            by_reason,
        )
        self._rejected_demand = counter(
            "tessera_rejected_demand",
            "Reports of gateways, and rows of them, that were left out, by reason.",
            by_reason,
        )
        self._refused_tokens = counter(
            "tessera_refused_tokens",
            "Requests of readers of metrics and of gateways that were refused by their token, by "
            "`path` and `code`: 401 or 403, 429 while others of its address are reviewed or soon "
            "after one was refused, 503 where the API server did not answer.",
            ("path", "code"),
        )
        self._malformed = gauge(
            "tessera_malformed_objects",
            "Objects that cannot be parsed and are left out, by `kind`, such as pods.",
            ("kind",),
        )
        self.query_failures = counter(
            "tessera_prometheus_query_failures",
            "Questions to Prometheus that were not answered in time, or that raised.",
        )
        for sample in RejectedSample:
            self._rejected.labels(sample)
        for demand in RejectedDemand:
            self._rejected_demand.labels(demand)

    def record_reconcile(self, seconds: float, cpu_seconds: float, writes: int) -> None:
        self._reconcile_seconds.observe(seconds)
        self._cpu.inc(cpu_seconds)
        self._writes.inc(writes)

    def record_failure(self, error: BaseException) -> None:
        """Record what a reconcile cycle raised, or what the write of one object did."""
        self.count_failure()
        log.error("reconcile failed, retrying", exc_info=error)

    def count_failure(self) -> None:
        """Count a defect that is logged elsewhere."""
        self._errors.inc()

    def watch_gateways(self, account: str, count: Callable[[], int]) -> None:
        """Ask at each scrape how many gateways report; without this there is no series."""
        self._gateways.labels(account).set_function(count)

    def record_rejected(self, samples: Mapping[RejectedSample, int]) -> None:
        """Count samples of Prometheus that were left out, by reason."""
        for reason, count in samples.items():
            self._rejected.labels(reason).inc(count)

    def record_rejected_demand(self, reason: RejectedDemand, count: int = 1) -> None:
        """Count reports of gateways, or rows of them, that were left out."""
        self._rejected_demand.labels(reason).inc(count)

    def count_refused_token(self, path: str, status: int) -> None:
        """Count a request that was refused by its token."""
        self._refused_tokens.labels(path, int(status)).inc()

    def record_malformed(self, objects: Mapping[str, int]) -> None:
        """Record how many objects of each kind are left out."""
        for kind, count in objects.items():
            self._malformed.labels(kind).set(count)

    def record_event(self, outcome: EventOutcome) -> None:
        self._events.labels(outcome).inc()

    def record_certificate(self, secret: str, ends: datetime) -> None:
        """Record the expiry of the certificate that the webhook server presents from now on."""
        self._certificate.labels(secret).set(ends.timestamp())
