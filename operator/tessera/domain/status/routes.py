"""What the statuses of routes say: who can answer, and what keeps requests from a target."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tessera.api.model_route import (
    ModelRouteSpec,
    ModelRouteStatus,
    ProviderTarget,
    RouteTarget,
    TargetStatus,
)
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.api.route_reasons import RouteAccepted, TargetState
from tessera.api.text import counted
from tessera.domain.budget.budgets import BudgetView, NamespaceClaim, grants_in_force
from tessera.domain.gateway.access import may_offer, may_use, offered_to
from tessera.domain.gateway.build import is_asleep, offered_names, offered_route, oldest_first
from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.gateway.name_conflicts import lists_any
from tessera.domain.gateway.name_rights import NameRights, name_rights
from tessera.domain.incremental import reused
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.routes import ObservedRoute
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.placement.checks import pooling_task
from tessera.domain.routes.outside import may_leave
from tessera.domain.service.preparation.shape import with_known_files
from tessera.domain.status.conditions import conditions
from tessera.domain.steps import Step

_SKIPPED = {
    TargetState.TARGET_NOT_FOUND: RouteAccepted.TARGET_NOT_FOUND,
    TargetState.POOLING_TARGET: RouteAccepted.POOLING_TARGET,
    TargetState.DATA_RESIDENCY: RouteAccepted.DATA_RESIDENCY,
    TargetState.PROVIDERS_DISABLED: RouteAccepted.PROVIDERS_DISABLED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surroundings:
    """What all routes are judged by."""

    services: Mapping[Ref, ObservedService]
    tenants: Mapping[str, str]
    """By namespace."""
    rights: NameRights
    routes: Mapping[Ref, OfferedModel]
    """Those with a valid spec, as gateways offer them."""
    listers: Mapping[str, Sequence[OfferedModel]]
    """Services, then routes, by each name that a route has, the oldest first."""
    gateways: bool
    providers: Mapping[str, ObservedProvider] | None
    residency: Mapping[str, Sequence[str]]
    """`spec.dataResidency` by tenant, of those that have one."""


def route_statuses(
    routes: Sequence[ObservedRoute],
    services: Sequence[ObservedService],
    budgets: Sequence[BudgetView],
    at: datetime,
    *,
    gateways: bool,
    providers: Sequence[ObservedProvider] | None = None,
) -> Mapping[Ref, ModelRouteStatus]:
    """Return the status of each route; one that cannot be judged has its last one.

    `gateways` says whether the installation runs any; `providers` is None if they send nothing
    outside. A tenant reads the same of what it may not use and of what does not exist.
    """
    claims = tuple(
        NamespaceClaim(
            budget=view.budget, accepted=view.accepted, spec=view.spec, namespaces=view.namespaces
        )
        for view in budgets
    )
    return _statuses(routes, services, claims, providers, gateways, at=at)


@reused
def _statuses(
    routes: Sequence[ObservedRoute],
    services: Sequence[ObservedService],
    budgets: Sequence[NamespaceClaim],
    providers: Sequence[ObservedProvider] | None,
    gateways: bool,
    *,
    at: datetime,
) -> Mapping[Ref, ModelRouteStatus]:
    """Return the statuses; the time is only that of a condition that changes."""
    around = _surroundings(routes, services, budgets, providers, gateways=gateways)
    return {route.ref: route_status(route, around, at) for route in routes}


def _surroundings(
    routes: Sequence[ObservedRoute],
    services: Sequence[ObservedService],
    budgets: Sequence[NamespaceClaim],
    providers: Sequence[ObservedProvider] | None,
    *,
    gateways: bool,
) -> _Surroundings:
    tenants = {
        namespace: view.budget.name
        for view in budgets
        if view.spec is not None
        for namespace in view.namespaces
    }
    offered = {
        route.ref: offered_route(route.uid, route, tenants.get(route.ref.namespace))
        for route in sorted(routes, key=lambda each: (each.created, each.ref))
        if route.spec is not None
    }
    names = frozenset(name for model in offered.values() for name in model.names)
    namesakes = _namesakes(names, tuple(services), tenants)
    listers = defaultdict[str, list[OfferedModel]](list)
    for model in (*namesakes, *offered.values()):
        for name in names.intersection(model.all_names):
            listers[name].append(model)
    return _Surroundings(
        services=_by_ref(tuple(services)),
        tenants=tenants,
        rights=name_rights(grants_in_force(budgets)),
        routes=offered,
        listers=listers,
        gateways=gateways,
        providers=None if providers is None else {each.name: each for each in providers},
        residency={
            view.budget.name: view.spec.data_residency
            for view in budgets
            if view.spec is not None and view.spec.data_residency is not None
        },
    )


@reused
def _by_ref(services: tuple[ObservedService, ...]) -> Mapping[Ref, ObservedService]:
    return {service.ref: service for service in services}


@reused
def _namesakes(
    names: frozenset[str], services: tuple[ObservedService, ...], tenants: Mapping[str, str]
) -> Sequence[OfferedModel]:
    """Return the services that list one of the names, the oldest first."""
    listers = (
        service
        for service in services
        if service.spec is not None and lists_any(names, service.ref.name, service.spec)
    )
    return [
        offered_names(service.uid, service, tenants.get(service.ref.namespace))
        for service in oldest_first(listers)
    ]


def _status(route: ObservedRoute, around: _Surroundings, at: datetime) -> ModelRouteStatus:
    spec = route.spec
    if spec is None:
        accepted = StatusVerdict(RouteAccepted.INVALID_SPEC, route.problem or "")
        return ModelRouteStatus(
            observed_generation=route.generation,
            conditions=conditions({"Accepted": accepted}, route, at),
        )
    states = [_state(target, route.ref.namespace, around) for target in spec.targets]
    names = [
        target.target_name
        for target, state in zip(spec.targets, states, strict=True)
        if state is TargetState.AVAILABLE
    ]
    available = len(names)
    accepted = next(
        _problems(route, spec, states, around),
        StatusVerdict(
            RouteAccepted.VALID, f"{available} of {counted(len(states), 'target')} can answer now"
        ),
    )
    return ModelRouteStatus(
        observed_generation=route.generation,
        summary=": ".join([f"{available}/{len(states)}", *filter(None, [", ".join(names)])]),
        conditions=conditions({"Accepted": accepted}, route, at),
        targets=tuple(
            TargetStatus(
                name=target.target_name,
                service=str(target.service_ref(route.ref.namespace) or ""),
                provider=(
                    ""
                    if target.provider is None
                    else f"{target.provider.name}/{target.provider.model}"
                ),
                reason=state,
            )
            for target, state in zip(spec.targets, states, strict=True)
        ),
    )


# What is known of it stays: requests do not read the status.
route_status = Step(_status, lambda _error, route, *_: route.status)


def _outside_state(
    wanted: ProviderTarget, tenant: str | None, around: _Surroundings
) -> TargetState:
    if around.providers is None:
        return TargetState.PROVIDERS_DISABLED
    provider = around.providers.get(wanted.name)
    spec = None if provider is None else provider.spec
    if (
        spec is None
        or tenant not in spec.tenants
        or all(model.name != wanted.model for model in spec.models)
    ):
        return TargetState.TARGET_NOT_FOUND
    if not may_leave(around.residency.get(tenant), spec.region):
        return TargetState.DATA_RESIDENCY
    return TargetState.AVAILABLE


def _state(target: RouteTarget, namespace: str, around: _Surroundings) -> TargetState:
    tenant, ref = around.tenants.get(namespace), target.service_ref(namespace)
    if target.provider is not None:
        return _outside_state(target.provider, tenant, around)
    service = None if ref is None else around.services.get(ref)
    return _service_state(service, namespace, tenant, around)


def _service_state(
    service: ObservedService | None, namespace: str, tenant: str | None, around: _Surroundings
) -> TargetState:
    if service is None or service.spec is None or not _may_use(service, namespace, tenant, around):
        return TargetState.TARGET_NOT_FOUND
    spec, status = with_known_files(service).spec or service.spec, service.status
    if pooling_task(spec) is not None:
        return TargetState.POOLING_TARGET
    if status.ready_replicas:
        return TargetState.AVAILABLE
    if spec.fixed_replicas == 0:
        return TargetState.SERVICE_STOPPED
    if is_asleep(spec, status):
        return TargetState.SERVICE_ASLEEP
    return TargetState.NO_READY_REPLICA


def _may_use(
    service: ObservedService, namespace: str, tenant: str | None, around: _Surroundings
) -> bool:
    """Return whether the tenant of a route has a service by some name, as gateways decide it."""
    owner, consumer = around.tenants.get(service.ref.namespace), tenant or ""
    if service.ref.namespace == namespace:
        return True
    model = offered_names(service.uid, service, owner)
    return may_use(consumer, model) and any(
        may_offer(around.rights, model, name, consumer) for name in model.names
    )


def _problems(
    route: ObservedRoute,
    spec: ModelRouteSpec,
    states: Sequence[TargetState],
    around: _Surroundings,
) -> Iterator[StatusVerdict[RouteAccepted]]:
    """Yield what is wrong with a route, the worst first."""
    if (conflict := _name_conflict(route, around)) is not None:
        yield StatusVerdict(RouteAccepted.NAME_CONFLICT, conflict)
    for state, reason in _SKIPPED.items():
        skipped = [number for number, each in enumerate(states) if each is state]
        if skipped:
            sentences = [
                _skipped_sentence(number, state, route, spec, around) for number in skipped
            ]
            yield StatusVerdict(reason, "; ".join(sentences))
    model = around.routes[route.ref]
    audience = _audience(model, around)
    refusing = frozenset(
        consumer
        for consumer in audience & around.rights.publishers.keys()
        if not around.rights.accepts(consumer, model.tenant)
    )
    name = route.served_name
    if withheld := audience - offered_to(around.rights, model, name, audience - refusing):
        # Who offers something to all learns no names of others.
        who = "other tenants" if model.public else f"TenantBudget/{min(withheld)}"
        yield StatusVerdict(
            RouteAccepted.NAME_NOT_PUBLISHED,
            f"spec.access: {name} cannot be used by {who}, since no grant in spec.publishing has "
            "it for them, or they do not accept models of this tenant; ask the platform team for a "
            "grant (docs/tasks/publish-models.md)",
        )
    if not around.gateways:
        yield StatusVerdict(
            RouteAccepted.GATEWAY_DISABLED,
            "the chart's value gateway.enabled is false, so nothing answers requests for the route",
        )


def _skipped_sentence(
    number: int,
    state: TargetState,
    route: ObservedRoute,
    spec: ModelRouteSpec,
    around: _Surroundings,
) -> str:
    namespace, target = route.ref.namespace, spec.targets[number]
    ref, tenant = target.service_ref(namespace), around.tenants.get(namespace)
    owner = f"TenantBudget/{tenant}" if tenant else f"namespace {namespace}, without a TenantBudget"
    if target.provider is not None:
        return _outside_sentence(number, state, target.provider, owner)
    what = f"spec.targets[{number}].service: InferenceService/{ref}"
    if state is TargetState.POOLING_TARGET:
        return f"{what} generates no tokens; requests skip it"
    if (
        ref is None
        or ref.namespace == namespace
        or (tenant and around.tenants.get(ref.namespace) == tenant)
    ):
        return f"{what} does not exist, or its spec is invalid; requests skip it"
    return (
        f"{what} does not exist, or is not shared with {owner}, by a name that a grant has for it; "
        "requests skip it (docs/tasks/publish-models.md)"
    )


def _outside_sentence(number: int, state: TargetState, wanted: ProviderTarget, owner: str) -> str:
    what = f"spec.targets[{number}].provider: ModelProvider/{wanted.name}"
    if state is TargetState.PROVIDERS_DISABLED:
        return (
            f"{what} is skipped: the chart's value gateway.providers.enabled is false; ask the "
            "platform team"
        )
    if state is TargetState.DATA_RESIDENCY:
        return f"{what} is skipped: its region is not in spec.dataResidency of {owner}"
    return (
        f"{what} does not exist, does not list {owner} in spec.tenants, or has no model "
        f"{wanted.model}; requests skip it (docs/tasks/outside-providers.md)"
    )


def _name_conflict(route: ObservedRoute, around: _Surroundings) -> str | None:
    """Return who has the name of a route for its own tenant; None if the route has it."""
    model, name = around.routes[route.ref], route.served_name
    if (tenant := model.tenant) is None:
        return None
    own = [each for each in around.listers[name] if each.tenant == tenant]
    holder = next((each for each in own if may_offer(around.rights, each, name, tenant)), None)
    if holder is model:
        return None
    field = (
        "metadata.name" if route.spec is None or not route.spec.served_name else "spec.servedName"
    )
    if holder is None:
        return (
            f"{field}: {name} belongs to other namespaces by spec.publishing of "
            f"TenantBudget/{tenant}, so requests for it do not come here; choose another name"
        )
    kind = "ModelRoute" if holder is around.routes.get(holder.service) else "InferenceService"
    return (
        f"{field}: {name} is also a name of {kind}/{holder.service}, which gets the requests of "
        f"TenantBudget/{tenant} at the gateway; choose another name"
    )


def _audience(model: OfferedModel, around: _Surroundings) -> frozenset[str]:
    """Return the other tenants that the spec offers a route to."""
    tenants = frozenset(around.tenants.values())
    return (tenants if model.public else tenants & model.tenants) - {model.tenant or ""}
