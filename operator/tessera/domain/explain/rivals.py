"""All hardware of the fleet, and why a service does not run on it."""

from collections.abc import Iterator, Sequence

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.allotment import ServicePlan
from tessera.domain.explain.decision import Alternative
from tessera.domain.explain.room import floor_of, free, precise, view_of
from tessera.domain.placement import ANY, STEADY, Choice, Considered, cheapest_hour
from tessera.domain.plan import Plan
from tessera.domain.pools import Offer
from tessera.domain.sizing import Fit, Misfit
from tessera.domain.snapshot import Snapshot


def alternatives(
    snapshot: Snapshot, plan: Plan, allotment: ServicePlan, looked: Sequence[Considered]
) -> Iterator[Alternative]:
    """Those that fit by price, then those that do not, then pools without hardware."""
    spec = allotment.service.spec
    if spec is None:
        return
    fitting = [
        (one, Choice(offer=one.offer, fit=one.fit)) for one in looked if isinstance(one.fit, Fit)
    ]
    for one, choice in sorted(fitting, key=lambda pair: cheapest_hour(pair[1])):
        why = forbidden(spec, one.offer) or _compared(snapshot, plan, allotment, choice)
        yield Alternative(name=choice.variant, price=precise(choice.hourly), why=why)
    for one in looked:
        if isinstance(one.fit, Misfit):
            precision = f" in {one.fit.precision}" if one.fit.precision else ""
            yield Alternative(
                name=f"{one.offer.hardware.name} of {one.offer.pool}{precision}",
                price=precise(one.offer.hourly),
                why=forbidden(spec, one.offer) or _unfit(spec, one.fit),
            )
    for view in plan.pools:
        if not view.offers:
            blocker = view.discovered if view.price else view.accepted
            yield Alternative(name=view.pool.name, price="", why=blocker.message)


def forbidden(spec: InferenceServiceSpec, offer: Offer) -> str:
    """Why the service may not run there; empty where it may."""
    if spec.placement.pools and offer.pool not in spec.placement.pools:
        return "spec.placement.pools does not name the pool"
    if offer.planned and spec.placement.mig != "auto":
        return "not cut; spec.placement.mig auto would let it be cut"
    if spec.placement.isolation == "gpu" and not offer.hardware.alone:
        return "spec.placement.isolation gpu: others may share the GPU"
    return off_limits(spec, offer)


def off_limits(spec: InferenceServiceSpec, offer: Offer) -> str:
    """Why the class may not run there, whatever pools are named."""
    if offer.tier in (ANY if spec.service_class == "batch" else STEADY):
        return ""
    return f"{offer.tier}: a service of class {spec.service_class} never runs there"


def _unfit(spec: InferenceServiceSpec, misfit: Misfit) -> str:
    if misfit.needed_mib:
        return (
            f"too small: devices of {misfit.needed_mib} MiB are needed, "
            f"these have {misfit.hardware.memory_mib}"
        )
    gap = spec.slo.inter_token_p95.total_seconds() * 1e3
    if misfit.inter_token_ms > gap:
        return f"too slow: {misfit.inter_token_ms:.1f} ms a token, {gap:.0f} are promised"
    first = spec.slo.ttft_p95.total_seconds() * 1e3
    return f"too slow: a prompt takes {misfit.prefill_ms:.0f} ms, {first:.0f} are promised"


def _compared(snapshot: Snapshot, plan: Plan, allotment: ServicePlan, other: Choice) -> str:
    """How hardware on which the model fits stands to the chosen one."""
    chosen = allotment.choice
    if chosen is None:
        return "fits"
    if other.variant == chosen.variant:
        return "chosen"
    room = free(snapshot, view_of(plan, other.offer.pool), other.offer)
    wanted = floor_of(allotment)
    before, after = chosen.offer.choosing.nanos, other.offer.choosing.nanos
    if after > before:
        told = f"{after / before:.1f} times the price" if before else "dearer"
        return f"{told}, with what the layout strands in both"
    if room < wanted:
        return f"full: {room} free, {wanted} wanted at the start"
    if allotment.workload is not None:
        return "cheaper or as cheap, but a running service is not moved"
    return "as cheap, and slower or later by name"
