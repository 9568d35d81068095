"""The reads of Prometheus beside the cycles, and what a new leader restores from it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from tessera.adapters.prometheus.load_history import LoadHistories, RecordedService
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.observed.snapshot import Budget, ObservedService, Readings
from tessera.domain.scaling.policies.by_name import restore_history
from tessera.domain.scaling.target import reported_target
from tessera.domain.service.preparation.shape import with_known_shape
from tessera.domain.service.replica_count import history_from_status
from tessera.domain.slo.measurement import LatencyEdges, fleet_edges
from tessera.domain.steps import Step, error_text
from tessera.ports import Clock, MetricsError
from tessera.reconcile.observe import Observations, plan_inputs
from tessera.reconcile.store import Store
from tessera.resources.api_resources import PODS
from tessera.telemetry.process import ProcessMetrics

log = logging.getLogger("tessera")

T = TypeVar("T")

# A new sample is read within the first of these after its scrape. A fleet whose reads take long is
# read less often, at most every so many times as long, and at least as often as the last one.
_MIN_REST_SECONDS, _REST_RATIO, _MAX_REST_SECONDS = 2.0, 20.0, 5.0
# How long one question may take in all. A new leader asks up to four times before its first cycle,
# which must come before it counts as dead.
_ANSWER_SECONDS = 10.0
# Loads are read for a fifth of the time at most, and not at once after a failure.
_LOAD_REST_RATIO, _LOAD_REST_SECONDS, _LOAD_FAILURE_SECONDS = 4.0, 0.2, 60.0

_restore_history = Step(restore_history, lambda _error, _target, _readings, history: history)


class MetricsReader:
    """Asks Prometheus; whatever goes wrong is logged and counted, and what is known stays."""

    def __init__(  # noqa: PLR0913 - wiring
        self,
        metrics: PrometheusMetrics,
        store: Store,
        observations: Observations,
        process: ProcessMetrics,
        clock: Clock,
        *,
        wake: Callable[[], None] = lambda: None,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._observations = observations
        self._process = process
        self._clock = clock
        self._wake = wake
        self._answer_seconds = answer_seconds
        self._load_histories = LoadHistories(metrics)

    async def run(self) -> None:
        """Read forever, so that a slow query delays no cycle."""
        while True:
            began = time.monotonic()
            await self.read()
            await asyncio.sleep(rest_seconds(time.monotonic() - began))

    async def run_load_histories(self) -> None:
        """Read recorded loads forever, beside what each cycle needs."""
        while True:
            rest = await self.read_load_history()
            await asyncio.sleep(rest)

    async def read(self) -> None:
        """Read the load of the engines once, and wake a cycle if it is another one."""
        readings = await self._ask("readings", self._metrics.read(self._edges(), samples=True))
        self._process.record_rejected(self._metrics.take_rejected())
        if readings is None:
            readings = Readings(
                at=self._clock(), problem="the read of Prometheus failed, see the log"
            )
        previous = self._observations.readings
        readings = replace(readings, load_histories=self._load_histories.by_service)
        self._observations.readings = readings
        if readings.problem and (previous is None or previous.problem is None):
            log.warning("metrics unavailable: %s", readings.problem)
        if previous is None or _load_of(readings) != _load_of(previous):
            self._wake()

    async def read_load_history(self) -> float:
        """Read a day of the load that waits longest; return how many seconds to rest after it."""
        began, at = time.monotonic(), self._clock()
        service = self._load_histories.due(self._recorded_services(), at)
        if service is None:
            return _MAX_REST_SECONDS
        read = self._load_histories.read(service, at)
        if await self._ask(f"load history of {service.ref}", read) is None:
            return _LOAD_FAILURE_SECONDS
        return max(_LOAD_REST_SECONDS, _LOAD_REST_RATIO * (time.monotonic() - began))

    def _recorded_services(self) -> Iterator[RecordedService]:
        """Yield the services whose load says how many replicas they need."""
        for service in plan_inputs(self._store, INFERENCE_SERVICES, ObservedService):
            spec = service.spec
            if (
                spec is not None
                and spec.scaling.mode == "Native"
                and spec.scaling.policy == "Capacity"
                and spec.fixed_replicas is None
            ):
                yield RecordedService(service.ref, spec.model.served_name or service.ref.name)

    def _edges(self) -> LatencyEdges:
        """Return the edges by which the services are judged."""
        services = plan_inputs(self._store, INFERENCE_SERVICES, ObservedService)
        return fleet_edges(service.spec for service in services if service.spec)

    async def restore_scaling(self) -> None:
        """Rebuild the stabilization windows from the load history of the last leader."""
        targets = {
            service.ref: (reported_target(spec, variant), history_from_status(service.status))
            for service in plan_inputs(self._store, INFERENCE_SERVICES, ObservedService)
            if (spec := with_known_shape(service).spec) and (variant := service.status.variant)
        }
        if not targets:
            return
        span = max(target.longest_window for target, _ in targets.values())
        past = await self._ask(
            "load history, so stabilization windows start empty", self._metrics.load_history(span)
        )
        if past is None:
            return
        rebuilt = {
            ref: _restore_history(target, past.get(ref, ()), history)
            for ref, (target, history) in targets.items()
        }
        self._observations.history = replace(self._observations.history, scaling=rebuilt)

    async def restore_spend(self) -> None:
        """Restore where the bill and energy ended, spend, and when missing pods were seen."""
        records = [
            budget.status.spend
            for budget in plan_inputs(self._store, TENANT_BUDGETS, Budget)
            if budget.status.spend is not None
        ]
        existing_pods = {f"{key.namespace}/{key.name}" for key in self._store.all(PODS)}
        missing_pods = {
            replica.pod for record in records for replica in record.running
        } - existing_pods
        billed_until = await self._ask("billing history", self._metrics.billed_until())
        energy = await self._ask("energy history", self._metrics.energy.ended(self._clock()))
        spend_records = await self._ask("spend of budgets", self._metrics.spend_records())
        self._observations.history = replace(
            self._observations.history,
            billed_until=billed_until,
            energy=energy,
            spend_records=spend_records or {},
        )
        if not missing_pods:
            return
        since = self._clock() - min(record.as_of for record in records)
        last_seen = await self._ask(
            "last scrapes of deleted pods", self._metrics.last_seen(sorted(missing_pods), since)
        )
        if last_seen is not None:
            self._observations.history = replace(self._observations.history, last_seen=last_seen)

    async def _ask(self, subject: str, answer: Awaitable[T]) -> T | None:
        """Return the answer; None if there is none in time, or whatever else is raised."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await answer
        except TimeoutError:
            message = f"no complete answer within {self._answer_seconds:g} s"
        except MetricsError as error:
            message = str(error)
        except Exception as error:  # noqa: BLE001 - engines export what they like
            message = error_text(error)
        self._process.query_failures.inc()
        log.warning("Prometheus: no %s: %s", subject, message)
        return None


def rest_seconds(read_seconds: float) -> float:
    """Return the seconds between a read that took so long and the next one."""
    return min(_MAX_REST_SECONDS, max(_MIN_REST_SECONDS, _REST_RATIO * read_seconds))


def _load_of(readings: Readings) -> tuple[object, ...]:
    """Return what decides the number of replicas."""
    rates = readings.finish_rates, readings.token_rates
    return readings.pods, readings.finished, rates, readings.problem
