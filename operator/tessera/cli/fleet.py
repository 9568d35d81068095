"""The input of a plan: objects of the cluster, and readings if a Prometheus is given."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.adapters.kube import object_parsing as wire
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.prometheus.routes import route_queries, routes_of
from tessera.api.api_resource import ApiResource
from tessera.api.budget_reasons import WithinBudget
from tessera.api.reasons import NAME_REASONS
from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses
from tessera.cli.cluster import Json, Reader
from tessera.cli.errors import DeniedError
from tessera.cli.installation import (
    GATEWAY_VARIABLE,
    has_variable,
    installed_catalogs,
    installed_classes,
    installed_pod_keys,
)
from tessera.cli.trim import trim_object
from tessera.domain.config import Config
from tessera.domain.hardware.catalog_entries import extended_catalog
from tessera.domain.hardware.gpu_catalog import catalog, shipped
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import Readings, Ref, Snapshot
from tessera.domain.placement.pod_template import allowed_keys
from tessera.domain.planning.plan import Plan, PlanMemory, plan
from tessera.domain.routes.savings import RouteUse
from tessera.domain.scaling.policies.by_name import restore_history
from tessera.domain.scaling.state import ScalingHistory, ServiceLoad
from tessera.domain.scaling.target import reported_target
from tessera.domain.service.preparation.shape import with_known_shape
from tessera.domain.service.replica_count import history_from_status
from tessera.domain.slo.measurement import fleet_edges
from tessera.ports import MetricsError, ObjectList
from tessera.reconcile.observe import Observations, observe
from tessera.reconcile.store import Store
from tessera.resources.api_resources import KINDS
from tessera.resources.defaults import newest_version
from tessera.settings import CommandSettings

PORT_FORWARD_HINT = (
    "kubectl -n monitoring port-forward svc/prometheus-operated 9090, "
    "then --prometheus http://127.0.0.1:9090"
)
# Kinds that a plan reads.
PLAN_INPUT_KINDS = tuple(kind for kind in KINDS if wire.is_plan_input(kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetInputs:
    """Everything that a plan is computed from."""

    at: datetime
    objects: Mapping[str, Sequence[Json]]
    """By the plural of their kind, trimmed."""
    read_errors: tuple[str, ...] = ()
    """What could not be read, and why: a plan without it would be wrong."""
    readings: Readings | None = None
    demand: Mapping[Ref, GatewayDemand] | None = None
    """The requests at gateways, where the operator has their reports."""
    scaling_history: Mapping[Ref, ScalingHistory] = field(default_factory=dict)
    """The autoscaler's windows, as far as Prometheus has them."""
    classes: ServiceClasses = BUILT_IN_CLASSES
    """Defaults of services by their class."""
    catalogs: str = ""
    """Document of the GPUs and models that the installation adds to the catalog."""
    pod_keys: tuple[str, ...] = ()
    """Keys of labels and annotations that services may give their pods."""
    gateways: bool = False
    """The installation is known to run gateways."""

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that the operator would build from these objects."""
        store = Store(PLAN_INPUT_KINDS)
        for kind in PLAN_INPUT_KINDS:
            cluster_objects = (
                wire.parse_object(kind, body, self.classes)
                for body in self.objects.get(kind.plural, ())
            )
            needed = (
                observed for observed in cluster_objects if not wire.is_unneeded(kind, observed)
            )
            store.replace(kind, ObjectList(tuple(needed)))
        observed = observe(store, Observations(readings=self.readings), self.at)
        return replace(observed, demand=self.demand)

    def plan(self, snapshot: Snapshot) -> Plan:
        """Return the plan of this version, which knows the classes of the installation alone."""
        config = Config(
            mig_backends=frozenset(),
            # The operator writes this reason only where a budget is required.
            require_budget=any(
                service.status.tenant is not None
                and service.status.tenant.reason == WithinBudget.BUDGET_REQUIRED
                for service in snapshot.services
            ),
            gateways=self.gateways
            or bool(self.demand)
            or any(
                condition.type == "Accepted" and condition.reason in NAME_REASONS
                for service in snapshot.services
                for condition in service.status.conditions
            ),
            builder_version=newest_version(),
        )
        return plan(config, snapshot, PlanMemory(scaling_history=self.scaling_history))

    def compute_plan(self, snapshot: Snapshot) -> Plan | None:
        """Return the plan; None if some of its input could not be read."""
        return None if self.read_errors else self.plan(snapshot)


async def read_fleet(reader: Reader, prometheus: str | None) -> FleetInputs:
    """Read the input of a plan; kinds that may not be listed everywhere from one namespace."""
    listings = await asyncio.gather(*(_list_trimmed(reader, kind) for kind in PLAN_INPUT_KINDS))
    objects = {
        kind.plural: bodies for kind, (bodies, _) in zip(PLAN_INPUT_KINDS, listings, strict=True)
    }
    unread = tuple(read_error for _, read_error in listings if read_error)
    fleet = FleetInputs(
        at=now(),
        objects=objects,
        read_errors=unread,
        classes=await installed_classes(reader),
        catalogs=await installed_catalogs(reader),
        pod_keys=await installed_pod_keys(reader),
        gateways=await has_variable(reader, GATEWAY_VARIABLE),
    )
    use_catalogs(fleet.catalogs)
    allowed_keys.set(frozenset(fleet.pod_keys))
    return fleet if prometheus is None else await with_readings(fleet, prometheus)


def use_catalogs(document: str) -> None:
    """Let this process know the GPUs and models of a document, and no others than are shipped."""
    catalog.set(extended_catalog(document)[0] if document else shipped())


async def _list_trimmed(reader: Reader, kind: ApiResource) -> tuple[list[Json], str]:
    try:
        bodies, read_error = await reader.list_objects(kind), ""
    except DeniedError as error:
        bodies, read_error = await _list_own_namespace(reader, kind), str(error)
    needed = (body for body in bodies if not wire.is_unneeded(kind, wire.parse_object(kind, body)))
    return [trim_object(kind, body) for body in needed], read_error


async def _list_own_namespace(reader: Reader, kind: ApiResource) -> list[Json]:
    """List a kind in the user's own namespace, as far as permitted."""
    if not kind.namespaced:
        return []
    try:
        return await reader.list_objects(kind, reader.namespace)
    except DeniedError:
        if kind is INFERENCE_SERVICES:
            raise
        return []


async def with_readings(fleet: FleetInputs, url: str) -> FleetInputs:
    """Add current readings from Prometheus, and the autoscaler's windows from its history."""
    metrics = open_prometheus(url)
    services = {service.ref: service for service in fleet.snapshot.services}
    edges = fleet_edges(service.spec for service in services.values() if service.spec is not None)
    readings = await metrics.read(edges)
    targets = {
        ref: reported_target(spec, variant)
        for ref, service in services.items()
        if (spec := with_known_shape(service).spec) and (variant := service.status.variant)
    }
    windows = [target.longest_window for target in targets.values()]
    history: Mapping[Ref, tuple[ServiceLoad, ...]] = {}
    demand = None
    if windows and readings.problem is None:
        with contextlib.suppress(MetricsError):
            history = await metrics.load_history(max(windows))
        with contextlib.suppress(MetricsError):
            demand = await metrics.gateway_demand()
            readings = replace(readings, drafts=await metrics.drafts())
    scaling_history = {
        ref: restore_history(target, history[ref], history_from_status(services[ref].status))
        for ref, target in targets.items()
        if ref in history
    }
    return replace(fleet, readings=readings, demand=demand, scaling_history=scaling_history)


def open_prometheus(url: str) -> PrometheusMetrics:
    """Return the Prometheus at the URL, with the credentials that the environment names."""
    return PrometheusMetrics(url, now, CommandSettings().prometheus_access)


async def read_routes(url: str | None) -> tuple[Mapping[str, tuple[RouteUse, ...]], str]:
    """Return what each route did in the last hour, and why it is not known."""
    if url is None:
        return {}, "what routes answered and saved needs --prometheus URL"
    metrics = open_prometheus(url)
    try:
        rows_by_query = await metrics.query_union(route_queries(metrics.gateway_target))
        return routes_of(rows_by_query), ""
    except MetricsError as error:
        return {}, str(error)


def prometheus_url(arguments: SimpleNamespace) -> str | None:
    """Return the URL that the user gave."""
    url: str | None = arguments.prometheus or CommandSettings().prometheus_url
    return url
