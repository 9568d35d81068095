"""What a service attains of `spec.slo`, by what gateways and engines counted.

Gateways see the whole wait of a request and count at the target itself, so what they counted
decides where they saw most requests. Engines see every request, from its arrival at them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from tessera.api.inference_service import InferenceServiceSpec, Slo
from tessera.domain.observed.latency import (
    EngineLatency,
    GatewayLatency,
    LatencyHistogram,
    ServiceLatency,
)
from tessera.domain.slo.attainment import (
    NOTHING,
    Attainment,
    attainment,
    combined,
    edges_around,
    overdue_requests,
)
from tessera.domain.vllm import metrics
from tessera.domain.vllm.facts import known_versions, version_facts

# Share of the requests that is to be within the target: that of the 95th percentile.
GOAL = 0.95
# One miss of fewer requests would decide.
MIN_REQUESTS = 20
# Gateways decide when they counted at least this share of what the engines did.
MIN_GATEWAY_SHARE = 0.5
# Time that a measurement covers.
WINDOW_SECONDS = 300.0

LatencySource = Literal["Engine", "Gateway"]


class Objective(StrEnum):
    """One of the objectives in `spec.slo`."""

    TTFT = "ttft"
    ITL = "itl"

    @property
    def field(self) -> str:
        return f"spec.slo.{self.value}P95"

    @property
    def engine_metric(self) -> str:
        return _ENGINE_METRICS[self]

    def histogram(self, latency: EngineLatency | GatewayLatency) -> LatencyHistogram | None:
        return latency.ttft if self is Objective.TTFT else latency.itl

    def target_seconds(self, slo: Slo) -> float:
        target = slo.ttft_p95 if self is Objective.TTFT else slo.itl_p95
        return target.total_seconds()


_ENGINE_METRICS = {
    Objective.TTFT: metrics.TIME_TO_FIRST_TOKEN,
    Objective.ITL: metrics.INTER_TOKEN_LATENCY,
}
PREFILL_METRIC = metrics.PREFILL_TIME


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveMeasurement:
    """What is attained of one objective."""

    objective: Objective
    target_seconds: float
    source: LatencySource
    attained: Attainment | None
    """None if the counts contradict each other or there are none."""
    overdue: float = 0.0
    """Requests in it that have no first token yet, and missed the target."""

    @property
    def is_sufficient(self) -> bool:
        """Return whether enough was counted for a verdict."""
        return self.attained is not None and self.attained.total >= MIN_REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class SloMeasurement:
    """What a service attained of both objectives within five minutes."""

    ttft: ObjectiveMeasurement
    itl: ObjectiveMeasurement
    oldest_seconds: float = 0.0
    """For how long the oldest request at a gateway has waited for its first token."""

    def of(self, objective: Objective) -> ObjectiveMeasurement:
        return self.ttft if objective is Objective.TTFT else self.itl

    @property
    def objectives(self) -> tuple[ObjectiveMeasurement, ObjectiveMeasurement]:
        return self.ttft, self.itl


def measure_slo(slo: Slo, latency: ServiceLatency) -> SloMeasurement:
    """Return what is attained of the objectives."""
    gateway = latency.gateway or GatewayLatency()
    return SloMeasurement(
        ttft=_measure(Objective.TTFT, slo, latency.engines, gateway),
        itl=_measure(Objective.ITL, slo, latency.engines, gateway),
        oldest_seconds=gateway.oldest_seconds,
    )


def measure_variants(slo: Slo, latency: ServiceLatency) -> Iterator[tuple[str, SloMeasurement]]:
    """Yield what each variant attained, by its engines alone."""
    for engine in latency.engines:
        yield engine.variant or "", measure_slo(slo, ServiceLatency(engines=(engine,)))


def engine_edges(name: str, version: str) -> tuple[float, ...]:
    """Return the edges of a histogram of an engine version, in seconds."""
    # An unknown version is most likely newer than the newest known one.
    facts = version_facts(version) or version_facts(known_versions()[-1])
    metric = facts.metrics.get(name) if facts is not None else None
    return metric.buckets if metric is not None else ()


class LatencyEdges(NamedTuple):
    """The edges of engines' histograms by which the services of a fleet are judged, in seconds."""

    ttft: frozenset[float] = frozenset()
    itl: frozenset[float] = frozenset()
    prefill: frozenset[float] = frozenset()
    """Those around the TTFT objectives and half of them."""


def fleet_edges(specs: Iterable[InferenceServiceSpec]) -> LatencyEdges:
    """Return all edges by which services are judged: few, since most have the same targets."""
    # Services with the same targets have the same edges.
    distinct = {(spec.slo.ttft_p95, spec.slo.itl_p95, spec.engine.version): spec for spec in specs}
    ttft, itl = (
        frozenset(
            edge
            for spec in distinct.values()
            for edge in judging_edges(objective, spec.slo, spec.engine.version)
        )
        for objective in (Objective.TTFT, Objective.ITL)
    )
    return LatencyEdges(ttft, itl, frozenset().union(*map(_prefill_edges, distinct.values())))


def judging_edges(objective: Objective, slo: Slo, version: str) -> tuple[float, ...]:
    """Return the edges of an engine version by which an objective is judged."""
    return edges_around(
        objective.target_seconds(slo), engine_edges(objective.engine_metric, version)
    )


def _prefill_edges(spec: InferenceServiceSpec) -> frozenset[float]:
    target = Objective.TTFT.target_seconds(spec.slo)
    edges = engine_edges(PREFILL_METRIC, spec.engine.version)
    return frozenset({*edges_around(target, edges), *edges_around(target / 2, edges)})


def edge_label(edge: float) -> str:
    """Return the label `le` of an edge, as clients of Prometheus and Prometheus 3 spell it."""
    return "+Inf" if edge == math.inf else repr(float(edge))


def judging_bounds(
    objective: Objective, slo: Slo, version: str, source: LatencySource
) -> Iterator[tuple[Literal["lower", "upper"], float]]:
    """Yield the edges whose counts are the bounds; a target below all edges has no lower one."""
    target = objective.target_seconds(slo)
    edges = (target,) if source == "Gateway" else judging_edges(objective, slo, version)
    yield from (("lower", edge) for edge in edges if edge <= target)
    yield "upper", min((edge for edge in edges if edge >= target), default=math.inf)


def _measure(
    objective: Objective, slo: Slo, engines: Sequence[EngineLatency], gateway: GatewayLatency
) -> ObjectiveMeasurement:
    target = objective.target_seconds(slo)
    at_engines = combined(_attained(objective.histogram(engine), target) for engine in engines)
    at_gateways = _attained(objective.histogram(gateway), target)
    overdue, overdue_at_gateways = 0.0, 0.0
    if objective is Objective.TTFT:
        overdue = sum(_overdue(engine, target) for engine in engines)
        overdue_at_gateways = gateway.overdue
    by_engines = at_engines and at_engines.with_missed(overdue)
    by_gateways = at_gateways and at_gateways.with_missed(overdue_at_gateways)
    is_gateway = _gateways_decide(by_gateways, by_engines)
    return ObjectiveMeasurement(
        objective=objective,
        target_seconds=target,
        source="Gateway" if is_gateway else "Engine",
        attained=by_gateways if is_gateway else by_engines,
        overdue=overdue_at_gateways if is_gateway else overdue,
    )


def _attained(histogram: LatencyHistogram | None, target_seconds: float) -> Attainment | None:
    return NOTHING if histogram is None else attainment(histogram, target_seconds)


def _gateways_decide(gateways: Attainment | None, engines: Attainment | None) -> bool:
    """Return whether gateways counted most; contradictory counts are none."""
    if gateways is None or gateways.total <= 0:
        return False
    return engines is None or gateways.total >= MIN_GATEWAY_SHARE * engines.total


def _overdue(engine: EngineLatency, target_seconds: float) -> float:
    """Return how many requests wait in the engines of a variant longer than the target."""
    first_tokens = engine.ttft.total if engine.ttft is not None else 0.0
    arrivals = max(0.0, first_tokens + engine.waiting_growth) / WINDOW_SECONDS
    return overdue_requests(engine.waiting or 0.0, arrivals, target_seconds)
