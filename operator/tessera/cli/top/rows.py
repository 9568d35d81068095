"""The rows of `tessera top`."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated

from pydantic import PlainSerializer

from tessera.api.meta import Wire
from tessera.api.service_status import InferenceServiceStatus
from tessera.cli.cluster import Json
from tessera.domain.aspects.aspect import energy_of
from tessera.domain.aspects.energy import joules_per_token
from tessera.domain.aspects.slo import measured_slo
from tessera.domain.aspects.speed import observed_speed
from tessera.domain.hardware.pools import discover
from tessera.domain.money import money, per_million_tokens
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot
from tessera.domain.placement.free_hardware import replicas_free_now
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.routes.savings import RouteUse
from tessera.domain.scaling.load import load_of, service_readings, usable_readings
from tessera.domain.slo.condition import attained_text

UNKNOWN_CELL = "-"
# Below this rate a measured price per token is noise.
_MIN_TOKENS_PER_SECOND = 1.0


_Share = Annotated[float, PlainSerializer(lambda value: round(value, 4), when_used="json")]
_Joules = Annotated[float, PlainSerializer(lambda value: round(value, 4), when_used="json")]
_Milliseconds = Annotated[float, PlainSerializer(lambda value: round(value, 2), when_used="json")]


class TopVariant(Wire):
    """One of several variants of a service."""

    name: str
    tier: str
    ready_replicas: int
    desired_replicas: int
    per_hour: Decimal
    """Price of one replica per hour."""


class TopRow(Wire):
    """One service now. None is "not known"."""

    namespace: str
    service: str
    per_hour: Decimal | None
    currency: str | None
    ready_replicas: int
    desired_replicas: int | None
    tokens_per_second: float | None
    """Output tokens per second."""
    predicted_tokens_per_second: float | None
    """Output tokens per second of all ready replicas at full load."""
    cached_share: _Share | None
    """Share of the input tokens that prefix caches had, in the last five minutes."""
    itl_ms: _Milliseconds | None
    """Measured ITL."""
    predicted_itl_ms: _Milliseconds | None
    """Predicted ITL at the measured load."""
    slo: str | None
    """Attained share of the objective that is missed most, such as `97.2 %`, of the last five
    minutes; that of the status may be older."""
    waiting_requests: int | float | None
    """At engines and gateways."""
    activity: float | None
    per_million_tokens: Decimal | None
    """Price of a million output tokens: measured, else predicted."""
    joules_per_token: _Joules | None
    """Energy of an output token in the last hour."""
    variant: str | None
    """The variant of its replicas; of several ones how many are desired of each."""
    variants: tuple[TopVariant, ...] | None
    """The variants, where there are several."""
    reason: str

    @property
    def ref(self) -> Ref:
        return Ref(self.namespace, self.service)


class TopRoute(Wire):
    """What one route did in the last hour, of calls in one currency. None is "not known"."""

    namespace: str
    route: str
    shares: Mapping[str, _Share]
    """Share of the requests by target."""
    fallback_share: _Share
    currency: str | None
    per_million_tokens: Decimal | None
    """Blended price of a million tokens."""
    last_per_million_tokens: Decimal | None
    """What the last target would be charged for them."""
    saved: _Share | None


def route_rows(
    routes: Mapping[str, Sequence[RouteUse]], namespace: str | None
) -> Sequence[TopRoute]:
    """Return the routes with requests, by name."""
    return [
        TopRoute(
            namespace=ref.namespace,
            route=ref.name,
            shares={target: use.share_of(target) or 0.0 for target in sorted(use.requests)},
            fallback_share=fallback_share,
            currency=use.currency,
            per_million_tokens=_price(use.per_million),
            last_per_million_tokens=_price(use.last_per_million),
            saved=use.saved,
        )
        for name, uses in routes.items()
        if (ref := Ref(*name.split("/", 1))) and namespace in (None, ref.namespace)
        for use in uses
        if (fallback_share := use.fallback_share) is not None
    ]


def _price(amount: float | None) -> Decimal | None:
    return None if amount is None else Decimal(f"{amount:.4f}")


def service_rows(
    snapshot: Snapshot,
    plan: Plan | None,
    token_rates: Mapping[Ref, float],
    namespace: str | None,
    cached_shares: Mapping[Ref, float] = MappingProxyType({}),
) -> Sequence[TopRow]:
    """Return the services, the most expensive of each currency first."""
    service_plans = plan.service_plans if plan is not None else {}
    rows = [
        _build_row(
            snapshot,
            service,
            service_plans.get(service.ref),
            token_rates.get(service.ref),
            cached_shares.get(service.ref),
        )
        for service in snapshot.services
        if namespace in (None, service.ref.namespace)
    ]
    return sorted(rows, key=lambda row: (row.currency or "", -(row.per_hour or 0), row.ref))


def _build_row(
    snapshot: Snapshot,
    service: ObservedService,
    service_plan: ServicePlan | None,
    tokens_per_second: float | None,
    cached_share: float | None,
) -> TopRow:
    status = service.status
    placed = service_plan.placed if service_plan is not None else None
    speed = observed_speed(placed, snapshot.readings) if placed is not None else None
    measurement = measured_slo(placed, snapshot.readings) if placed is not None else None
    pods = [pod for pod in snapshot.pods if pod.service == service.ref and pod.batch_run is None]
    demand = snapshot.demand_of(service.ref)
    usable = usable_readings(snapshot.readings, snapshot.at)
    readings = service_readings(snapshot.readings, usable, service.ref, pods)
    load = load_of(pods, readings, status.replicas, snapshot.at, demand)
    cost, scaling = status.cost, status.scaling
    per_million = cost.per_million_tokens if cost else None
    if (
        cost is not None
        and tokens_per_second is not None
        and tokens_per_second >= _MIN_TOKENS_PER_SECOND
    ):
        hourly = money(cost.per_hour, cost.currency)
        per_million = per_million_tokens(hourly, tokens_per_second).rounded(4)
    return TopRow(
        namespace=service.ref.namespace,
        service=service.ref.name,
        per_hour=cost.per_hour if cost else None,
        currency=(cost.currency or None) if cost else None,
        ready_replicas=status.ready_replicas,
        desired_replicas=scaling.desired_replicas if scaling else None,
        tokens_per_second=tokens_per_second,
        predicted_tokens_per_second=_predicted_rate(status),
        cached_share=cached_share,
        # What waits at gateways is known, also without a replica.
        waiting_requests=load.known_waiting if load.queued else load.waiting,
        activity=load.measured_activity,
        itl_ms=speed.measured_mean * 1e3 if speed and speed.measured_mean else None,
        predicted_itl_ms=speed.predicted.mean * 1e3 if speed and speed.predicted else None,
        slo=attained_text(measurement) if measurement is not None else None,
        per_million_tokens=per_million,
        joules_per_token=_joules_per_token(service, snapshot),
        variant=status.instances or (status.variant.name if status.variant else None),
        variants=_variants(status),
        reason=_status_reason(status),
    )


def _predicted_rate(status: InferenceServiceStatus) -> float | None:
    variant = status.variant
    if variant is None or variant.input_tokens_per_second:
        return None
    if status.variants is None:
        return float(variant.tokens_per_second * status.ready_replicas)
    return float(sum(each.tokens_per_second * each.ready_replicas for each in status.variants))


def _joules_per_token(service: ObservedService, snapshot: Snapshot) -> float | None:
    """Return what Prometheus says of the last hour, else what the status says."""
    energy = energy_of(service.ref, snapshot.readings)
    if energy is not None:
        return joules_per_token(energy)
    reported = service.status.energy
    if reported is None or reported.joules_per_token is None:
        return None
    return float(reported.joules_per_token)


def _variants(status: InferenceServiceStatus) -> tuple[TopVariant, ...] | None:
    if status.variants is None:
        return None
    return tuple(
        TopVariant(
            name=variant.name,
            tier=variant.tier,
            ready_replicas=variant.ready_replicas,
            desired_replicas=variant.desired_replicas,
            per_hour=variant.per_hour,
        )
        for variant in status.variants
    )


def _status_reason(status: InferenceServiceStatus) -> str:
    """Return the reason of the first False condition, else of the replica count."""
    for condition_type in ("Accepted", "Placed", "Ready"):
        for condition in status.conditions:
            if condition.type == condition_type and condition.status == "False":
                return condition.reason
    return status.scaling.reason if status.scaling is not None else UNKNOWN_CELL


def pools_json(snapshot: Snapshot) -> list[Json]:
    """Return every pool with its devices: free of all, counting Tessera's engines."""
    rows = []
    for view in discover(snapshot.pools, snapshot.nodes, snapshot.at.date()):
        offers = [
            offer
            for offer in view.offers
            if offer.hardware.devices == 1 and not offer.needs_repartition
        ]
        rows.append(
            {
                "name": view.pool.name,
                "product": view.product,
                "tier": view.pool.spec.tier if view.pool.spec else None,
                "perGPUHour": str(view.price.per_gpu_hour) if view.price else None,
                "currency": view.price.currency if view.price else None,
                "readyNodes": view.ready_nodes,
                "nodes": view.nodes,
                "unmanagedPods": [
                    str(pod.ref)
                    for pod in snapshot.pods
                    if pod.unmanaged and pod.holds_devices and pod.node in view.node_names
                ],
                "devices": {
                    offer.hardware.profile or "whole": {
                        "free": replicas_free_now(snapshot, view, offer),
                        "allocatable": offer.replicas - offer.startable_replicas,
                        **({"startable": new} if (new := offer.startable_replicas) else {}),
                    }
                    for offer in offers
                },
            }
        )
    return rows
