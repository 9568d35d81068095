"""The directory of a gateway, from what it observes of the cluster."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from operator import attrgetter
from typing import NamedTuple, get_args

from tessera.api.budget_reasons import LimitAction
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.key_record import KeyRecord
from tessera.api.meta import find_condition
from tessera.api.precision import CHECKPOINT, PrecisionName
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.service_status import InferenceServiceStatus, TenancyStatus
from tessera.api.tenant_budget import EACH, Limit, TenantBudgetSpec
from tessera.domain.budget.budgets import NamespaceClaim, grants_in_force, namespace_claims
from tessera.domain.budget.raises import amount_raises
from tessera.domain.charge.price_book import PriceListBook
from tessera.domain.charge.scopes import ChargeLimit, MemberKind
from tessera.domain.charge.throttle import ThrottleTerms
from tessera.domain.gateway.directory import (
    NO_LIMITS,
    ApiKey,
    Directory,
    EngineReplica,
    OfferedModel,
    TenantLimits,
)
from tessera.domain.gateway.name_rights import name_rights
from tessera.domain.gateway.outside import outside_limits, outside_models
from tessera.domain.hardware.device import (
    MIG_PREFIX,
    Hardware,
    slice_hardware,
    whole_gpu_hardware,
)
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.incremental import reused, reused_per_object
from tessera.domain.model.paths import own_paths
from tessera.domain.model.precision_files import shape_in
from tessera.domain.money import money, to_nanos
from tessera.domain.names import PORT, Variant
from tessera.domain.observed.gates import ServiceRevision
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.routes import ObservedRoute
from tessera.domain.observed.snapshot import Budget, ObservedService, Pod, Pool, Ref
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.domain.perf.engine_terms import engine_terms
from tessera.domain.perf.footprint import hidden_size
from tessera.domain.perf.sources import (
    as_measured,
    measured_ratio,
    measured_tokens_per_step,
    step_time,
)
from tessera.domain.perf.step import StepTime
from tessera.domain.placement.checks import pooling_task, shape_of
from tessera.domain.quality.split_service import services_in_force
from tessera.domain.service.preparation.shape import with_known_files

_PRECISIONS: tuple[str | None, ...] = (None, *get_args(PrecisionName))
# Services that one look finds unchanged.
_NEIGHBOURS = 64
# Of one budget, between its creation and a later one.
_MOST_GENERATIONS = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayObservations:
    """What a gateway observes of the cluster."""

    services: Sequence[ObservedService] = ()
    revisions: Sequence[ServiceRevision] = ()
    """Versions of services whose changes wait for a gate."""
    pods: Sequence[Pod] = ()
    routes: Sequence[ObservedRoute] = ()
    providers: Sequence[ObservedProvider] = ()
    budgets: Sequence[Budget] = ()
    keys: Sequence[TenantKeys] = ()
    pools: Sequence[Pool] = ()
    prices: PriceListBook = field(default_factory=PriceListBook)


class _PoolTerms(NamedTuple):
    """What the replicas in a pool have in common."""

    name: str
    product: str | None
    price_version: str | None


class _KnownVariant(NamedTuple):
    """What the name of a variant is made of, and what its time costs."""

    price_version: str | None = None
    hardware: Hardware | None = None
    precision: str | None = None


def build_directory(observed: GatewayObservations, default_limits: RateLimitsSpec) -> Directory:
    """Return all that requests are judged by; equal observations make equal directories."""
    claims = _claims(tuple(observed.budgets))
    tenants = _tenants(claims)
    tenant_by_namespace = {
        namespace: tenant.name for tenant in tenants.values() for namespace in tenant.namespaces
    }
    pools = _pools(tuple(observed.pools))
    pods = _pods_by_service(tuple(observed.pods))
    rows = [
        (service, pods.get(service.ref, ()), tenant_by_namespace.get(service.ref.namespace))
        for service in oldest_first(services_in_force(observed.services, observed.revisions))
    ]
    routes = [
        offered_route(route.uid, route, tenant_by_namespace.get(route.ref.namespace))
        for route in sorted(observed.routes, key=attrgetter("created", "ref"))
        if route.spec is not None
    ]
    paying = [tenant for tenant in tenants.values() if tenant.charge_limits]
    models = (
        _for_charged(model.uid, model, frozenset(t.name for t in paying if t.is_charged(model)))
        if model.require_charge
        else model
        for first in range(0, len(rows), _NEIGHBOURS)
        for model in _models(first, tuple(rows[first : first + _NEIGHBOURS]), pools)
    )
    return Directory(
        # A service keeps its name beside a route.
        models=(*models, *routes),
        outside=outside_models(tuple(observed.providers), tenants),
        tenants=tenants,
        keys=_keys(tuple(observed.keys), frozenset(tenants)),
        tenantless_keys=_tenantless_keys(tuple(observed.keys), frozenset(tenants)),
        default_limits=default_limits,
        name_rights=name_rights(grants_in_force(claims)),
        prices=observed.prices,
    )


def oldest_first(services: Iterable[ObservedService]) -> list[ObservedService]:
    """Return the services that are offered in the order of their age, which decides on names."""
    offered = [each for each in services if each.spec is not None and not each.deleting]
    order = _order(tuple(map(attrgetter("created", "ref"), offered)))
    return [offered[place] for place in order]


@reused
def _order(ages: tuple[tuple[datetime, Ref], ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(ages)), key=ages.__getitem__))


@reused_per_object
def offered_names(_: str, service: ObservedService, tenant: str | None) -> OfferedModel:
    """Return the model of one service, by its UID, as far as its names and users go."""
    spec = service.spec
    assert spec is not None  # noqa: S101
    access = spec.access
    names = dict.fromkeys((spec.model.served_name or service.ref.name, *access.aliases))
    return OfferedModel(
        service=service.ref,
        uid=service.uid,
        names=tuple(names),
        adapters=tuple(adapter.name for adapter in spec.model.adapters),
        tenant=tenant,
        tenants=frozenset(access.tenants),
        public=access.public,
        require_charge=access.require_charge,
        shared_prefix_cache=access.shared_prefix_cache,
        media_domains=spec.engine.allowed_media_domains or (),
    )


@reused
def _claims(budgets: tuple[Budget, ...]) -> tuple[NamespaceClaim, ...]:
    return tuple(claim for claim in namespace_claims(budgets) if claim.spec is not None)


@reused
def _tenants(claims: tuple[NamespaceClaim, ...]) -> Mapping[str, TenantLimits]:
    return {claim.budget.name: _tenant(claim) for claim in claims}


@reused
def _pools(pools: tuple[Pool, ...]) -> tuple[_PoolTerms, ...]:
    return tuple(_pool_terms(pool) for pool in pools)


@reused
def _pods_by_service(pods: tuple[Pod, ...]) -> Mapping[Ref, tuple[Pod, ...]]:
    by_service = defaultdict[Ref, list[Pod]](list)
    for pod in sorted(pods, key=attrgetter("ref")):
        if pod.service.name and pod.address is not None:
            by_service[pod.service].append(pod)
    return {service: tuple(replicas) for service, replicas in by_service.items()}


def _tenant(claim: NamespaceClaim) -> TenantLimits:
    budget, spec = claim.budget, claim.spec
    assert spec is not None  # noqa: S101
    generation = int(budget.created.timestamp()) * _MOST_GENERATIONS + budget.generation
    return TenantLimits(
        name=budget.name,
        namespaces=claim.namespaces,
        weight=float(spec.weight),
        limits=spec.rate_limits,
        teams=dict(sorted(spec.teams.items())),
        allow_downgrade=spec.allow_downgrade,
        cheaper_targets=any(
            LimitAction.CHEAPER_TARGETS in limit.actions for limit in budget.status.limits
        ),
        currency=spec.currency,
        time_zone=spec.time_zone,
        generation=generation,
        charge_limits=tuple(
            _charge_limit(budget, generation, spec, limit) for _, limit in spec.charge_limits
        ),
        outside=outside_limits(budget, spec),
        residency=None if spec.data_residency is None else frozenset(spec.data_residency),
    )


def _charge_limit(
    budget: Budget, generation: int, spec: TenantBudgetSpec, limit: Limit
) -> ChargeLimit:
    kind, member = ("", EACH) if limit.for_ is None else limit.for_.part
    return ChargeLimit(
        budget=budget.name,
        generation=generation,
        name=spec.name_of(limit),
        window=limit.window,
        amount=to_nanos(limit.amount),
        currency=spec.currency,
        time_zone=spec.time_zone,
        kind=MemberKind(kind.capitalize()) if kind else None,
        member=None if member == EACH else member,
        raises=amount_raises(spec, limit, budget.raises),
        throttle=_throttle(spec),
    )


def _throttle(spec: TenantBudgetSpec) -> ThrottleTerms | None:
    """Return from when on limits of charges are spread over their windows."""
    actions = [each for each in spec.actions or () if each.action == "Throttle"]
    if not actions:
        return None
    first = min(actions, key=lambda each: each.at)
    return ThrottleTerms(first.at, to_nanos(first.floor or Decimal(0)))


@reused
def _tenantless_keys(
    secrets: tuple[TenantKeys, ...], tenants: frozenset[str]
) -> Mapping[str, ApiKey]:
    """Return the keys of tenants that do not exist."""
    return {
        record.sha256: _key(name, secret.tenant, record)
        for secret in secrets
        if secret.tenant not in tenants
        for name, record in secret.records.items()
    }


@reused
def _keys(secrets: tuple[TenantKeys, ...], tenants: frozenset[str]) -> Mapping[str, ApiKey]:
    """Return the keys of existing tenants; of one name or digest the first Secret's holds.

    A key that was rotated has the limits of its successor: both spend of one amount.
    """
    keys: dict[str, ApiKey] = {}
    names: dict[tuple[str, str], ApiKey] = {}
    for secret in sorted(secrets, key=lambda secret: secret.secret):
        if secret.tenant not in tenants:
            continue
        for name, record in sorted(secret.records.items()):
            if record.sha256 not in keys and (secret.tenant, name) not in names:
                key = _key(name, secret.tenant, record)
                names[secret.tenant, name] = keys[record.sha256] = key
    return {digest: _with_limits_of(key, names) for digest, key in keys.items()}


def _with_limits_of(key: ApiKey, names: Mapping[tuple[str, str], ApiKey]) -> ApiKey:
    current = names.get((key.tenant, key.line), key)
    if current is key:
        return key
    return replace(key, limits=current.limits, budget=current.budget)


def _key(name: str, tenant: str, record: KeyRecord) -> ApiKey:
    return ApiKey(
        name=name,
        digest=record.sha256,
        tenant=tenant,
        team=record.team,
        models=record.models,
        services=frozenset(map(Ref.parse, record.services)),
        expires=record.expires,
        limits=None if record.rate_limits == NO_LIMITS else record.rate_limits,
        budget=record.budget,
        sheddable=record.sheddable,
        allow_downgrade=record.allow_downgrade,
    )


@reused_per_object
def _models(
    _: int,
    rows: tuple[tuple[ObservedService, tuple[Pod, ...], str | None], ...],
    pools: tuple[_PoolTerms, ...],
) -> tuple[OfferedModel, ...]:
    """Return the models of neighbours by age, so that an edit looks at these alone."""
    return tuple(
        model for service, pods, tenant in rows for model in _versions(service, pods, tenant, pools)
    )


def _versions(
    service: ObservedService,
    pods: tuple[Pod, ...],
    tenant: str | None,
    pools: tuple[_PoolTerms, ...],
) -> tuple[OfferedModel, ...]:
    """Return the model of a service, and the changed version of it that gates may ask."""
    tried = [pod for pod in pods if pod.tried]
    if not tried:
        return (_model(service.uid, service, pods, tenant, pools),)
    serving = tuple(pod for pod in pods if not pod.tried)
    model = _model(service.uid, service, serving, tenant, pools)
    # Those of a version that was given up may be there until the garbage collector comes.
    newest = max(tried, key=lambda pod: (pod.created, pod.ref)).template_digest
    replicas = tuple(
        _tried_replica(service, pod, _variant(pod, pools))
        for pod in tried
        if pod.template_digest == newest
    )
    # Its files and its context may be others, so what is known of those of the model is not said.
    changed = replace(
        model,
        service=service.ref.candidate,
        uid=f"{service.uid}/candidate",
        replicas=replicas,
        max_model_len=_longest_context(replicas),
        image=None,
        embedding_width=None,
        paths=(),
        moves_streams=False,
        stopped=False,
        may_sleep=False,
        is_asleep=False,
        unfunded_by=None,
    )
    return model, changed


@reused_per_object
def _model(
    _: str,
    service: ObservedService,
    pods: tuple[Pod, ...],
    tenant: str | None,
    pools: tuple[_PoolTerms, ...],
) -> OfferedModel:
    """Return the model of one service, by its UID."""
    spec, variant, cost = service.spec, service.status.variant, service.status.cost
    assert spec is not None  # noqa: S101
    known_spec = with_known_files(service).spec or spec
    shape, task = shape_of(known_spec), pooling_task(known_spec)
    replicas = tuple(_replica(service, pod, _variant(pod, pools)) for pod in pods)
    return replace(
        offered_names(service.uid, service, tenant),
        created=int(service.created.timestamp()),
        service_class=spec.service_class,
        ttft_seconds=spec.slo.ttft_p95.total_seconds(),
        itl_seconds=spec.slo.itl_p95.total_seconds(),
        max_model_len=_longest_context(replicas)
        or (variant.max_model_len if variant is not None else None),
        image=shape.image if shape is not None else None,
        embedding_width=hidden_size(shape) if shape is not None and task == "Embed" else None,
        paths=own_paths(task) if shape is not None else (),
        generates=task is None,
        replicas=replicas,
        is_listed=bool(replicas) or not _is_refused(service.status),
        moves_streams=bool(spec.drain.move_streams),
        stopped=spec.fixed_replicas == 0,
        may_sleep=_may_sleep(spec),
        is_asleep=is_asleep(spec, service.status),
        unfunded_by=_unfunded_by(service.status.tenant),
        wake=spec.access.wake,
        limits=spec.access.rate_limits,
        token_cost=money(cost.per_million_tokens, cost.currency)
        if cost is not None and cost.per_million_tokens is not None
        else None,
    )


def _may_sleep(spec: InferenceServiceSpec) -> bool:
    return spec.fixed_replicas is None and spec.scaling.may_sleep_at_times


def is_asleep(spec: InferenceServiceSpec, status: InferenceServiceStatus) -> bool:
    """Return whether a service has no replica until a request comes."""
    scaling = status.scaling
    return _may_sleep(spec) and scaling is not None and scaling.desired_replicas == 0


@reused_per_object
def offered_route(_: str, route: ObservedRoute, tenant: str | None) -> OfferedModel:
    """Return what a route offers, by its UID."""
    spec = route.spec
    assert spec is not None  # noqa: S101
    return OfferedModel(
        service=route.ref,
        uid=route.uid,
        created=int(route.created.timestamp()),
        names=(route.served_name,),
        tenant=tenant,
        tenants=frozenset(spec.access.tenants),
        public=spec.access.public,
        route=spec,
    )


@reused_per_object
def _for_charged(_: str, model: OfferedModel, charged: frozenset[str]) -> OfferedModel:
    """Return a model that is for tenants with limits of charges alone."""
    tenants = charged if model.public else model.tenants & charged
    return replace(model, public=False, tenants=tenants)


def _is_refused(status: InferenceServiceStatus) -> bool:
    accepted = find_condition(status.conditions, "Accepted")
    return accepted is not None and accepted.status == "False"


def _unfunded_by(tenant: TenancyStatus | None) -> str | None:
    if tenant is None or tenant.start_refusal is None:
        return None
    return f"TenantBudget/{tenant.budget}" if tenant.budget else "no TenantBudget"


def _longest_context(replicas: Iterable[EngineReplica]) -> int | None:
    """Return the longest context of those that take requests; None where none of them is known."""
    ready = (each for each in replicas if each.ready_since is not None and not each.leaving)
    return max((each.max_model_len for each in ready if each.max_model_len), default=None)


def _replica(service: ObservedService, pod: Pod, variant: _KnownVariant) -> EngineReplica:
    return EngineReplica(
        pod=pod.ref,
        uid=pod.uid,
        address=f"[{pod.address}]:{PORT}" if ":" in str(pod.address) else f"{pod.address}:{PORT}",
        ready_since=pod.ready_since,
        leaving=pod.leaving or pod.is_stopping,
        engine=pod.engine,
        variant=pod.variant,
        precision=None if variant == _KnownVariant() else variant.precision or CHECKPOINT,
        price_version=variant.price_version,
        max_num_seqs=pod.max_num_seqs,
        max_num_batched_tokens=pod.max_num_batched_tokens,
        max_model_len=pod.max_model_len,
        step_time=_step_time(service, pod, variant),
    )


def _tried_replica(service: ObservedService, pod: Pod, variant: _KnownVariant) -> EngineReplica:
    """Return a replica that answers gates while its readiness gate keeps users away."""
    return replace(
        _replica(service, pod, variant),
        ready_since=(pod.started or pod.created) if pod.containers_ready else None,
        leaving=pod.terminating,
        # Of the version in force.
        step_time=None,
    )


def _pool_terms(pool: Pool) -> _PoolTerms:
    price_version = None
    if pool.spec is not None:
        prices = sorted(price.model_dump_json(by_alias=True) for price in pool.spec.prices)
        price_version = f"{pool.name}@{hashlib.sha256(''.join(prices).encode()).hexdigest()[:12]}"
    return _PoolTerms(pool.name, pool.status.product, price_version)


def _variant(pod: Pod, pools: Sequence[_PoolTerms]) -> _KnownVariant:
    """Return what runs in a pod, which may be of an earlier variant than the service has now.

    Nothing is known of it where no pool makes the name of its variant.
    """
    resource, count = next(iter(pod.devices.items()), ("", 0))
    profile = resource.removeprefix(MIG_PREFIX) if resource.startswith(MIG_PREFIX) else None
    for pool in pools:
        for precision in _PRECISIONS:
            if Variant(pool.name, profile or f"{count}gpu", precision).name == pod.variant:
                hardware = _hardware(pool.product, profile, count)
                return _KnownVariant(pool.price_version, hardware, precision)
    return _KnownVariant()


def _step_time(service: ObservedService, pod: Pod, variant: _KnownVariant) -> StepTime | None:
    """Return the predicted step time of a replica, times the ratio that was measured.

    Returns None for a model or hardware of unknown size.
    """
    spec = with_known_files(service).spec
    shape = shape_of(spec) if spec is not None else None
    if spec is None or shape is None or variant.hardware is None:
        return None
    terms, shape = engine_terms(spec.engine), shape_in(spec, shape, variant.precision)
    predicted = step_time(shape, variant.precision, variant.hardware, terms)
    if (tokens_per_step := measured_tokens_per_step(service.status.speculation)) is not None:
        predicted = predicted.with_accepted(tokens_per_step - 1)
    ratio = measured_ratio(service.status.speed, spec.model.uri, pod.variant)
    return predicted if ratio is None else as_measured(predicted, ratio, shape, variant.precision)


def _hardware(name: str | None, profile: str | None, count: int) -> Hardware | None:
    product = products().get(name or "")
    if product is None:
        return None
    return (
        whole_gpu_hardware(product, count) if profile is None else slice_hardware(product, profile)
    )
