"""Where a service runs, what else was looked at, and why it was not that."""

from collections.abc import Iterator, Sequence
from decimal import Decimal

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import Condition
from tessera.domain.checks import shape_of
from tessera.domain.explain.decision import Alternative, Decision, Numbers
from tessera.domain.money import Money
from tessera.domain.placement import ANY, STEADY, Choice, Considered, cheapest_hour, considered
from tessera.domain.plan import Allotment, Plan, scaling_of
from tessera.domain.pools import Offer, PoolView
from tessera.domain.sizing import Fit, Misfit
from tessera.domain.snapshot import Snapshot


def explain_placed(
    snapshot: Snapshot, plan: Plan, allotment: Allotment, placed: Condition
) -> Decision:
    """The hardware with its price, and every other hardware of the fleet."""
    spec, choice = allotment.service.spec, allotment.choice
    looked = _looked(plan, spec) if spec is not None and allotment.accepted.reason.holds else []
    return Decision(
        topic="placed",
        reason=placed.reason,
        message=placed.message,
        numbers=() if choice is None else _numbers(snapshot, plan, choice, allotment),
        alternatives=tuple(_alternatives(snapshot, plan, allotment, looked)),
        would_change=(placed.message,)
        if choice is None
        else tuple(_would_change(snapshot, plan, allotment, looked, choice)),
    )


def free(snapshot: Snapshot, view: PoolView, offer: Offer) -> int:
    """Replicas of this form for which the ready nodes have devices that no engine holds.

    Only pods of Tessera are seen; what others hold counts as free.
    """
    hardware = offer.hardware
    held = sum(
        pod.devices.get(hardware.resource, 0)
        for pod in snapshot.pods
        if pod.node in view.members and pod.ended is None
    )
    return max(0, offer.replicas - -(-held // hardware.devices))


def _view(plan: Plan, name: str) -> PoolView:
    return next(view for view in plan.pools if view.pool.name == name)


def _numbers(snapshot: Snapshot, plan: Plan, choice: Choice, allotment: Allotment) -> Numbers:
    offer, view = choice.offer, _view(plan, choice.offer.pool)
    total = choice.hourly.times(allotment.scale.replicas)
    return (
        ("hardware", f"{offer.hardware.name} of {offer.hardware.product}"),
        ("pool", f"{offer.pool} ({offer.tier})"),
        ("price of a replica", f"{_precise(choice.hourly)} an hour"),
        ("price of all", f"{_precise(total)} an hour for {allotment.scale.replicas} replicas"),
        ("room", f"{free(snapshot, view, offer)} of {offer.replicas} replicas free in the pool"),
    )


def _looked(plan: Plan, spec: InferenceServiceSpec) -> list[Considered]:
    """The model on all hardware of all pools, allowed or not."""
    shape = shape_of(spec)
    if shape is None:
        return []
    return considered(spec, shape, [offer for view in plan.pools for offer in view.offers])


def _alternatives(
    snapshot: Snapshot, plan: Plan, allotment: Allotment, looked: Sequence[Considered]
) -> Iterator[Alternative]:
    """Those that fit by price, then those that do not, then pools without hardware."""
    spec = allotment.service.spec
    if spec is None:
        return
    fitting = [
        (one, Choice(offer=one.offer, fit=one.fit)) for one in looked if isinstance(one.fit, Fit)
    ]
    for one, choice in sorted(fitting, key=lambda pair: cheapest_hour(pair[1])):
        why = _forbidden(spec, one.offer) or _compared(snapshot, plan, allotment, choice)
        yield Alternative(name=choice.variant, price=_precise(choice.hourly), why=why)
    for one in looked:
        if isinstance(one.fit, Misfit):
            precision = f" in {one.fit.precision}" if one.fit.precision else ""
            yield Alternative(
                name=f"{one.offer.hardware.name} of {one.offer.pool}{precision}",
                price=_precise(one.offer.hourly),
                why=_forbidden(spec, one.offer) or _unfit(spec, one.fit),
            )
    for view in plan.pools:
        if not view.offers:
            blocker = view.discovered if view.price else view.accepted
            yield Alternative(name=view.pool.name, price="", why=blocker.message)


def _forbidden(spec: InferenceServiceSpec, offer: Offer) -> str:
    if spec.placement.pools and offer.pool not in spec.placement.pools:
        return "spec.placement.pools does not name the pool"
    return _off_limits(spec, offer)


def _off_limits(spec: InferenceServiceSpec, offer: Offer) -> str:
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


def _compared(snapshot: Snapshot, plan: Plan, allotment: Allotment, other: Choice) -> str:
    """How hardware on which the model fits stands to the chosen one."""
    chosen = allotment.choice
    if chosen is None:
        return "fits"
    if other.variant == chosen.variant:
        return "chosen"
    room = free(snapshot, _view(plan, other.offer.pool), other.offer)
    wanted = _floor(allotment)
    before, after = chosen.offer.choosing.nanos, other.offer.choosing.nanos
    if after > before:
        told = f"{after / before:.1f} times the price" if before else "dearer"
        return f"{told}, with what the layout strands in both"
    if room < wanted:
        return f"full: {room} free, {wanted} wanted at the start"
    if allotment.workload is not None:
        return "cheaper or as cheap, but a running service is not moved"
    return "as cheap, and slower or later by name"


def _floor(allotment: Allotment) -> int:
    spec = allotment.service.spec
    if spec is None or spec.replicas is not None:
        return max(1, allotment.scale.replicas)
    return scaling_of(spec).min_replicas


def _would_change(
    snapshot: Snapshot,
    plan: Plan,
    allotment: Allotment,
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
        if pool not in told and not _forbidden(spec, rival.offer):
            told.add(pool)
            yield from _compared_to(snapshot, plan, allotment, chosen, rival)
    elsewhere = {
        rival.offer.pool
        for rival in rivals
        if not _off_limits(spec, rival.offer) and rival.offer.pool not in told
    }
    if elsewhere:
        yield (
            f"{', '.join(sorted(elsewhere))} in spec.placement.pools: the model fits there too, "
            "and the cheapest that is allowed is chosen"
        )
    elif told == {chosen.offer.pool}:
        yield "the model fits in no other pool; a new one would be compared by price"


def _compared_to(
    snapshot: Snapshot, plan: Plan, allotment: Allotment, chosen: Choice, rival: Choice
) -> Iterator[str]:
    """The best of another pool: what it is missing."""
    pool, before, after = rival.offer.pool, chosen.offer.choosing, rival.offer.choosing
    price = _view(plan, pool).price
    if after.nanos <= before.nanos:
        yield _cheaper(snapshot, plan, allotment, rival)
    elif price is not None:
        limit = price.per_gpu_hour * Decimal(before.nanos) / after.nanos
        moved = "; but a running service is not moved" if allotment.workload is not None else ""
        yield (
            f"a price below {limit:.2f} {price.currency} a GPU and hour in {pool} (now "
            f"{price.per_gpu_hour}) would make {rival.variant} the cheapest{moved}"
        )


def _cheaper(snapshot: Snapshot, plan: Plan, allotment: Allotment, rival: Choice) -> str:
    room = free(snapshot, _view(plan, rival.offer.pool), rival.offer)
    wanted = _floor(allotment)
    if room < wanted:
        return (
            f"{wanted - room} more free {rival.offer.hardware.name} in {rival.offer.pool}, at "
            f"{_precise(rival.hourly)} an hour, would take it if it were made anew"
        )
    return (
        f"made anew, the service would go to {rival.variant} at {_precise(rival.hourly)} an hour; "
        "while it runs it is not moved"
    )


def _precise(amount: Money) -> str:
    return f"{amount.rounded(4)} {amount.currency}"
