"""Statements are exact whatever happens to the processes that count."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.cost.device_use import CostLine, CostState
from tessera.domain.cost.statement import (
    Amounts,
    BillScrape,
    CostStatement,
    ProcessLabels,
    ScrapeRef,
    build_statement,
    charge_periods,
)
from tests.builders import at
from tests.properties import examples

LINES = tuple(
    CostLine(currency="USD", pool="a100", profile=profile, state=CostState.COLD_IDLE)
    for profile in ("1g.10gb", "whole")
)
ONE: ProcessLabels = (("pod", "one"),)
TWO: ProcessLabels = (("pod", "two"),)


def spent(moment: datetime, line: CostLine) -> int:
    """What a line cost up to a moment, at a rate of its own from a moment of its own on."""
    number = LINES.index(line)
    seconds = (moment - at(0)).total_seconds()
    return int(max(0.0, seconds - 300 * number) * (7 + 5 * number))


@dataclass
class Scrapes:
    """What Prometheus has."""

    marks: dict[ProcessLabels, list[BillScrape]] = field(default_factory=dict)
    amounts: dict[ScrapeRef, Amounts] = field(default_factory=dict)

    def add(self, process: ProcessLabels, scraped: float, since: float, as_of: float) -> None:
        """One scrape of a process that counts from `since` and has charged until `as_of`."""
        mark = BillScrape(scraped_at=at(scraped), since=at(since), as_of=at(as_of))
        self.marks.setdefault(process, []).append(mark)
        self.amounts[ScrapeRef(process, at(scraped))] = {
            ("", line): total
            for line in LINES
            if (total := spent(at(as_of), line) - spent(at(since), line))
        }

    def billed_until(self, moment: float) -> float | None:
        """What the operator asks when it starts."""
        marks = (mark for process_marks in self.marks.values() for mark in process_marks)
        charged_until = [mark.as_of for mark in marks if mark.scraped_at <= at(moment)]
        return (max(charged_until) - at(0)).total_seconds() if charged_until else None

    def statement(self, begin: float) -> CostStatement | None:
        return build_statement(charge_periods(self.marks, at(begin)), self.amounts)


def exact_amounts(statement: CostStatement) -> Mapping[tuple[str, CostLine], int]:
    """What the time that a statement names really cost."""
    ends = [statement.begin, *(moment for gap in statement.gaps for moment in gap), statement.end]
    amounts = {}
    for line in LINES:
        pairs = zip(ends[::2], ends[1::2], strict=True)
        total = sum(spent(last, line) - spent(first, line) for first, last in pairs)
        if total:
            amounts["", line] = total
    return amounts


def test_nothing_scraped_is_no_statement() -> None:
    assert Scrapes().statement(0) is None


def test_a_process_that_ran_all_the_time_billed_the_difference_of_two_scrapes() -> None:
    scrapes = Scrapes()
    for scraped in range(100, 1000, 15):
        scrapes.add(ONE, scraped, since=5, as_of=scraped - 3)
    statement = scrapes.statement(500)
    assert statement is not None
    assert (statement.begin, statement.end, statement.gaps) == (at(487), at(982), ())
    assert statement.amounts == exact_amounts(statement)


def test_a_process_that_began_within_the_time_billed_all_that_it_has() -> None:
    scrapes = Scrapes()
    scrapes.add(ONE, 700, since=600, as_of=690)
    statement = scrapes.statement(500)
    assert statement is not None
    assert (statement.begin, statement.end) == (at(600), at(690))
    assert statement.amounts == exact_amounts(statement)


def test_of_a_process_that_was_first_scraped_late_only_what_came_since_is_known() -> None:
    scrapes = Scrapes()
    scrapes.add(ONE, 700, since=5, as_of=690)
    scrapes.add(ONE, 800, since=5, as_of=790)
    statement = scrapes.statement(500)
    assert statement is not None
    assert (statement.begin, statement.end) == (at(690), at(790))
    assert statement.amounts == exact_amounts(statement)


def test_a_restart_under_the_same_name_loses_nothing() -> None:
    scrapes = Scrapes()
    scrapes.add(ONE, 600, since=5, as_of=598)
    scrapes.add(ONE, 700, since=598, as_of=699)
    statement = scrapes.statement(590)
    assert statement is not None
    assert (statement.begin, statement.end, statement.gaps) == (at(598), at(699), ())
    assert statement.amounts == exact_amounts(statement)


def test_a_time_without_a_bill_is_a_gap() -> None:
    scrapes = Scrapes()
    for scraped in (400, 600):
        scrapes.add(ONE, scraped, since=5, as_of=scraped)
    scrapes.add(TWO, 800, since=700, as_of=800)
    statement = scrapes.statement(500)
    assert statement is not None
    assert (statement.begin, statement.end, statement.gaps) == (
        at(400),
        at(800),
        ((at(600), at(700)),),
    )
    assert statement.amounts == exact_amounts(statement)


def test_two_targets_for_one_process_count_once() -> None:
    scrapes = Scrapes()
    for scraped in (400, 600, 800):
        scrapes.add(ONE, scraped, since=5, as_of=scraped)
        scrapes.add(TWO, scraped + 7, since=5, as_of=scraped + 5)
    statement = scrapes.statement(500)
    assert statement is not None
    assert (statement.begin, statement.end, statement.gaps) == (at(405), at(805), ())
    assert statement.amounts == exact_amounts(statement)


def test_a_predecessor_that_is_scraped_once_more_is_not_counted_twice() -> None:
    scrapes = Scrapes()
    scrapes.add(ONE, 600, since=5, as_of=600)
    scrapes.add(ONE, 660, since=5, as_of=660)
    scrapes.add(ONE, 670, since=5, as_of=665)
    scrapes.add(TWO, 680, since=660, as_of=680)
    statement = scrapes.statement(600)
    assert statement is not None
    assert (statement.begin, statement.end, statement.gaps) == (at(600), at(680), ())
    assert statement.amounts == exact_amounts(statement)


def test_a_loser_that_is_scraped_last_does_not_shorten_the_bill() -> None:
    """Both count from the same moment, since the second does not know of the first."""
    scrapes = Scrapes()
    scrapes.add(TWO, 680, since=600, as_of=670)
    scrapes.add(ONE, 690, since=600, as_of=620)
    statement = scrapes.statement(590)
    assert statement is not None
    assert (statement.begin, statement.end, statement.gaps) == (at(600), at(670), ())
    assert statement.amounts == exact_amounts(statement)


@settings(max_examples=examples(150))
@given(st.integers(0, 10**9), st.integers(0, 2000), st.booleans())
def test_any_course_of_restarts_is_exact_for_the_time_it_names(
    seed: int, begin: int, remembers: bool
) -> None:
    """Leaders follow each other; some are scraped on after they lost, some never. A statement may
    name a gap that somebody billed whom nobody scraped in time; it never counts a moment twice."""
    rng = random.Random(seed)  # noqa: S311 - a seeded course, no secret
    scrapes, began = Scrapes(), 0.0
    for number in range(rng.randint(1, 8)):
        lingers = rng.choice([0, 0, 90])
        process = (("pod", f"n-{number}"),) if lingers else ONE
        known = scrapes.billed_until(began) if remembers else None
        since = began if known is None else known
        ended, every = began + rng.uniform(0, 900), rng.choice([1.0, 15.0, 60.0])
        scraped, as_of = began + rng.uniform(0, every), since
        while scraped < ended + lingers:
            as_of = max(as_of, min(ended, scraped) - rng.uniform(0, 5))
            scrapes.add(process, scraped, since, as_of)
            scraped += every
        began = ended + rng.choice([0.001, 20, 700])
    statement = scrapes.statement(begin)
    if statement is None:
        assert all(
            mark.as_of <= at(begin)
            for process_marks in scrapes.marks.values()
            for mark in process_marks
        )
    else:
        assert statement.amounts == exact_amounts(statement)
