"""The hardware on which a service fits, with the price and the speed of a replica."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.hardware.pools import HardwareOffer
from tessera.domain.hardware.power import replica_watts
from tessera.domain.incremental import tabulated
from tessera.domain.model.precision_files import open_precisions, shape_in
from tessera.domain.money import Money, per_million_tokens
from tessera.domain.perf.engine_terms import engine_terms
from tessera.domain.placement.checks import max_model_len, pooling_task
from tessera.domain.sizing.lora import engine_rank, slots_mib
from tessera.domain.sizing.precision import UnsupportedPrecision, unsupported_reason
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import ReplicaFit, ReplicaMisfit, size
from tessera.domain.sizing.tensor_parallel import can_shard

# Every cycle sizes the same again, and a batch once per tier.
tabulated_size = tabulated(size, size=14_336)


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareChoice:
    """Hardware on which a service fits."""

    offer: HardwareOffer
    fit: ReplicaFit
    variant: str = field(init=False, compare=False)
    """The name of pool, hardware and precision together."""

    def __post_init__(self) -> None:
        name = self.offer.variant(self.fit.precision).name
        object.__setattr__(self, "variant", name)  # every cycle asks for it

    @property
    def hourly(self) -> Money:
        return self.offer.hourly

    @property
    def token_price(self) -> Money:
        """Return the predicted price of a million output tokens at full load; of a pooling model
        of input tokens."""
        return per_million_tokens(self.hourly, self.fit.limits.tokens_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareCandidate:
    """Hardware that was considered, and whether the model fits."""

    offer: HardwareOffer
    demand: Demand
    fit: ReplicaFit | ReplicaMisfit | UnsupportedPrecision


# Returns choices with the best one first.
Ranking = Callable[[Iterable[HardwareChoice]], list[HardwareChoice]]


def by_price(choices: Iterable[HardwareChoice]) -> list[HardwareChoice]:
    """Order by the price of a replica; equal prices by watts where all are known, then by speed."""
    listed, tied = list(choices), dict[int, set[Hardware]]()
    for choice in listed:
        tied.setdefault(_price(choice), set()).add(choice.offer.hardware)
    watts = {price: _watts(several) for price, several in tied.items() if len(several) > 1}

    def order(choice: HardwareChoice) -> tuple[int, float, float, str]:
        price = _price(choice)
        drawn = watts.get(price, {}).get(choice.offer.hardware, 0.0)
        return price, drawn, -choice.fit.limits.tokens_per_second, choice.variant

    return sorted(listed, key=order)


def watts_clause(choice: HardwareChoice, others: Iterable[HardwareChoice]) -> str:
    """Return that a choice draws less than others of its price; empty where it does not."""
    equal = [choice, *(other for other in others if _price(other) == _price(choice))]
    tied, own = {each.offer.hardware for each in equal}, choice.offer.hardware
    watts = _watts(tied) if len(tied) > 1 else {}
    more = [drawn for drawn in watts.values() if drawn > watts[own]]
    if not more:
        return ""
    billed = {each.hourly for each in equal}
    price = "equal price" if len(billed) == 1 else "equal price, stranded slices included"
    return f"{price}; fewer watts: {watts[own]:.0f} W instead of {min(more):.0f} W"


def _price(choice: HardwareChoice) -> int:
    return choice.offer.comparison_price.nanos


def _watts(several: Iterable[Hardware]) -> Mapping[Hardware, float]:
    """Return what a replica draws at most on each hardware; nothing unless all are known."""
    watts = {hardware: replica_watts(hardware) for hardware in several}
    known = {hardware: drawn for hardware, drawn in watts.items() if drawn is not None}
    return known if len(known) == len(watts) else {}


def hardware_candidates(
    spec: InferenceServiceSpec, shape: ModelShape, offers: Sequence[HardwareOffer]
) -> list[HardwareCandidate]:
    """Size every offer in every accepted precision, the checkpoint's own first."""
    length = max_model_len(spec, shape)
    answer = min(spec.context.typical_output_tokens, max(1, length // 2))
    if pooling_task(spec) is not None:
        answer = 0
    prompt = min(spec.context.typical_input_tokens, length - answer)
    engine, adapters = engine_terms(spec.engine), spec.model.adapters
    adapters_mib = slots_mib(shape, len(adapters), engine_rank(adapters))
    demands = [
        Demand(
            shape=shape_in(spec, shape, precision),
            precision=precision,
            max_model_len=length,
            input_tokens=prompt,
            output_tokens=answer,
            ttft=spec.slo.ttft_p95,
            inter_token=spec.slo.itl_p95,
            adapters_mib=adapters_mib,
            engine=engine,
        )
        for precision in open_precisions(spec.precision)
    ]
    return [
        HardwareCandidate(offer=offer, demand=demand, fit=sized(demand, offer.hardware))
        for offer in offers
        if can_shard(shape, offer.hardware.devices)
        and (engine.draft is None or can_shard(engine.draft, offer.hardware.devices))
        and engine.devices in (None, offer.hardware.devices)
        for demand in demands
    ]


def sized(demand: Demand, hardware: Hardware) -> ReplicaFit | ReplicaMisfit | UnsupportedPrecision:
    """Return how a demand fits, or why the hardware does not run its precision.

    That of the model's own files is tried on all hardware.
    """
    product = products().get(hardware.product)
    if demand.precision is not None and product is not None:
        reason = unsupported_reason(demand.shape, demand.precision, product)
        if reason is not None:
            return UnsupportedPrecision(hardware, demand.precision, reason)
    return tabulated_size(demand, hardware)


def fitting_choices(candidates: Iterable[HardwareCandidate]) -> list[HardwareChoice]:
    """Return the hardware on which the model fits."""
    return [
        HardwareChoice(offer=candidate.offer, fit=candidate.fit)
        for candidate in candidates
        if isinstance(candidate.fit, ReplicaFit)
    ]


def running_at_best(candidate: HardwareCandidate, running: Collection[str]) -> HardwareCandidate:
    """Return what runs as fitting where it is too slow, but not at the fast end of its error.

    Neither a new prediction of an upgrade, nor what a prediction may err by, moves it.
    """
    fit, demand = candidate.fit, candidate.demand
    if (
        not isinstance(fit, ReplicaMisfit)
        or fit.needed_mib
        or candidate.offer.variant(demand.precision).name not in running
    ):
        return candidate
    at_best = tabulated_size(demand, candidate.offer.hardware, at_best=True)
    return replace(candidate, fit=at_best) if isinstance(at_best, ReplicaFit) else candidate


def is_surely_cheaper(choice: HardwareChoice, other: HardwareChoice) -> bool:
    """Return whether tokens cost less than on `other` by more than the predictions may err."""
    ratio = 1 + error_of_both(choice, other)
    return choice.token_price.nanos * ratio < other.token_price.nanos


def error_of_both(choice: HardwareChoice, other: HardwareChoice) -> float:
    """Return by which share a choice may serve less, or another one more, than is predicted.

    What errs by chance counts by the root of the sum of squares, and the same hardware in the same
    precision errs alike.
    """
    fit, other_fit = choice.fit, other.fit
    if (fit.hardware, fit.precision) == (other_fit.hardware, other_fit.precision):
        return 0.0
    return math.hypot(fit.rate_error or 0.0, other_fit.most_rate - 1)


def free_replicas(
    offer: HardwareOffer, used_devices: Mapping[tuple[str, str], int], more: int = 0
) -> int:
    """Return how many replicas an offer has capacity for, with so many `more` devices in use.

    A free device is none for a replica whose node has too few of them: see `fragments_of`.
    """
    hardware, in_use = offer.hardware, used_devices.get((offer.pool, offer.hardware.resource), 0)
    if hardware.devices > 1:
        in_use += used_devices.get(fragments_key(offer), 0)
    return offer.replicas - -(-max(0, in_use + more) // hardware.devices)


def fragments_key(offer: HardwareOffer) -> tuple[str, str]:
    """Return under which key of used devices the fragments of an offer are counted."""
    return offer.pool, f"{offer.hardware.resource}, fewer than {offer.hardware.devices} on a node"
