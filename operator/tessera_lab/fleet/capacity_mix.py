"""How many replicas to reserve for a load, and what that costs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tessera.domain.economics.reservation import LoadCurve, critical_reservation
from tessera_lab.fleet.prices import GpuPrices

MONTH_HOURS = 730.0
# Where only the price on demand is known: what a year's commitment and spot nodes cost of it.
RESERVED_MULTIPLIER, SPOT_MULTIPLIER = 0.60, 0.30
# The part of the baseline load, which is the median, that one reading of the rule reserves.
BASELINE_SHARE = 0.70
BURST_QUANTILE = 0.95
_ROUNDING = 1e-9


class Reading(StrEnum):
    """A rule for the number of reserved replicas."""

    ON_DEMAND_ONLY = "OnDemandOnly"
    SEVENTY_PERCENT = "SeventyPercent"
    """70 % of the median."""
    MEDIAN = "Median"
    CRITICAL_RATIO = "CriticalRatio"
    """Each replica that is needed for longer than pays against on demand."""
    CRITICAL_RATIO_SPOT = "CriticalRatioSpot"
    """The same against spot, with what interruptions waste."""
    PEAK = "Peak"


@dataclass(frozen=True, slots=True, kw_only=True)
class MixOption:
    """A number of reserved replicas, with what follows from it."""

    reading: Reading
    reserved: int
    use: float | None
    """Mean share of the reserved replicas that is needed; None without any."""
    burst_ceiling: int
    """Replicas beyond the reserved ones that suffice for 95 % of the time."""
    fixed: float
    """A month's price of the reserved replicas."""
    variable: float
    """A month's price of the others, on demand."""
    variable_spot: float
    """The same on spot nodes, with what interruptions waste."""

    @property
    def total(self) -> float:
        return self.fixed + self.variable

    @property
    def total_spot(self) -> float:
        return self.fixed + self.variable_spot


def prices_by_tier(on_demand: float) -> GpuPrices:
    """Return the usual prices of the other tiers for one on demand."""
    return GpuPrices(
        on_demand=on_demand,
        reserved=on_demand * RESERVED_MULTIPLIER,
        spot=on_demand * SPOT_MULTIPLIER,
    )


def effective_spot_price(spot: float, wasted: float) -> float:
    """Return the price of useful spot work, of which interruptions waste a share below 1."""
    return spot / (1 - wasted)


def break_even_waste(spot: float, other: float) -> float:
    """Return the wasted share from which on spot work costs more than at the other price."""
    return max(0.0, 1 - spot / other)


def mix_options(curve: LoadCurve, prices: GpuPrices, wasted: float) -> Iterator[MixOption]:
    """Yield what each reading reserves and costs, at prices of a replica and hour."""
    spot = effective_spot_price(prices.spot, wasted)
    median = curve.quantile(0.5)
    counts = {
        Reading.ON_DEMAND_ONLY: 0,
        Reading.SEVENTY_PERCENT: math.floor(BASELINE_SHARE * median + _ROUNDING),
        Reading.MEDIAN: median,
        Reading.CRITICAL_RATIO: critical_reservation(curve, prices.reserved, prices.on_demand),
        Reading.CRITICAL_RATIO_SPOT: critical_reservation(curve, prices.reserved, spot),
        Reading.PEAK: curve.peak,
    }
    for reading, reserved in counts.items():
        burst = curve.burst(reserved)
        yield MixOption(
            reading=reading,
            reserved=reserved,
            use=(curve.mean - burst) / reserved if reserved else None,
            burst_ceiling=max(0, curve.quantile(BURST_QUANTILE) - reserved),
            fixed=MONTH_HOURS * (reserved * prices.reserved),
            variable=MONTH_HOURS * (burst * prices.on_demand),
            variable_spot=MONTH_HOURS * burst * spot,
        )
