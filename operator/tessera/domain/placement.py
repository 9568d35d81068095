"""On which hardware does a service run? The cheapest that fits and keeps the promise."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from tessera.api.accelerator_pool import Tier
from tessera.api.inference_service import InferenceServiceSpec, ModelShape
from tessera.domain.adapters import engine_rank, slots_mib
from tessera.domain.checks import max_model_len, shape_of
from tessera.domain.limits import Demand
from tessera.domain.money import Money
from tessera.domain.names import variant_name
from tessera.domain.pools import Offer, PoolView, plans_layouts
from tessera.domain.reasons import PlacementReason, StatusVerdict
from tessera.domain.ref import Ref
from tessera.domain.sizing import Fit, Misfit, size
from tessera.domain.snapshot import Pool
from tessera.domain.tensor_parallel import can_shard

STEADY: frozenset[Tier] = frozenset({"reserved", "onDemand"})
"""Tiers whose nodes stay; services run on no other."""
ANY: frozenset[Tier] = frozenset({"reserved", "onDemand", "spot"})
_WORTHWHILE = 512
"""A shorter context than this is not offered as a way out."""
_sized = lru_cache(maxsize=4096)(size)
"""Every turn asks for the same again, and a batch for several tiers of it."""


class Assigned(NamedTuple):
    """What a plan of layouts gives to a service."""

    pool: str
    profile: str
    """`full` for the whole GPU."""
    replicas: int


def assigned(service: Ref, pools: Iterable[Pool]) -> Assigned | None:
    """By the plans that are carried out, or were; of several pools the first by name."""
    found = [
        Assigned(pool.name, one.profile, one.replicas)
        for pool in pools
        if plans_layouts(pool.spec) and pool.status.mig and pool.status.mig.target
        for one in pool.status.mig.target.services
        if one.service == str(service)
    ]
    return min(found, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Hardware that a service can run on."""

    offer: Offer
    fit: Fit

    @property
    def variant(self) -> str:
        """Name of (pool, hardware shape, precision), the same wherever it is needed."""
        hardware = self.offer.hardware
        form = hardware.profile or f"{hardware.devices}gpu"
        return variant_name(self.offer.pool, form, self.fit.precision)

    @property
    def hourly(self) -> Money:
        return self.offer.hourly


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The choice with its reason, or the reason why there is none."""

    verdict: StatusVerdict[PlacementReason]
    choice: Choice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """Hardware that was looked at, and whether the model fits."""

    offer: Offer
    demand: Demand
    fit: Fit | Misfit


Rank = Callable[[Choice], tuple[float, float, str]]
"""Sort key of choices: the least is the best."""


def cheapest_hour(choice: Choice) -> tuple[float, float, str]:
    """Least price of a replica; of equal ones the fastest."""
    return (choice.offer.choosing.nanos, -choice.fit.limits.tokens_per_second, choice.variant)


def place(  # noqa: PLR0913 - two of them only batches need
    spec: InferenceServiceSpec,
    views: Sequence[PoolView],
    *,
    current: str | None,
    floor: int,
    taken: Mapping[tuple[str, str], int],
    tiers: Collection[Tier] = STEADY,
    rank: Rank = cheapest_hour,
    assigned: Assigned | None = None,
) -> Placement:
    """Choose hardware for a checked spec.

    A service stays on its `current` variant as long as that fits: models are not moved for a better
    price by themselves. Otherwise the cheapest hardware with room for `floor` replicas is taken,
    and if none has room, the cheapest of all, where the scheduler will say what is missing. `taken`
    counts devices that other services hold, by pool and resource. Pools of other `tiers` are left
    out, and `rank` says what cheap means.

    Where slices are planned for the service, it runs on those that the plan has `assigned` to it;
    before there are any, it stays where it is or waits.
    """
    shape = shape_of(spec)
    if shape is None:
        raise ValueError(f"{spec.model.uri} was placed without a shape")
    allowed = [
        view for view in views if not spec.placement.pools or view.pool.name in spec.placement.pools
    ]
    offers = [
        offer
        for view in allowed
        for offer in view.offers
        if offer.tier in tiers and _offered(spec, offer)
    ]
    if not offers:
        return _no_offer(allowed, tiers)
    if len(currencies := {offer.hourly.currency for offer in offers}) > 1:
        return _nowhere(
            PlacementReason.MIXED_CURRENCIES,
            f"spec.placement.pools: the pools allowed are priced in {len(currencies)} currencies "
            f"({', '.join(sorted(currencies))}), which cannot be compared; name pools of one",
        )
    sized = considered(spec, shape, offers)
    choices = sorted(
        (Choice(offer=one.offer, fit=one.fit) for one in sized if isinstance(one.fit, Fit)),
        key=rank,
    )
    if not choices:
        return _misfit(spec, [one.fit for one in sized if isinstance(one.fit, Misfit)])
    staying = [choice for choice in choices if choice.variant == current]
    if waits := _planned(spec, allowed, choices):
        return _as_assigned(waits, choices, staying, assigned)
    choices = [choice for choice in choices if not choice.offer.planned]
    roomy = [choice for choice in choices if room(choice.offer, taken) >= floor]
    return _placed((staying or roomy or choices)[0], choices)


def _offered(spec: InferenceServiceSpec, offer: Offer) -> bool:
    """Slices that are not cut are for services that are planned for, and shared GPUs not for those
    that want one for themselves."""
    placement = spec.placement
    if offer.planned and placement.mig != "auto":
        return False
    return placement.isolation == "slice" or offer.hardware.alone


def _planned(
    spec: InferenceServiceSpec, allowed: Sequence[PoolView], choices: Sequence[Choice]
) -> list[str]:
    """Pools where slices for the service are planned; none where it fits on no single device."""
    if spec.placement.mig != "auto":
        return []
    fits = {choice.offer.pool for choice in choices if choice.offer.kind}
    return [
        view.pool.name
        for view in allowed
        if view.pool.name in fits and plans_layouts(view.pool.spec)
    ]


def _as_assigned(
    pools: Sequence[str],
    choices: Sequence[Choice],
    staying: Sequence[Choice],
    assigned: Assigned | None,
) -> Placement:
    given = [choice for choice in choices if assigned and _is(choice.offer, assigned)]
    same = [choice for choice in given if choice in staying]
    if found := next(iter(same or given), None):
        told = _placed(found, [found]).verdict.message.removesuffix("; nothing else fits")
        return Placement(
            verdict=StatusVerdict(PlacementReason.PLACED, f"{told}; as planned"), choice=found
        )
    if staying:
        return _placed(staying[0], choices)
    command = f"kubectl get acceleratorpool {pools[0]} -o yaml"
    return _nowhere(
        PlacementReason.LAYOUT_PENDING,
        f"spec.placement.mig: waits for a plan of slices in {', '.join(pools)}, of which "
        f"{len(choices)} forms would do; see the condition LaidOut of {command}",
    )


def _is(offer: Offer, assigned: Assigned) -> bool:
    return offer.pool == assigned.pool and offer.kind == assigned.profile


def considered(
    spec: InferenceServiceSpec, shape: ModelShape, offers: Sequence[Offer]
) -> list[Considered]:
    """Every offer in every precision that the owner accepts, sized."""
    return [
        Considered(offer=offer, demand=demand, fit=_sized(demand, offer.hardware))
        for offer, demand in _pairs(spec, shape, offers)
    ]


def _pairs(
    spec: InferenceServiceSpec, shape: ModelShape, offers: Sequence[Offer]
) -> list[tuple[Offer, Demand]]:
    """Every offer with every precision that the owner accepts, the checkpoint's own first."""
    length = max_model_len(spec, shape)
    answer = min(spec.context.typical_output_tokens, max(1, length // 2))
    prompt = min(spec.context.typical_input_tokens, length - answer)
    adapters = spec.model.adapters
    adapters_mib = slots_mib(shape, len(adapters), engine_rank(adapters))
    precisions = (None, *(variant.precision for variant in spec.precision.variants))
    return [
        (
            offer,
            Demand(
                shape=shape,
                precision=precision,
                max_model_len=length,
                input_tokens=prompt,
                output_tokens=answer,
                ttft=spec.slo.ttft_p95,
                inter_token=spec.slo.inter_token_p95,
                adapters_mib=adapters_mib,
            ),
        )
        for offer in offers
        if can_shard(shape, offer.hardware.devices)
        for precision in precisions
    ]


def room(offer: Offer, taken: Mapping[tuple[str, str], int]) -> int:
    """Replicas that still go onto an offer; devices of one node are assumed to be together."""
    hardware = offer.hardware
    held = taken.get((offer.pool, hardware.resource), 0)
    return offer.replicas - -(-held // hardware.devices)


def _placed(choice: Choice, choices: Sequence[Choice]) -> Placement:
    hardware, memory = choice.fit.hardware, choice.fit.memory
    cheapest = choices[0]
    told = (
        f"{hardware.name} of {choice.offer.pool} at {choice.hourly} an hour: weights and reserve "
        f"take {memory.weights_mib + memory.reserve_mib} of {memory.budget_mib} MiB, the cache "
        f"holds {memory.kv_tokens} tokens"
    )
    if choice.variant != cheapest.variant:
        told += (
            f"; {cheapest.variant} would be the cheapest at {cheapest.hourly}, but was full or "
            "came later"
        )
    elif len(choices) > 1:
        told += f"; the cheapest of {len(choices)} that fit, next {_name_and_price(choices[1])}"
    else:
        told += "; nothing else fits"
    return Placement(verdict=StatusVerdict(PlacementReason.PLACED, told), choice=choice)


def _name_and_price(choice: Choice) -> str:
    return f"{choice.variant} at {choice.hourly}"


def _nowhere(reason: PlacementReason, message: str) -> Placement:
    return Placement(verdict=StatusVerdict(reason, message))


def _no_offer(allowed: Sequence[PoolView], tiers: Collection[Tier]) -> Placement:
    command = "kubectl get acceleratorpools -o wide"
    spot = [view.pool.name for view in allowed if any(o.tier not in tiers for o in view.offers)]
    if not allowed:
        return _nowhere(
            PlacementReason.NO_POOL,
            f"spec.placement.pools: there is no AcceleratorPool yet ({command} shows 0); "
            "make one for the GPU nodes",
        )
    if spot:
        return _nowhere(
            PlacementReason.NO_POOL,
            f"spec.placement.pools: {', '.join(spot)} is spot, where 0 services may run; "
            "allow a pool of another tier",
        )
    told = "; ".join(f"{view.pool.name}: {_obstacle(view)}" for view in allowed)
    return _nowhere(
        PlacementReason.NO_HARDWARE,
        f"spec.placement.pools: {len(allowed)} allowed, none has usable devices ({told}); "
        f"see {command}",
    )


def _obstacle(view: PoolView) -> str:
    return (view.discovered if view.price else view.accepted).message


def _misfit(spec: InferenceServiceSpec, misfits: Sequence[Misfit]) -> Placement:
    slow = [one for one in misfits if one.needed_mib == 0]
    if slow:
        return _nowhere(PlacementReason.TOO_SLOW, _too_slow(spec, slow))
    best = max(misfits, key=lambda one: (one.kv_tokens, -one.needed_mib / one.hardware.memory_mib))
    ways = [f"devices of {best.needed_mib} MiB", "more whole GPUs in one node"]
    if best.kv_tokens >= _WORTHWHILE:
        ways.insert(0, f"spec.context.maxModelLen of at most {best.kv_tokens}")
    shape = shape_of(spec)
    if not spec.precision.variants and (shape is None or shape.quantization is None):
        ways.append("fp8 in spec.precision.variants, which halves 16-bit weights")
    return _nowhere(
        PlacementReason.TOO_LARGE,
        f"spec.model.uri: the nearest, {_form(best)} with {best.hardware.memory_mib} MiB a device, "
        f"is too small; what would do: {', or '.join(ways)}",
    )


def _too_slow(spec: InferenceServiceSpec, slow: Sequence[Misfit]) -> str:
    best = min(slow, key=lambda one: one.inter_token_ms)
    gap, first = (
        span.total_seconds() * 1e3 for span in (spec.slo.inter_token_p95, spec.slo.ttft_p95)
    )
    if best.inter_token_ms > gap:
        return (
            f"spec.slo.interTokenP95: the fastest that fits, {_form(best)}, takes "
            f"{best.inter_token_ms:.1f} ms a token and {gap:.0f} ms are promised; promise more "
            "or add a faster pool"
        )
    return (
        f"spec.slo.ttftP95: the fastest that fits, {_form(best)}, reads a prompt of "
        f"{spec.context.typical_input_tokens} tokens in {best.prefill_ms:.0f} ms and more beside "
        f"running streams; {first:.0f} ms are promised; promise more, expect shorter prompts in "
        "spec.context.typicalInputTokens or add a faster pool"
    )


def _form(misfit: Misfit) -> str:
    precision = f" in {misfit.precision}" if misfit.precision else ""
    return f"{misfit.hardware.name} of {misfit.hardware.product}{precision}"
