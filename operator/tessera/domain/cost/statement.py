"""The cost between two moments, from the scraped bills of all operator processes.

Each process counts from zero, and its bill is read at single scrapes; a statement is a sum of
differences. Nothing is extrapolated, so it is exact for the time that it names.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Generic, TypeAlias, TypeVar

from tessera.domain.cost.device_use import CostLine

# The labels of a scrape target identify the process behind it.
ProcessLabels: TypeAlias = tuple[tuple[str, str], ...]
# A statement may begin so much before the requested time if a scrape lies there.
SLACK = timedelta(minutes=5)
# The name of a tenant and a line of its bill.
TenantLine: TypeAlias = tuple[str, CostLine]
# Nano-units.
Amounts: TypeAlias = Mapping[TenantLine, int]
# What the statement has an integer of; statements are in its order.
KeyT = TypeVar("KeyT", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BillScrape:
    """The time that the bill of a process covered at one scrape."""

    scraped_at: datetime
    since: datetime
    as_of: datetime


@dataclass(frozen=True, slots=True)
class ScrapeRef:
    """One scrape of one process, at which its amounts can be read."""

    process: ProcessLabels
    scraped_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledPeriod:
    """The part of the requested time that one process billed: the difference of two scrapes."""

    begin: datetime
    end: datetime
    baseline: ScrapeRef | None
    """None when the whole bill of the process is within the requested time."""
    latest: ScrapeRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement(Generic[KeyT]):
    """What was counted from one moment to another, such as the cost."""

    begin: datetime
    end: datetime
    gaps: tuple[tuple[datetime, datetime], ...] = ()
    """Times in between without data."""
    amounts: Mapping[KeyT, int] = field(default_factory=dict)


CostStatement: TypeAlias = Statement[TenantLine]


def charge_periods(
    scrapes: Mapping[ProcessLabels, Sequence[BillScrape]], begin: datetime
) -> tuple[BilledPeriod, ...]:
    """Return what each process billed since `begin`, in the order of time.

    A process that is scraped as two targets counts once. Where the bill of a successor begins
    before the last scrape of its predecessor, the successor's bill counts.
    """
    by_start: dict[datetime, list[tuple[BillScrape, ProcessLabels]]] = defaultdict(list)
    for process, process_scrapes in scrapes.items():
        for scrape in process_scrapes:
            by_start[scrape.since].append((scrape, process))
    periods: list[BilledPeriod] = []
    successor: datetime | None = None
    for start in sorted(by_start, reverse=True):
        # A process that lost the lead may be scraped later than its successor, with an older bill.
        ordered = sorted(
            by_start[start], key=lambda entry: (entry[0].as_of, entry[0].scraped_at, entry[1])
        )
        period = _charge_period(ordered, begin, successor)
        if period is not None:
            periods.append(period)
            successor = start
    return tuple(reversed(periods))


def _charge_period(
    scrapes: Sequence[tuple[BillScrape, ProcessLabels]], begin: datetime, successor: datetime | None
) -> BilledPeriod | None:
    usable = [entry for entry in scrapes if successor is None or entry[0].as_of <= successor]
    before = [entry for entry in usable if entry[0].as_of <= begin]
    within = [entry for entry in usable if entry[0].as_of > begin]
    if not within:
        return None
    last, last_process = within[-1]
    if not before and last.since >= begin - SLACK:
        baseline, start = None, last.since
    else:
        first, process = before[-1] if before else within[0]
        baseline, start = ScrapeRef(process, first.scraped_at), first.as_of
    latest = ScrapeRef(last_process, last.scraped_at)
    return BilledPeriod(begin=start, end=last.as_of, baseline=baseline, latest=latest)


def build_statement(
    periods: Sequence[BilledPeriod], amounts_by_scrape: Mapping[ScrapeRef, Mapping[KeyT, int]]
) -> Statement[KeyT] | None:
    """Return the sum of all periods from the amounts at their scrapes; None without a period."""
    if not periods:
        return None
    amounts: Counter[KeyT] = Counter()
    for period in periods:
        amounts.update(amounts_by_scrape[period.latest])
        if period.baseline is not None:
            amounts.subtract(amounts_by_scrape[period.baseline])
    gaps = (
        (previous.end, following.begin)
        for previous, following in pairwise(periods)
        if previous.end < following.begin
    )
    return Statement(
        begin=periods[0].begin,
        end=periods[-1].end,
        gaps=tuple(gaps),
        amounts={key: amount for key, amount in sorted(amounts.items()) if amount},
    )
