"""Where a service runs, and what would bring it elsewhere."""

from collections.abc import Iterator, Sequence
from decimal import Decimal

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import Condition
from tessera.domain.allotment import ServicePlan
from tessera.domain.checks import shape_of
from tessera.domain.explain.decision import Decision, Numbers
from tessera.domain.explain.rivals import alternatives, forbidden, off_limits
from tessera.domain.explain.room import floor_of, free, precise, view_of
from tessera.domain.placement import Choice, Considered, cheapest_hour, considered
from tessera.domain.plan import Plan
from tessera.domain.pools import PoolView
from tessera.domain.ref import Ref
from tessera.domain.sizing import Fit
from tessera.domain.snapshot import Snapshot


def explain_placed(
    snapshot: Snapshot, plan: Plan, allotment: ServicePlan, placed: Condition
) -> Decision:
    """The hardware with its price, and every other hardware of the fleet."""
    spec, choice = allotment.service.spec, allotment.choice
    looked = _looked(plan, spec) if spec is not None and allotment.accepted.reason.is_true else []
    return Decision(
        topic="placed",
        reason=placed.reason,
        message=placed.message,
        numbers=() if choice is None else _numbers(snapshot, plan, choice, allotment),
        alternatives=tuple(alternatives(snapshot, plan, allotment, looked)),
        would_change=(placed.message,)
        if choice is None
        else tuple(_would_change(snapshot, plan, allotment, looked, choice)),
    )


def _numbers(snapshot: Snapshot, plan: Plan, choice: Choice, allotment: ServicePlan) -> Numbers:
    offer, view = choice.offer, view_of(plan, choice.offer.pool)
    total = choice.hourly.times(allotment.scale.replicas)
    return (
        ("hardware", f"{offer.hardware.name} of {offer.hardware.product}"),
        ("pool", f"{offer.pool} ({offer.tier})"),
        ("price of a replica", f"{precise(choice.hourly)} an hour"),
        ("price of all", f"{precise(total)} an hour for {allotment.scale.replicas} replicas"),
        ("room", f"{free(snapshot, view, offer)} of {offer.replicas} replicas free in the pool"),
        *_layouts(view, allotment.service.ref),
    )


def _layouts(view: PoolView, service: Ref) -> Iterator[tuple[str, str]]:
    """Why the pool's plan of layouts gives the service such slices, as far as it has one."""
    status = view.pool.status.mig
    target = status.target if status is not None else None
    for one in target.services if target is not None else ():
        if one.service == str(service) and one.why:
            yield "layouts", one.why


def _looked(plan: Plan, spec: InferenceServiceSpec) -> list[Considered]:
    """The model on all hardware of all pools, allowed or not."""
    shape = shape_of(spec)
    if shape is None:
        return []
    return considered(spec, shape, [offer for view in plan.pools for offer in view.offers])


def _would_change(
    snapshot: Snapshot,
    plan: Plan,
    allotment: ServicePlan,
    looked: Sequence[Considered],
    chosen: Choice,
) -> Iterator[str]:
    """What is missing where it is, then prices at which other pools would be cheaper."""
    spec = allotment.service.spec
    if spec is None:
        return
    if stuck := sum(pod.unschedulable is not None for pod in allotment.pods):
        yield (
            f"{stuck} more free {chosen.offer.hardware.name} in {chosen.offer.pool}, or {stuck} "
            "replicas less"
        )
    rivals = sorted(
        (Choice(offer=one.offer, fit=one.fit) for one in looked if isinstance(one.fit, Fit)),
        key=cheapest_hour,
    )
    told = {chosen.offer.pool}
    for rival in rivals:
        pool = rival.offer.pool
        if pool not in told and not forbidden(spec, rival.offer):
            told.add(pool)
            yield from _compared_to(snapshot, plan, allotment, chosen, rival)
    elsewhere = {
        rival.offer.pool
        for rival in rivals
        if not off_limits(spec, rival.offer)
        and rival.offer.pool not in told
        and rival.hourly.currency == chosen.hourly.currency
    }
    if elsewhere:
        yield (
            f"{', '.join(sorted(elsewhere))} in spec.placement.pools: the model fits there too, "
            "and the cheapest that is allowed is chosen"
        )
    elif told == {chosen.offer.pool}:
        yield "the model fits in no other pool; a new one would be compared by price"


def _compared_to(
    snapshot: Snapshot, plan: Plan, allotment: ServicePlan, chosen: Choice, rival: Choice
) -> Iterator[str]:
    """The best of another pool: what it is missing."""
    pool, before, after = rival.offer.pool, chosen.offer.choosing, rival.offer.choosing
    price = view_of(plan, pool).price
    if after.nanos <= before.nanos:
        yield _cheaper(snapshot, plan, allotment, rival)
    elif price is not None:
        limit = price.per_gpu_hour * Decimal(before.nanos) / after.nanos
        moved = "; but a running service is not moved" if allotment.workload is not None else ""
        yield (
            f"a price below {limit:.2f} {price.currency} a GPU and hour in {pool} (now "
            f"{price.per_gpu_hour}) would make {rival.variant} the cheapest{moved}"
        )


def _cheaper(snapshot: Snapshot, plan: Plan, allotment: ServicePlan, rival: Choice) -> str:
    room = free(snapshot, view_of(plan, rival.offer.pool), rival.offer)
    wanted = floor_of(allotment)
    if room < wanted:
        return (
            f"{wanted - room} more free {rival.offer.hardware.name} in {rival.offer.pool}, at "
            f"{precise(rival.hourly)} an hour, would take it if it were made anew"
        )
    return (
        f"made anew, the service would go to {rival.variant} at {precise(rival.hourly)} an hour; "
        "while it runs it is not moved"
    )
