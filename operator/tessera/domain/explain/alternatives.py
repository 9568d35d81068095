"""All hardware of the fleet, and why a service does not run on it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.text import counted
from tessera.domain.hardware.pools import HardwareOffer, PoolView, admits
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.placement.candidates import HardwareCandidate, HardwareChoice, watts_clause
from tessera.domain.placement.free_hardware import replicas_free_now, why_not_beside
from tessera.domain.placement.variant_cost import by_cost, capacity_of, cash_of
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Alternative
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.sizing.precision import UnsupportedPrecision
from tessera.domain.sizing.sizing import ReplicaFit, ReplicaMisfit


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInFleet:
    """A service with a spec, and the fleet in which it is placed."""

    snapshot: Snapshot
    plan: Plan
    service_plan: ServicePlan
    spec: InferenceServiceSpec

    def view_of(self, offer: HardwareOffer) -> PoolView:
        return next(view for view in self.plan.pools if view.pool.name == offer.pool)

    def free_replicas(self, offer: HardwareOffer) -> int:
        """Return how many replicas fit on what is free of an offer now."""
        return replicas_free_now(self.snapshot, self.view_of(offer), offer)

    def start_of(self, choice: HardwareChoice) -> timedelta:
        """Return the expected time until a further replica is ready on a node."""
        recorded = self.service_plan.service.status.start
        return expected_lead(self.service_plan.pods, recorded, choice.variant)

    def by_cost(self, choice: HardwareChoice) -> tuple[Fraction, str]:
        """Return the sort key of variants: the first one gets further replicas."""
        return by_cost(choice, self.start_of(choice))

    def cash_of(self, choice: HardwareChoice) -> int:
        """Return the nano-units per hour that a replica costs beyond what is paid anyway."""
        return cash_of(choice, self.start_of(choice))

    def possible_replicas(self, offer: HardwareOffer) -> int:
        """Return the same with the nodes that an autoscaler may add."""
        return self.free_replicas(offer) + offer.startable_replicas

    @property
    def required_replicas(self) -> int:
        """Return the number of replicas for which the service is placed."""
        if self.spec.fixed_replicas is not None:
            return max(1, self.service_plan.desired_pods)
        return self.spec.scaling.floor

    def exclusion_reason(self, offer: HardwareOffer) -> str:
        """Return why the spec or the pool does not allow an offer; empty when both do."""
        placement = self.spec.placement
        if placement.pools and offer.pool not in placement.pools:
            return "spec.placement.pools does not list the pool"
        if offer.needs_repartition and placement.mig != "Auto":
            return "no such slice exists; spec.placement.mig Auto would let Tessera partition GPUs"
        if placement.isolation == "Gpu" and not offer.hardware.exclusive:
            return "spec.placement.isolation Gpu: other pods may share the GPU"
        return self.pool_exclusion(offer)

    def pool_exclusion(self, offer: HardwareOffer) -> str:
        """Return why the pool excludes the service, whatever pools that lists; else empty."""
        namespace = self.service_plan.service.ref.namespace
        if not admits(self.view_of(offer).pool.spec, namespace):
            return f"spec.namespaces of the pool does not list {namespace}"
        if offer.tier in self.spec.placement.tiers:
            return ""
        return f"spec.placement.tiers does not list {offer.tier}"


def alternatives(
    placed: ServiceInFleet,
    choices: Sequence[HardwareChoice],
    candidates: Sequence[HardwareCandidate],
) -> Iterator[Alternative]:
    """Yield the choices, then the candidates that do not fit, then pools without any hardware."""
    for choice in choices:
        message = placed.exclusion_reason(choice.offer) or _comparison(placed, choice)
        yield Alternative(name=choice.variant, price=choice.hourly.formatted(4), message=message)
    for candidate in candidates:
        if not isinstance(candidate.fit, ReplicaFit):
            precision = f" in {candidate.fit.precision}" if candidate.fit.precision else ""
            yield Alternative(
                name=f"{candidate.offer.hardware.name} of {candidate.offer.pool}{precision}",
                price=candidate.offer.hourly.formatted(4),
                message=placed.exclusion_reason(candidate.offer)
                or misfit_message(placed.spec, candidate.fit),
            )
    for view in placed.plan.pools:
        if not view.offers:
            blocker = view.discovered if view.price else view.accepted
            yield Alternative(name=view.pool.name, price="", message=blocker.message)


def misfit_message(spec: InferenceServiceSpec, misfit: ReplicaMisfit | UnsupportedPrecision) -> str:
    """Return why the model does not run on hardware, with the numbers."""
    if isinstance(misfit, UnsupportedPrecision):
        return misfit.message
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


def _comparison(placed: ServiceInFleet, other: HardwareChoice) -> str:
    """Return how an allowed alternative compares with the chosen hardware."""
    chosen, placement = placed.service_plan.choice, placed.service_plan.placement
    if chosen is None:
        return "fits"
    desired = {each.choice.variant: each.desired for each in placed.service_plan.used_variants}
    if len(placed.service_plan.variants) > 1 and other.variant in desired:
        return f"chosen for {counted(desired[other.variant], 'replica')}"
    if other.variant == chosen.variant:
        return "chosen"
    is_running = bool(placed.service_plan.current_workloads)
    if is_running and any(each.variant == other.variant for each in placement.choices):
        return _beside(placed, chosen, other)
    return _why_not(placed, chosen, other)


def _beside(placed: ServiceInFleet, chosen: HardwareChoice, other: HardwareChoice) -> str:
    """Return when a variant that may serve beside the chosen hardware gets replicas."""
    if placed.by_cost(other) > placed.by_cost(chosen):
        return f"costs more, so it takes replicas where {chosen.variant} is full"
    if not placed.possible_replicas(other.offer):
        return "costs less, but is full"
    before, after = placed.cash_of(chosen), placed.cash_of(other)
    if after * capacity_of(chosen) < before * capacity_of(other):
        return "costs less, so replicas move to it once it has had room for a while"
    return "costs less, so further replicas start on it"


def _why_not(placed: ServiceInFleet, chosen: HardwareChoice, other: HardwareChoice) -> str:
    """Return why the service does not use an alternative beside the chosen hardware."""
    offer, service_plan = other.offer, placed.service_plan
    chosen_nanos, other_nanos = chosen.offer.comparison_price.nanos, offer.comparison_price.nanos
    if other_nanos > chosen_nanos:
        price_ratio = (
            f"{other_nanos / chosen_nanos:.1f} times the price"
            if chosen_nanos
            else "more expensive"
        )
        return f"{price_ratio}, stranded slices included"
    if (free := placed.possible_replicas(offer)) < placed.required_replicas:
        return f"full: {free} free, {placed.required_replicas} required at the start"
    if service_plan.current_workloads:
        reason = why_not_beside(placed.spec, service_plan.placement, other)
        return f"no more expensive, {reason}"
    if tie := watts_clause(chosen, [other]):
        return f"not chosen: {tie}"
    return "same price, but slower or later by name"
