"""All hardware of the fleet, and why a service does not run on it."""

from collections.abc import Iterator, Sequence

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.explain.decision import Alternative
from tessera.domain.explain.free_capacity import pool_view, required_replicas
from tessera.domain.hardware.pools import HardwareOffer, admits
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.placement.free_hardware import replicas_free_now
from tessera.domain.placement.placement import (
    HardwareCandidate,
    HardwareChoice,
    price_order,
)
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.sizing.sizing import ReplicaFit, ReplicaMisfit


def alternatives(
    snapshot: Snapshot,
    plan: Plan,
    service_plan: ServicePlan,
    candidates: Sequence[HardwareCandidate],
) -> Iterator[Alternative]:
    """Yield hardware that fits by price, then hardware that does not, then pools without any."""
    spec = service_plan.service.spec
    if spec is None:
        return
    fitting = [
        (sized, HardwareChoice(offer=sized.offer, fit=sized.fit))
        for sized in candidates
        if isinstance(sized.fit, ReplicaFit)
    ]
    for candidate, choice in sorted(fitting, key=lambda pair: price_order(pair[1])):
        message = exclusion_reason(plan, service_plan, candidate.offer) or _comparison(
            snapshot, plan, service_plan, choice
        )
        yield Alternative(name=choice.variant, price=choice.hourly.formatted(4), message=message)
    for candidate in candidates:
        if isinstance(candidate.fit, ReplicaMisfit):
            precision = f" in {candidate.fit.precision}" if candidate.fit.precision else ""
            yield Alternative(
                name=f"{candidate.offer.hardware.name} of {candidate.offer.pool}{precision}",
                price=candidate.offer.hourly.formatted(4),
                message=exclusion_reason(plan, service_plan, candidate.offer)
                or _misfit_message(spec, candidate.fit),
            )
    for view in plan.pools:
        if not view.offers:
            blocker = view.discovered if view.price else view.accepted
            yield Alternative(name=view.pool.name, price="", message=blocker.message)


def exclusion_reason(plan: Plan, service_plan: ServicePlan, offer: HardwareOffer) -> str:
    """Return why the spec or the pool does not allow an offer; empty when both do."""
    spec = service_plan.service.spec
    if spec is None:
        return ""
    if spec.placement.pools and offer.pool not in spec.placement.pools:
        return "spec.placement.pools does not list the pool"
    if offer.needs_repartition and spec.placement.mig != "Auto":
        return "no such slice exists; spec.placement.mig Auto would let Tessera partition GPUs"
    if spec.placement.isolation == "Gpu" and not offer.hardware.exclusive:
        return "spec.placement.isolation Gpu: other pods may share the GPU"
    return pool_exclusion(plan, service_plan, offer)


def pool_exclusion(plan: Plan, service_plan: ServicePlan, offer: HardwareOffer) -> str:
    """Return why the pool excludes the service, whatever pools that lists; else empty."""
    service = service_plan.service
    if not admits(pool_view(plan, offer.pool).pool.spec, service.ref.namespace):
        return f"spec.namespaces of the pool does not list {service.ref.namespace}"
    spec = service.spec
    if spec is None or offer.tier in spec.placement.tiers:
        return ""
    return f"spec.placement.tiers does not list {offer.tier}"


def _misfit_message(spec: InferenceServiceSpec, misfit: ReplicaMisfit) -> str:
    if misfit.needed_mib:
        return (
            f"too small: needs devices of {misfit.needed_mib} MiB, "
            f"these have {misfit.hardware.memory_mib} MiB"
        )
    itl_ms = spec.slo.itl_p95.total_seconds() * 1e3
    if misfit.inter_token_ms > itl_ms:
        return f"too slow: ITL {misfit.inter_token_ms:.1f} ms, SLO {itl_ms:.0f} ms"
    ttft_ms = spec.slo.ttft_p95.total_seconds() * 1e3
    return f"too slow: TTFT {misfit.prefill_ms:.0f} ms, SLO {ttft_ms:.0f} ms"


def _comparison(
    snapshot: Snapshot, plan: Plan, service_plan: ServicePlan, other: HardwareChoice
) -> str:
    """Return how an allowed alternative compares with the chosen hardware."""
    chosen = service_plan.choice
    if chosen is None:
        return "fits"
    if other.variant == chosen.variant:
        return "chosen"
    offer = other.offer
    free_count = replicas_free_now(snapshot, pool_view(plan, offer.pool), offer)
    required = required_replicas(service_plan)
    chosen_nanos, other_nanos = (chosen.offer.comparison_price.nanos, offer.comparison_price.nanos)
    if other_nanos > chosen_nanos:
        price_ratio = (
            f"{other_nanos / chosen_nanos:.1f} times the price"
            if chosen_nanos
            else "more expensive"
        )
        return f"{price_ratio}, stranded slices included"
    if free_count < required:
        return f"full: {free_count} free, {required} required at the start"
    if service_plan.workload is not None:
        return "no more expensive, but a running service is not moved"
    return "same price, but slower or later by name"
