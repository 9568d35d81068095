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

from tessera.domain.bill import Line

Process: TypeAlias = tuple[tuple[str, str], ...]
"""What tells one scraped process from another: the labels of its target."""
SLACK = timedelta(minutes=5)
"""A statement may begin so much before what was asked for, where a bill can be read; it says so."""
Amounts: TypeAlias = Mapping[tuple[str, Line], int]
"""Nano-units by tenant and line."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Mark:
    """How far the bill of a process was at one scrape."""

    scraped: datetime
    since: datetime
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Look:
    """One scrape of one process: where amounts are read."""

    process: Process
    scraped: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one process billed within the time asked for: the difference of two looks."""

    begin: datetime
    end: datetime
    base: Look | None
    """None where all of its bill is within the time."""
    top: Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What was billed from one moment to another."""

    begin: datetime
    end: datetime
    gaps: tuple[tuple[datetime, datetime], ...] = ()
    """Times in between that nobody billed."""
    amounts: Amounts = field(default_factory=dict)


def runs(marks: Mapping[Process, Sequence[Mark]], begin: datetime) -> tuple[Run, ...]:
    """The runs since `begin`, in the order of time.

    A process that is scraped as two targets counts once. Where a successor took over from an
    earlier moment than its predecessor was last scraped at, the successor's bill holds.
    """
    found: dict[datetime, list[tuple[Mark, Process]]] = defaultdict(list)
    for process, told in marks.items():
        for mark in told:
            found[mark.since].append((mark, process))
    taken: list[Run] = []
    successor: datetime | None = None
    for start in sorted(found, reverse=True):
        run = _run(sorted(found[start], key=_reach), begin, successor)
        if run is not None:
            taken.append(run)
            successor = start
    return tuple(reversed(taken))


def _reach(one: tuple[Mark, Process]) -> tuple[datetime, datetime, Process]:
    """How far a bill was; a process that lost may be scraped after one that went on."""
    mark, process = one
    return mark.as_of, mark.scraped, process


def _run(
    marks: Sequence[tuple[Mark, Process]], begin: datetime, successor: datetime | None
) -> Run | None:
    kept = [one for one in marks if successor is None or one[0].as_of <= successor]
    before = [one for one in kept if one[0].as_of <= begin]
    within = [one for one in kept if one[0].as_of > begin]
    if not within:
        return None
    last, top = within[-1]
    if not before and last.since >= begin - SLACK:
        base, start = None, last.since
    else:
        first, process = before[-1] if before else within[0]
        base, start = Look(process, first.scraped), first.as_of
    return Run(begin=start, end=last.as_of, base=base, top=Look(top, last.scraped))


def statement(found: Sequence[Run], read: Mapping[Look, Amounts]) -> Statement | None:
    """The sum of all runs, with the amounts at their looks; None without any."""
    if not found:
        return None
    amounts: Counter[tuple[str, Line]] = Counter()
    for run in found:
        amounts.update(read[run.top])
        if run.base is not None:
            amounts.subtract(read[run.base])
    return Statement(
        begin=found[0].begin,
        end=found[-1].end,
        gaps=tuple(_gaps(found)),
        amounts={key: nanos for key, nanos in sorted(amounts.items()) if nanos},
    )


def _gaps(found: Sequence[Run]) -> Iterable[tuple[datetime, datetime]]:
    return ((one.end, other.begin) for one, other in pairwise(found) if one.end < other.begin)
