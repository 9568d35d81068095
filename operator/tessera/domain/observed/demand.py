"""What gateways report of the requests that wait for a service or are in its engines."""

import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.ref import Ref
from tessera.domain.observed.charges import (
    LimitCharges,
    LimitId,
    ReceivedCharges,
    merged_charges,
)

# Gateways report each second; after this silence what one said is not known any more.
MAX_REPORT_AGE = timedelta(seconds=5)
# The rate of arrivals is that of so long, and not known before a gateway reported for a part of it.
ARRIVALS_SPAN = timedelta(seconds=60)
_MIN_ARRIVALS_SPAN = timedelta(seconds=15)


class ArrivedTokens(NamedTuple):
    """Requests that came, the tokens that gateways expect of them, and where they went.

    Gateways know none of a service that is new to them, and then count none of its requests.
    """

    requests: int = 0
    prompt: int = 0
    answer: int = 0
    """0 of a pooling model."""
    prompt_squares: int = 0
    """Sum of the squared tokens of each prompt; 0 is "not known"."""
    waited: int = 0
    """Requests that waited for a place since no other target may answer them."""
    overflowed: int = 0
    """Requests that another target of their route got, since there was no place here in time."""
    overflow_nanos: int = 0
    """Nano-units that these cost there, by the expected tokens."""
    routed: int = 0
    """Requests that came, and that another target of their route may answer."""
    late_alone: int = 0
    """Requests whose prompts the fastest engine reads for longer than the TTFT objective, with what
    it has of each in its cache."""

    @property
    def late_alone_share(self) -> float:
        """Return the share of requests whose prompts are late by themselves."""
        return self.late_alone / self.requests if self.requests else 0.0

    @property
    def prompt_variation(self) -> float | None:
        """Return the squared coefficient of variation of the prompts; None is "not known"."""
        if not self.prompt_squares or not self.prompt:
            return None
        return max(0.0, self.prompt_squares * self.requests / self.prompt**2 - 1)

    def plus(self, other: "ArrivedTokens", sign: int = 1) -> "ArrivedTokens":
        """Return the sum, or with a `sign` of -1 the difference."""
        return ArrivedTokens(
            self.requests + sign * other.requests,
            self.prompt + sign * other.prompt,
            self.answer + sign * other.answer,
            self.prompt_squares + sign * other.prompt_squares,
            self.waited + sign * other.waited,
            self.overflowed + sign * other.overflowed,
            self.overflow_nanos + sign * other.overflow_nanos,
            self.routed + sign * other.routed,
            self.late_alone + sign * other.late_alone,
        )


NO_TOKENS = ArrivedTokens()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayDemand:
    """The requests of one service."""

    arrived: int = 0
    """Since the report before."""
    tokens: ArrivedTokens = NO_TOKENS
    """Of those, in a report; of the last minute, in the sum of reports."""
    queued: int = 0
    """Waiting at the gateway, for a replica or for their turn."""
    in_flight: int = 0
    """In engines."""
    predicted_seconds: float = 0.0
    """Predicted time that an engine needs for all of them."""
    arrivals_per_second: float | None = None
    """Of the last minute; None while gateways have not reported for long enough."""
    arrivals: tuple[int, ...] = ()
    """Requests that came in each second of the last minute, oldest first; empty for none."""


NO_DEMAND = GatewayDemand()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayReport:
    """The last report of one gateway."""

    at: datetime
    """When it was received."""
    demand: Mapping[Ref, GatewayDemand] = field(default_factory=dict)
    """Of every service that it offers; a service without requests may be absent."""
    arrivals: tuple[tuple[datetime, Mapping[Ref, int]], ...] = ()
    """Requests that came before each report of the last minute, oldest first."""
    arrived: Mapping[Ref, int] = field(default_factory=dict)
    """Sum of these but for the first report, whose requests came before the minute."""
    expected: tuple[Mapping[Ref, ArrivedTokens], ...] = ()
    """Tokens of the requests before each of these reports."""
    tokens: Mapping[Ref, ArrivedTokens] = field(default_factory=dict)
    """Sum of these but for the first report."""
    parts: Mapping[Ref, GatewayDemand] = field(default_factory=dict)
    """Services of the next report, of which the last part did not come yet."""
    charges: Mapping[LimitId, ReceivedCharges] = field(default_factory=dict)
    """What is settled by limit; each counts by its own time."""

    def followed_by(self, at: datetime, demand: Mapping[Ref, GatewayDemand]) -> "GatewayReport":
        """Return the next report of this gateway, with the arrivals of the last minute."""
        demand = {**self.parts, **demand}
        arrived = {ref: demand[ref].arrived for ref in demand if demand[ref].arrived}
        tokens = {ref: demand[ref].tokens for ref in demand if any(demand[ref].tokens)}
        entries, total = (*self.arrivals, (at, arrived)), Counter(self.arrived)
        expected, all_tokens = (*self.expected, tokens), dict(self.tokens)
        if self.arrivals:
            total.update(arrived)
            _add(all_tokens, tokens)
        while at - entries[0][0] > ARRIVALS_SPAN:
            entries, expected = entries[1:], expected[1:]
            total.subtract(entries[0][1])
            _add(all_tokens, expected[0], -1)
        return GatewayReport(
            at=at,
            demand=demand,
            arrivals=entries,
            arrived=+total,
            expected=expected,
            tokens=all_tokens,
            charges=self.charges,
        )

    def arrival_rates(self) -> Mapping[Ref, float] | None:
        """Return the arrivals per second of each service that had any; None if too few reports."""
        if not self.arrivals or self.at - self.arrivals[0][0] < _MIN_ARRIVALS_SPAN:
            return None
        seconds = (self.at - self.arrivals[0][0]).total_seconds()
        return {ref: count / seconds for ref, count in self.arrived.items()}

    def arrivals_by_second(self) -> Mapping[Ref, tuple[int, ...]]:
        """Return the arrivals in each second before the report, of each service that had any."""
        seconds = round(ARRIVALS_SPAN.total_seconds())
        counts: defaultdict[Ref, list[int]] = defaultdict(lambda: [0] * seconds)
        for reported_at, arrived in self.arrivals[1:]:
            second = int((self.at - reported_at).total_seconds())
            if not 0 <= second < seconds:
                # The clock was set back.
                continue
            for ref, count in arrived.items():
                counts[ref][-1 - second] += count
        return {ref: tuple(each) for ref, each in counts.items()}


def cut_demand(demand: Mapping[Ref, GatewayDemand], limit: int) -> Mapping[Ref, GatewayDemand]:
    """Return so many services: of the namespace with most, those without a wait are left out.

    They come in turn by namespace, and of each those that wait first.
    """
    ranks, ranked = Counter[str](), []
    for ref in sorted(demand, key=lambda ref: (not demand[ref].queued, ref)):
        ranked.append((ranks[ref.namespace], ref))
        ranks[ref.namespace] += 1
    return {ref: demand[ref] for _, ref in sorted(ranked)[:limit]}


def current_reports(reports: Iterable[GatewayReport], at: datetime) -> list[GatewayReport]:
    """Return the reports of gateways that are not silent."""
    return [report for report in reports if abs(at - report.at) <= MAX_REPORT_AGE]


def fleet_demand(
    reports: Iterable[GatewayReport], at: datetime
) -> Mapping[Ref, GatewayDemand] | None:
    """Return the sum of the reports by service; None while no gateway reports."""
    current = current_reports(reports, at)
    if not current:
        return None
    total: dict[Ref, GatewayDemand] = {}
    for report in current:
        rates, arrivals = report.arrival_rates(), report.arrivals_by_second()
        for ref in {**report.demand, **(rates or {})}:
            rate = rates.get(ref, 0.0) if rates is not None else None
            rated = replace(
                report.demand.get(ref, NO_DEMAND),
                tokens=report.tokens.get(ref, NO_TOKENS),
                arrivals_per_second=rate,
                arrivals=arrivals.get(ref, ()),
            )
            total[ref] = _sum(total[ref], rated) if ref in total else rated
    return total


def fleet_charges(
    reports: Iterable[GatewayReport], at: datetime
) -> Mapping[LimitId, LimitCharges] | None:
    """Return what is settled by limit; None while no gateway reports."""
    current = current_reports(reports, at)
    if not current:
        return None
    total: dict[LimitId, LimitCharges] = {}
    for report in current:
        for limit, received in report.charges.items():
            charges = received.charges
            if abs(at - received.at) <= MAX_REPORT_AGE:
                known = total.get(limit)
                total[limit] = charges if known is None else merged_charges(known, charges)
    return total


def _add(
    total: dict[Ref, ArrivedTokens], tokens: Mapping[Ref, ArrivedTokens], sign: int = 1
) -> None:
    for ref, each in tokens.items():
        summed = total.get(ref, NO_TOKENS).plus(each, sign)
        if any(summed):
            total[ref] = summed
        else:
            total.pop(ref, None)


def _sum(first: GatewayDemand, second: GatewayDemand) -> GatewayDemand:
    rates = [
        demand.arrivals_per_second
        for demand in (first, second)
        if demand.arrivals_per_second is not None
    ]
    return GatewayDemand(
        arrived=first.arrived + second.arrived,
        tokens=first.tokens.plus(second.tokens),
        queued=first.queued + second.queued,
        in_flight=first.in_flight + second.in_flight,
        predicted_seconds=first.predicted_seconds + second.predicted_seconds,
        arrivals_per_second=sum(rates) if rates else None,
        arrivals=tuple(map(operator.add, first.arrivals, second.arrivals))
        or first.arrivals
        or second.arrivals,
    )
