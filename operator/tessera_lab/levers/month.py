"""What a month costs with a set of levers."""

import math
from collections.abc import Callable, Set
from dataclasses import dataclass
from itertools import pairwise

from tessera.domain.economics.reservation import LoadCurve
from tessera.domain.routes.savings import Blend, blends
from tessera_lab.engine.setup import EngineSetup
from tessera_lab.fleet.capacity_mix import MONTH_HOURS, effective_spot_price, mix_options
from tessera_lab.levers.case import ServiceCase
from tessera_lab.levers.lever import LeverId, levers
from tessera_lab.levers.replica_rate import ReplicaRate
from tessera_lab.levers.setups import main_setup, replica_prices, small_setup, unlimited

_HOUR, _ROUNDING = 3600.0, 1e-9
# What one replica of a setup carries of the case's load.
Measure = Callable[[EngineSetup], ReplicaRate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A month of a service; money in USD."""

    setup: EngineSetup
    """Of a replica of the model."""
    replica: ReplicaRate
    keeps_slo: bool
    """Of all replicas, also those of the small model."""
    gpus: float
    """What the hardware costs."""
    operation: float
    """What the components of the levers cost to operate."""
    mean_replicas: float
    peak_replicas: int
    """Both models together."""
    million_tokens: float
    """Output tokens that users get."""

    @property
    def usd(self) -> float:
        return self.gpus + self.operation

    @property
    def usd_per_million(self) -> float:
        return self.usd / self.million_tokens


@dataclass(frozen=True, slots=True)
class _Part:
    """The replicas that answer a share of the requests."""

    setup: EngineSetup
    replica: ReplicaRate
    usd: float
    curve: LoadCurve
    batch_replicas: float


def month(case: ServiceCase, active: Set[LeverId], measure: Measure) -> Month:
    """Return the month; raise LeverUnavailableError where a lever cannot be computed."""
    small = case.assumptions.small_share if LeverId.ROUTING in active else 0.0
    parts = [(1 - small, main_setup(case, active))]
    if small:
        parts.append((small, small_setup(case, active)))
    answered = [_part(case, active, share, each, measure) for share, each in parts]
    hours = sum(levers()[each].operation_hours for each in active)
    requests = _mean_rate(case) * MONTH_HOURS * _HOUR
    return Month(
        setup=answered[0].setup,
        replica=answered[0].replica,
        keeps_slo=all(part.replica.keeps_slo for part in answered),
        gpus=sum(part.usd for part in answered),
        operation=hours * case.assumptions.engineer_hour,
        mean_replicas=sum(part.curve.mean + part.batch_replicas for part in answered),
        peak_replicas=sum(part.curve.peak for part in answered),
        million_tokens=requests * case.load.output_tokens / 1e6,
    )


def routing_blends(case: ServiceCase, active: Set[LeverId], measure: Measure) -> tuple[Blend, ...]:
    """Return what shares at the small model make of both prices of a million output tokens.

    Replicas are full and on demand. Raises LeverUnavailableError without a small model.
    """
    prices = []
    for setup in (small_setup(case, active), main_setup(case, active)):
        full, replica = with_best_limits(setup, measure)
        tokens = replica.rate * case.load.output_tokens * _HOUR
        prices.append(replica_prices(case, full.hardware).on_demand / tokens * 1e6)
    return blends(*prices)


def _part(
    case: ServiceCase, active: Set[LeverId], share: float, setup: EngineSetup, measure: Measure
) -> _Part:
    assumed = case.assumptions
    setup, replica = with_best_limits(setup, measure)
    prices = replica_prices(case, setup.hardware)
    if LeverId.RESPONSE_CACHE in active:
        share *= 1 - assumed.hit_share
    batch = share * assumed.batch_share if LeverId.SPOT_BATCH in active else 0.0
    curve = _replicas(case, active, (share - batch) / replica.rate)
    usd = MONTH_HOURS * curve.mean * prices.on_demand
    if LeverId.PRICE_MIX in active:
        usd = min(option.total for option in mix_options(curve, prices, assumed.wasted))
    # A batch has no latency objective: its replicas are full, and come when spot nodes do.
    batch_replicas = batch * _mean_rate(case) / replica.saturated
    usd += MONTH_HOURS * batch_replicas * effective_spot_price(prices.spot, assumed.wasted)
    return _Part(setup, replica, usd, curve, batch_replicas)


def with_best_limits(setup: EngineSetup, measure: Measure) -> tuple[EngineSetup, ReplicaRate]:
    """Return the setup with its own limits, or with the engine's where those carry more."""
    replica = measure(setup)
    if setup.static_batch is not None or replica.keeps_up:
        return setup, replica
    # Limits that keep the longest step short suit no prompt that takes many of them.
    other = unlimited(setup)
    options = [(setup, replica), (other, measure(other))]
    return max(reversed(options), key=lambda each: (each[1].keeps_slo, each[1].rate))


def _replicas(case: ServiceCase, active: Set[LeverId], per_rate: float) -> LoadCurve:
    """Return the replicas of each span: for the peak, or ahead of what comes in the next one."""
    rates = [rate for _, rate in case.demand]
    if LeverId.SCALING in active:
        # A replica starts while the span before is served.
        needed = [max(pair) for pair in pairwise([*rates, rates[0]])]
    else:
        needed = [max(rates)] * len(rates)
    return LoadCurve(
        tuple(
            (seconds, max(case.min_replicas, math.ceil(rate * per_rate - _ROUNDING)))
            for (seconds, _), rate in zip(case.demand, needed, strict=True)
        )
    )


def _mean_rate(case: ServiceCase) -> float:
    spans = case.demand
    return sum(seconds * rate for seconds, rate in spans) / sum(seconds for seconds, _ in spans)
