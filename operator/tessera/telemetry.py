"""Metrics and logs of what turns returned."""

import logging
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.api.meta import Condition
from tessera.domain.snapshot import Ref
from tessera.reconcile.fleet import Outcome

log = logging.getLogger("tessera")

_TURN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Telemetry:
    """The operator's own metrics, and one log line for every decision that changed."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._turns = Histogram(
            "tessera_turn_seconds",
            "Duration of turns.",
            buckets=_TURN_BUCKETS,
            registry=self.registry,
        )
        self._failures = Counter(
            "tessera_turn_failures", "Turns that raised.", registry=self.registry
        )
        self._writes = Counter(
            "tessera_writes", "Writing requests to the API server.", registry=self.registry
        )
        self._leader = Gauge(
            "tessera_leader", "1 while this process leads.", registry=self.registry
        )
        self._lag = Gauge(
            "tessera_loop_lag_seconds",
            "How late the event loop last woke up.",
            registry=self.registry,
        )
        self._fleet = _FleetCollector()
        self.registry.register(self._fleet)
        self._told: dict[Ref, tuple[object, ...]] = {}

    def turned(self, outcome: Outcome, seconds: float) -> None:
        """Record a turn."""
        self._turns.observe(seconds)
        self._writes.inc(outcome.writes)
        self._fleet.outcome = outcome
        for ref, allotment in outcome.plan.allotments.items():
            scale, problem = allotment.scale, outcome.problems.get(ref)
            verdicts = (allotment.accepted, allotment.placement.verdict)
            decided = (
                *(verdict.reason for verdict in verdicts),
                scale.replicas,
                scale.reason,
                problem,
            )
            if self._told.get(ref) != decided:
                self._log(ref, outcome)
                self._told[ref] = decided
        for ref in self._told.keys() - outcome.plan.allotments.keys():
            del self._told[ref]

    def failed(self, error: BaseException) -> None:
        """Record a turn that raised."""
        self._failures.inc()
        log.error("the turn failed and will be repeated", exc_info=error)

    def leads(self, *, leading: bool) -> None:
        self._leader.set(leading)

    def lagged(self, seconds: float) -> None:
        self._lag.set(seconds)

    def _log(self, ref: Ref, outcome: Outcome) -> None:
        allotment = outcome.plan.allotments[ref]
        scale, placed = allotment.scale, allotment.placement.verdict
        fields: dict[str, Any] = {
            "service": str(ref),
            "accepted": allotment.accepted.reason,
            "placed": placed.reason,
            "variant": allotment.choice.variant if allotment.choice else None,
            "replicas": scale.replicas,
            "reason": scale.reason,
        }
        if (problem := outcome.problems.get(ref)) is not None:
            log.warning("%s: %s", ref, problem, extra=fields)
        if not allotment.accepted.reason.holds:
            log.info("%s: not accepted: %s", ref, allotment.accepted.message, extra=fields)
        elif not placed.reason.holds:
            log.info("%s: not placed: %s", ref, placed.message, extra=fields)
        else:
            log.info("%s: %s replicas: %s", ref, scale.replicas, scale.message, extra=fields)


class _FleetCollector(Collector):
    """The state of the services as of the last turn; services that are gone leave no series."""

    outcome: Outcome | None = None

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ["namespace", "service"]
        wanted = GaugeMetricFamily(
            "tessera_service_wanted_replicas", "Replicas wanted.", labels=[*labels, "reason"]
        )
        ready = GaugeMetricFamily(
            "tessera_service_ready_replicas", "Replicas that take requests.", labels=labels
        )
        cost = GaugeMetricFamily(
            "tessera_service_cost_per_hour",
            "Price of all wanted replicas for an hour.",
            labels=[*labels, "currency"],
        )
        condition = GaugeMetricFamily(
            "tessera_service_condition",
            "1 if the condition is True, else 0; with its reason.",
            labels=[*labels, "condition", "reason"],
        )
        for ref, allotment in self.outcome.plan.allotments.items() if self.outcome else ():
            name = [ref.namespace, ref.name]
            wanted.add_metric([*name, allotment.scale.reason], allotment.scale.replicas)
            ready.add_metric(name, sum(pod.ready_since is not None for pod in allotment.pods))
            status = allotment.service.status
            if status.cost is not None:
                cost.add_metric([*name, status.cost.currency], float(status.cost.per_hour))
            for one in status.conditions:
                condition.add_metric([*name, one.type, one.reason], _holds(one))
        yield from (wanted, ready, cost, condition)


def _holds(condition: Condition) -> float:
    return 1.0 if condition.status == "True" else 0.0
