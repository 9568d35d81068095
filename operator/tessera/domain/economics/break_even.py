"""Own GPUs against an API: what a month of requests costs on both, and from which volume own GPUs
cost less.

An API is paid by the token and own GPUs by the hour, so the answer is a volume, or the share of
their full load that own GPUs have to reach. A month has 30 days.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tessera.domain.economics.api_prices import TokenPrices, TokenUse
from tessera.domain.money import Money

MONTH_DAYS = 30
MONTH_HOURS = MONTH_DAYS * 24
_DAY_SECONDS = 86_400
_MILLION = 1e6


def break_even_tokens(cost: Money, per_million: Money) -> float:
    """Return how many tokens an API sells for an amount; a nano-unit is its lowest price."""
    return cost.nanos / max(1, per_million.nanos) * _MILLION


def break_even_rate(hourly: Money, per_million: Money) -> float:
    """Return the tokens per second at which a million of them cost as much as at an API."""
    return break_even_tokens(hourly, per_million) / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnGpus:
    """Replicas on own GPUs."""

    hourly: Money
    """Price of an hour of one replica."""
    monthly: Money
    """What a month costs besides, however many replicas run: operation, engineers, penalties."""
    capacity: float | None = None
    """Requests per second of one replica at full load; None where it is not known."""

    def month(self, replicas: int) -> Money:
        """Return what a month of so many replicas costs."""
        nanos = self.hourly.nanos * MONTH_HOURS * replicas + self.monthly.nanos
        return Money(nanos, self.hourly.currency)


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyPeak:
    """The hours of a day in which more requests come than in the others."""

    ratio: float = 1.0
    """Requests in these hours, as a multiple of the mean of the day."""
    hours: float = 4.0

    @property
    def levels(self) -> tuple[tuple[float, float], ...]:
        """Return each level of the day, as a multiple of the mean, with its share of the day."""
        share = self.hours / 24
        return ((1 - share * self.ratio) / (1 - share), 1 - share), (self.ratio, share)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """The volume from which own GPUs cost less than the API."""

    requests_per_day: float
    replicas: int
    tokens_per_month: float
    tokens_per_second: float
    """Input and output tokens."""
    output_tokens_per_second: float
    utilization: float | None
    """Mean share of the replicas' full load; None where it is not known."""
    always_from: float
    """Requests per day from which no further replica makes the API the cheaper one again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeCosts:
    """What a month costs at a volume."""

    requests_per_day: float
    tokens_per_month: float
    api: Money
    own: Money
    """Own GPUs for the peak."""
    replicas: int
    utilization: float | None
    mixed: Money
    """The cheapest number of own replicas, with the API for what they do not carry."""
    mixed_replicas: int
    spike_premium: Money
    """What the replicas cost that only the peak needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostingComparison:
    """Own GPUs and an API for requests of one kind."""

    request: TokenUse
    prices: TokenPrices
    own: OwnGpus
    peak: DailyPeak = DailyPeak()

    def at(self, requests_per_day: float) -> VolumeCosts:
        """Return what a month of so many requests a day costs."""
        replicas = self._replicas(requests_per_day * self.peak.ratio)
        own = self.own.month(replicas)
        flat = self.own.month(self._replicas(requests_per_day))
        mixed, mixed_replicas = min(
            (self._mixed(requests_per_day, count).nanos, count)
            for count in self._useful_counts(requests_per_day)
        )
        currency = own.currency
        return VolumeCosts(
            requests_per_day=requests_per_day,
            tokens_per_month=self._monthly_use(requests_per_day).total,
            api=self.prices.cost(self._monthly_use(requests_per_day)),
            own=own,
            replicas=replicas,
            utilization=self._utilization(requests_per_day, replicas),
            mixed=Money(mixed, currency),
            mixed_replicas=mixed_replicas,
            spike_premium=Money(own.nanos - flat.nanos, currency),
        )

    def needed_load(self) -> float | None:
        """Return the share of its full load at which a replica earns its own price.

        Above 1 it never does. With a peak the full load is that of the peak. None where the
        capacity is not known.
        """
        if self.own.capacity is None:
            return None
        earned = self.prices.cost(self._monthly_use(self._full_day(self.own.capacity)))
        return self.own.hourly.nanos * MONTH_HOURS / max(1, earned.nanos)

    def break_even(self) -> BreakEven | None:
        """Return where own GPUs begin to cost less; None where they never do.

        What full replicas earn beyond their own price pays for the rest of the month, which may
        need several of them.
        """
        needed, replicas, always_replicas = self.needed_load(), 1, 1
        if needed is not None:
            price, rest = self.own.hourly.nanos * MONTH_HOURS, self.own.monthly.nanos
            earned = price / needed - price
            if earned <= 0:
                return None
            replicas = max(1, math.ceil(rest / earned))
            # With so many, one replica more is earned as soon as it is needed.
            always_replicas = max(1, math.ceil((rest + price) / earned))
        volume = self._break_even_volume(replicas)
        return BreakEven(
            requests_per_day=volume,
            replicas=replicas,
            tokens_per_month=self._monthly_use(volume).total,
            tokens_per_second=volume * self.request.total / _DAY_SECONDS,
            output_tokens_per_second=volume * self.request.output_tokens / _DAY_SECONDS,
            utilization=self._utilization(volume, replicas),
            always_from=self._break_even_volume(always_replicas),
        )

    def months(
        self, requests_per_day: float, yearly_decline: float, count: int
    ) -> Iterator[VolumeCosts]:
        """Yield the costs of the months from now on, while the API's prices fall each year."""
        for month in range(count):
            prices = self.prices.after(month / 12, yearly_decline)
            yield replace(self, prices=prices).at(requests_per_day)

    def _full_day(self, capacity: float) -> float:
        """Return the requests of a day whose peak is the full load of one replica."""
        return capacity * _DAY_SECONDS / self.peak.ratio

    def _break_even_volume(self, replicas: int) -> float:
        tokens = break_even_tokens(self.own.month(replicas), self.prices.blended(self.request))
        return tokens / self.request.total / MONTH_DAYS

    def _monthly_use(self, requests_per_day: float) -> TokenUse:
        return self.request.times(requests_per_day * MONTH_DAYS)

    def _load(self, requests_per_day: float) -> float:
        """Return the mean load in full replicas; 0 where their capacity is not known."""
        return requests_per_day / _DAY_SECONDS / (self.own.capacity or math.inf)

    def _replicas(self, requests_per_day: float) -> int:
        # A load that is computed from a number of full replicas must not need one more.
        return max(1, math.ceil(self._load(requests_per_day) * (1 - 1e-12)))

    def _utilization(self, requests_per_day: float, replicas: int) -> float | None:
        if self.own.capacity is None:
            return None
        return self._load(requests_per_day) / replicas

    def _useful_counts(self, requests_per_day: float) -> set[int]:
        """Return the numbers of own replicas of which one is the cheapest.

        Costs are linear between the numbers that carry a level of the day.
        """
        loads = (level * self._load(requests_per_day) for level, _ in self.peak.levels)
        return {0, 1} | {round_to(load) for load in loads for round_to in (math.floor, math.ceil)}

    def _mixed(self, requests_per_day: float, replicas: int) -> Money:
        """Return the month of own replicas, with the API for what exceeds their load."""
        if replicas == 0:
            return self.prices.cost(self._monthly_use(requests_per_day))
        load = self._load(requests_per_day)
        beyond = sum(max(0.0, level * load - replicas) * share for level, share in self.peak.levels)
        own, share = self.own.month(replicas), beyond / load if load else 0.0
        api = self.prices.cost(self._monthly_use(requests_per_day * share))
        return Money(own.nanos + api.nanos, own.currency)
