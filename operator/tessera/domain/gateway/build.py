"""The directory of a gateway, from what it observes of the cluster."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.api.inference_service import VariantStatus
from tessera.api.key_record import KeyRecord
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.budget.budgets import NamespaceClaim, namespace_claims
from tessera.domain.gateway.directory import (
    ApiKey,
    Directory,
    EngineReplica,
    OfferedModel,
    RateLimit,
    RateLimits,
    TenantLimits,
)
from tessera.domain.hardware.device import Hardware, slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.incremental import reused, reused_per_object
from tessera.domain.names import PORT
from tessera.domain.observed.snapshot import Budget, ObservedService, Pod, Ref
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.domain.perf import MIN_REQUESTS, StepTime, step_time
from tessera.domain.placement.checks import shape_of
from tessera.domain.service.model_files import with_known_shape
from tessera.domain.service.proposal import scaling_of
from tessera.domain.speed.measurements import MAX_RATIO, MIN_RATIO, own_measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayObservations:
    """What a gateway observes of the cluster."""

    services: Sequence[ObservedService] = ()
    pods: Sequence[Pod] = ()
    budgets: Sequence[Budget] = ()
    keys: Sequence[TenantKeys] = ()


def build_directory(observed: GatewayObservations, default_limits: RateLimits) -> Directory:
    """Return all that requests are judged by; equal observations make equal directories."""
    claims = [claim for claim in namespace_claims(observed.budgets) if claim.spec is not None]
    tenants = {claim.budget.name: _tenant(claim) for claim in claims}
    tenant_by_namespace = {
        namespace: tenant.name for tenant in tenants.values() for namespace in tenant.namespaces
    }
    pods = defaultdict[Ref, list[Pod]](list)
    for pod in observed.pods:
        if pod.service.name and pod.address is not None:
            pods[pod.service].append(pod)
    return Directory(
        models=tuple(
            _model(
                service.uid,
                service,
                tuple(pods[service.ref]),
                tenant_by_namespace.get(service.ref.namespace),
            )
            for service in sorted(
                observed.services, key=lambda service: (service.created, service.ref)
            )
            if service.spec is not None and not service.deleting
        ),
        tenants=tenants,
        keys=_keys(tuple(observed.keys), frozenset(tenants)),
        default_limits=default_limits,
    )


def rate_limits(spec: RateLimitsSpec) -> RateLimits:
    """Return the limits that a spec describes."""
    return RateLimits(
        requests=_rate(spec.requests),
        input_tokens=_rate(spec.input_tokens),
        output_tokens=_rate(spec.output_tokens),
        total_tokens=_rate(spec.total_tokens),
        concurrent_requests=spec.concurrent_requests,
        max_context_tokens=spec.max_context_tokens,
        max_output_tokens=spec.max_output_tokens,
    )


def _rate(spec: PeriodLimits) -> RateLimit:
    return RateLimit(per_second=spec.per_second, per_minute=spec.per_minute, per_day=spec.per_day)


def _tenant(claim: NamespaceClaim) -> TenantLimits:
    assert claim.spec is not None  # noqa: S101
    return TenantLimits(
        name=claim.budget.name,
        namespaces=claim.namespaces,
        weight=float(claim.spec.weight),
        limits=rate_limits(claim.spec.rate_limits),
        teams={name: rate_limits(limits) for name, limits in sorted(claim.spec.teams.items())},
    )


@reused
def _keys(secrets: tuple[TenantKeys, ...], tenants: frozenset[str]) -> Mapping[str, ApiKey]:
    """Return the keys of existing tenants; of one name or digest the first Secret's holds."""
    keys: dict[str, ApiKey] = {}
    names: set[tuple[str, str]] = set()
    for secret in sorted(secrets, key=lambda secret: secret.secret):
        if secret.tenant not in tenants:
            continue
        for name, record in sorted(secret.records.items()):
            if record.sha256 not in keys and (secret.tenant, name) not in names:
                names.add((secret.tenant, name))
                keys[record.sha256] = _key(name, secret.tenant, record)
    return keys


def _key(name: str, tenant: str, record: KeyRecord) -> ApiKey:
    limits = rate_limits(record.rate_limits)
    return ApiKey(
        name=name,
        digest=record.sha256,
        tenant=tenant,
        team=record.team,
        models=record.models,
        expires=record.expires,
        limits=None if limits == RateLimits() else limits,
    )


@reused_per_object
def _model(
    _: str, service: ObservedService, pods: tuple[Pod, ...], tenant: str | None
) -> OfferedModel:
    """Return the model of one service, by its UID."""
    spec, variant = service.spec, service.status.variant
    assert spec is not None  # noqa: S101
    access = spec.access
    names = dict.fromkeys((spec.model.served_name or service.ref.name, *access.aliases))
    speed = predicted_step_time(service)
    return OfferedModel(
        service=service.ref,
        uid=service.uid,
        names=tuple(names),
        adapters=tuple(adapter.name for adapter in spec.model.adapters),
        tenant=tenant,
        tenants=frozenset(access.tenants),
        public=access.public,
        service_class=spec.service_class,
        ttft_seconds=spec.slo.ttft_p95.total_seconds(),
        max_model_len=variant.max_model_len if variant is not None else None,
        replicas=tuple(
            _replica(pod, variant if variant and pod.variant == variant.name else None, speed)
            for pod in sorted(pods, key=lambda pod: pod.ref)
        ),
        may_sleep=spec.replicas is None and scaling_of(spec).may_sleep,
        limits=rate_limits(access.rate_limits),
    )


def _replica(pod: Pod, variant: VariantStatus | None, speed: StepTime | None) -> EngineReplica:
    """Return one replica; of another variant than the status has, neither size nor speed."""
    return EngineReplica(
        pod=pod.ref,
        uid=pod.uid,
        address=f"[{pod.address}]:{PORT}" if ":" in str(pod.address) else f"{pod.address}:{PORT}",
        ready_since=pod.ready_since,
        leaving=pod.leaving or pod.terminating or pod.draining_since is not None,
        max_num_seqs=variant.max_num_seqs if variant is not None else None,
        max_num_batched_tokens=variant.max_num_batched_tokens if variant is not None else None,
        step_time=speed if variant is not None else None,
    )


def predicted_step_time(service: ObservedService) -> StepTime | None:
    """Return the step time of a service's variant, times the ratio that was measured.

    Returns None for a model or hardware of unknown size.
    """
    variant, spec = service.status.variant, with_known_shape(service).spec
    shape = shape_of(spec) if spec is not None else None
    hardware = _hardware(variant) if variant is not None else None
    if variant is None or shape is None or hardware is None:
        return None
    precision = None if variant.precision == "checkpoint" else variant.precision
    predicted = step_time(shape, precision, hardware)
    measured = own_measurement(service, service.status.speed)
    if (
        measured is None
        or measured.requests < MIN_REQUESTS
        or service.status.speed is None
        or service.status.speed.variant != variant.name
    ):
        return predicted
    return predicted.scaled(min(max(measured.ratio, MIN_RATIO), MAX_RATIO), "Measured")


def _hardware(variant: VariantStatus) -> Hardware | None:
    product = products().get(variant.product)
    if product is None:
        return None
    if variant.profile is None:
        return whole_gpu_hardware(product, variant.gpus)
    return slice_hardware(product, variant.profile)
