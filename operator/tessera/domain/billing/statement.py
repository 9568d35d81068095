"""What was billed between two moments, from what was scraped of the processes that counted.

Each process counts from zero, and its bill is read as it stood at single scrapes; a statement is a
sum of differences. Nothing is extrapolated, so it is exact for the time that it names.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TypeAlias

from tessera.domain.billing.bill import CostLine

# What tells one scraped process from another: the labels of its target.
ProcessLabels: TypeAlias = tuple[tuple[str, str], ...]
# A statement may begin so much before what was asked for, where a bill can be read; it says so.
SLACK = timedelta(minutes=5)
# Nano-units by tenant and line.
Amounts: TypeAlias = Mapping[tuple[str, CostLine], int]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BillScrape:
    """How far the bill of a process was at one scrape."""

    scraped_at: datetime
    since: datetime
    as_of: datetime


@dataclass(frozen=True, slots=True)
class ScrapeRef:
    """One scrape of one process: where amounts are read."""

    process: ProcessLabels
    scraped_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargePeriod:
    """What one process billed within the time asked for: the difference of two looks."""

    begin: datetime
    end: datetime
    baseline: ScrapeRef | None
    """None where all of its bill is within the time."""
    latest: ScrapeRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What was billed from one moment to another."""

    begin: datetime
    end: datetime
    gaps: tuple[tuple[datetime, datetime], ...] = ()
    """Times in between that nobody billed."""
    amounts: Amounts = field(default_factory=dict)


def charge_periods(
    scrapes: Mapping[ProcessLabels, Sequence[BillScrape]], begin: datetime
) -> tuple[ChargePeriod, ...]:
    """The runs since `begin`, in the order of time.

    A process that is scraped as two targets counts once. Where a successor took over from an
    earlier moment than its predecessor was last scraped at, the successor's bill holds.
    """
    by_start: dict[datetime, list[tuple[BillScrape, ProcessLabels]]] = defaultdict(list)
    for process, process_scrapes in scrapes.items():
        for scrape in process_scrapes:
            by_start[scrape.since].append((scrape, process))
    periods: list[ChargePeriod] = []
    successor: datetime | None = None
    for start in sorted(by_start, reverse=True):
        period = _charge_period(sorted(by_start[start], key=_sort_key), begin, successor)
        if period is not None:
            periods.append(period)
            successor = start
    return tuple(reversed(periods))


def _sort_key(entry: tuple[BillScrape, ProcessLabels]) -> tuple[datetime, datetime, ProcessLabels]:
    """How far a bill was; a process that lost may be scraped after one that went on."""
    scrape, process = entry
    return scrape.as_of, scrape.scraped_at, process


def _charge_period(
    scrapes: Sequence[tuple[BillScrape, ProcessLabels]], begin: datetime, successor: datetime | None
) -> ChargePeriod | None:
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
    return ChargePeriod(
        begin=start,
        end=last.as_of,
        baseline=baseline,
        latest=ScrapeRef(last_process, last.scraped_at),
    )


def build_statement(
    periods: Sequence[ChargePeriod], amounts_by_scrape: Mapping[ScrapeRef, Amounts]
) -> Statement | None:
    """The sum of all runs, with the amounts at their looks; None without any."""
    if not periods:
        return None
    amounts: Counter[tuple[str, CostLine]] = Counter()
    for period in periods:
        amounts.update(amounts_by_scrape[period.latest])
        if period.baseline is not None:
            amounts.subtract(amounts_by_scrape[period.baseline])
    return Statement(
        begin=periods[0].begin,
        end=periods[-1].end,
        gaps=tuple(_gaps(periods)),
        amounts={key: nanos for key, nanos in sorted(amounts.items()) if nanos},
    )


def _gaps(periods: Sequence[ChargePeriod]) -> Iterable[tuple[datetime, datetime]]:
    return (
        (previous.end, following.begin)
        for previous, following in pairwise(periods)
        if previous.end < following.begin
    )
