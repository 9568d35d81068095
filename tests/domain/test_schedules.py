"""Schedules set bounds by the wall clock, and what is wrong with them is named."""

import gc
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.inference_service import Scaling
from tessera.api.ref import Ref
from tessera.domain.incremental import Incremental
from tessera.domain.placement.checks import check
from tessera.domain.schedules import BoundsSchedule, bounds_schedule, schedule_faults
from tests.builders import a_spec

CHAT = Ref("team-a", "chat")
BERLIN = "Europe/Berlin"


def a_scaling(*schedules: dict[str, Any], **scaling: Any) -> Scaling:
    return Scaling.model_validate({"maxReplicas": 4, **scaling, "schedules": schedules})


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def schedule_at(text: str, *schedules: dict[str, Any], **scaling: Any) -> BoundsSchedule:
    return bounds_schedule(CHAT, a_scaling(*schedules, **scaling), at=utc(text))


WEEKDAYS = (
    {"cron": "30 7 * * 1-5", "timeZone": BERLIN, "minReplicas": 4, "maxReplicas": 12},
    {"cron": "0 19 * * 1-5", "timeZone": BERLIN},
)


@pytest.mark.parametrize(
    ("at", "bounds", "next_bounds", "next_at"),
    [
        # Monday 2 March 2026, 07:29:59, 07:30 and 18:59:59.5 in Berlin.
        ("2026-03-02T06:29:59", (2, 4), (4, 12), "2026-03-02T06:30:00"),
        ("2026-03-02T06:30:00", (4, 12), (2, 4), "2026-03-02T18:00:00"),
        ("2026-03-02T17:59:59.5", (4, 12), (2, 4), "2026-03-02T18:00:00"),
        # Friday evening lasts until Monday.
        ("2026-03-06T18:00:00", (2, 4), (4, 12), "2026-03-09T06:30:00"),
    ],
)
def test_bounds_apply_until_the_next_time_of_another_schedule(
    at: str, bounds: tuple[int, int], next_bounds: tuple[int, int], next_at: str
) -> None:
    schedule = schedule_at(at, *WEEKDAYS)
    assert (schedule.scaling.min_replicas, schedule.scaling.max_replicas) == bounds
    assert schedule.status.next is not None
    assert (schedule.status.next.min_replicas, schedule.status.next.max_replicas) == next_bounds
    assert schedule.status.next_at == utc(next_at)


def test_a_single_schedule_always_applies() -> None:
    schedule = schedule_at("2026-03-02T00:00:00", WEEKDAYS[0])
    status = schedule.status
    assert (status.current.min_replicas, status.next, status.next_at) == (4, None, None)
    assert status.current.schedule == "spec.scaling.schedules[0] (30 7 * * 1-5 Europe/Berlin)"


def test_times_of_the_schedule_that_applies_change_nothing() -> None:
    often = {"cron": "* 8-17 * * *", "minReplicas": 3}
    schedule = schedule_at("2026-03-02T12:00:00", often, {"cron": "0 20 * * *"})
    assert schedule.status.next_at == utc("2026-03-02T20:00:00")


def test_of_two_time_zones_at_the_same_minute_the_later_one_applies() -> None:
    pair = ({"cron": "0 8 * * *", "timeZone": BERLIN}, {"cron": "0 7 * * *", "minReplicas": 3})
    assert schedule_at("2026-01-05T07:00:00", *pair).scaling.min_replicas == 3
    before = schedule_at("2026-01-05T06:59:00", *reversed(pair))
    following = before.status.next
    assert following == schedule_at("2026-01-05T07:00:00", *reversed(pair)).status.current
    assert following is not None
    assert following.schedule.startswith("spec.scaling.schedules[1] ")


NIGHT = (
    {"cron": "30 2 * * *", "timeZone": BERLIN, "minReplicas": 3},
    {"cron": "30 12 * * *", "timeZone": BERLIN},
)


@pytest.mark.parametrize(
    ("at", "least", "next_at"),
    [
        # The clock goes from 02:00 to 03:00 at 01:00 UTC, and skips 02:30.
        ("2026-03-29T00:59:59", 2, "2026-03-29T01:00:00"),
        ("2026-03-29T01:00:00", 3, "2026-03-29T10:30:00"),
        ("2026-03-29T10:30:00", 2, "2026-03-30T00:30:00"),
        # The clock goes from 03:00 to 02:00 at 01:00 UTC, and shows 02:30 at 00:30 and 01:30.
        ("2026-10-25T00:29:59", 2, "2026-10-25T00:30:00"),
        ("2026-10-25T00:30:00", 3, "2026-10-25T11:30:00"),
        ("2026-10-25T01:10:00", 3, "2026-10-25T11:30:00"),
        ("2026-10-25T01:45:00", 3, "2026-10-25T11:30:00"),
        ("2026-10-25T11:30:00", 2, "2026-10-26T01:30:00"),
    ],
)
def test_daylight_saving_moves_no_wall_clock_time(at: str, least: int, next_at: str) -> None:
    schedule = schedule_at(at, *NIGHT)
    assert (schedule.scaling.min_replicas, schedule.status.next_at) == (least, utc(next_at))


def test_a_time_that_comes_twice_in_london_counts_once() -> None:
    pair = (
        {"cron": "15 1 * * *", "timeZone": "Europe/London", "minReplicas": 3},
        {"cron": "45 1 * * *", "timeZone": "Europe/London"},
    )
    # The clock goes from 02:00 to 01:00 at 01:00 UTC.
    assert schedule_at("2026-10-25T00:20:00", *pair).scaling.min_replicas == 3
    for again in ("2026-10-25T00:50:00", "2026-10-25T01:20:00", "2026-10-25T01:50:00"):
        schedule = schedule_at(again, *pair)
        assert schedule.scaling.min_replicas == 2
        assert schedule.status.next_at == utc("2026-10-26T01:15:00")


times = st.builds(
    "{} {} * * *".format,
    st.sampled_from(["0", "30", "*/20", "5,35", "*"]),
    st.sampled_from(["1", "2", "3", "*", "*/2", "1-4"]),
)
zones = st.sampled_from([BERLIN, "UTC", "America/New_York", "Australia/Lord_Howe"])
beginnings = st.sampled_from(
    [utc("2026-03-29T00:00:00"), utc("2026-10-24T23:00:00"), utc("2026-10-03T14:00:00")]
)


@given(times, times, zones, beginnings, st.integers(0, 9000), st.integers(1, 4000))
def test_bounds_change_at_the_time_that_was_said_and_at_no_other(
    first: str, second: str, zone: str, begin: datetime, passed: int, later: int
) -> None:
    scaling = a_scaling(
        {"cron": first, "timeZone": zone, "minReplicas": 1},
        {"cron": second, "timeZone": zone, "minReplicas": 2},
    )
    at = begin + timedelta(seconds=passed)
    schedule = bounds_schedule(CHAT, scaling, at=at)
    assert schedule.status.next_at is not None
    assert schedule.status.next_at > at
    assert (
        bounds_schedule(CHAT, scaling, at=schedule.status.next_at - timedelta(seconds=1))
        == schedule
    )
    assert (
        bounds_schedule(CHAT, scaling, at=schedule.status.next_at).status.current
        == schedule.status.next
    )
    incremental = Incremental()
    for moment in (at, at + timedelta(seconds=later)):
        reused = incremental.run(bounds_schedule, CHAT, scaling, at=moment)
        assert reused == bounds_schedule(CHAT, scaling, at=moment)


@pytest.mark.parametrize(
    ("schedules", "field", "words"),
    [
        (({"cron": "0 8 * *"},), "[0].cron", "has 4 fields, a cron expression has 5"),
        (({"cron": "0 0 8 * * *"},), "[0].cron", "has 6 fields"),
        (({"cron": "@daily"},), "[0].cron", "has 1 field,"),
        (({"cron": "0 25 * * *"},), "[0].cron", "(bad hour): write minute"),
        (({"cron": "0 8 32 * *"},), "[0].cron", "(bad day-of-month)"),
        (({"cron": "0 8 1 13 *"},), "[0].cron", "(bad month)"),
        (({"cron": "0 8 * * 1-"},), "[0].cron", "(bad day-of-week)"),
        (({"cron": "0 8 30 2 *"},), "[0].cron", "'0 8 30 2 *' never comes"),
        (({"cron": "0 8 31 4,6 *"},), "[0].cron", "never comes"),
        (({"cron": "0 8 29-31/2 2 MON#1"},), "[0].cron", None),
        (({"cron": "0 8 */30 2 *"},), "[0].cron", None),
        (({"cron": "0 8 */31 2 MON#2"},), "[0].cron", "never comes"),
        (({"cron": "0 8 29 2 *"},), "[0].cron", None),
        (
            ({"cron": "0 8 * * *", "timeZone": "Mars/Olympus"},),
            "[0].timeZone",
            "Mars/Olympus is not an IANA time zone; use a name such as Europe/Berlin",
        ),
        (
            ({"cron": "0 8 * * *", "minReplicas": 5},),
            "[0].minReplicas",
            "minReplicas 5 exceeds maxReplicas 4; lower it or raise maxReplicas",
        ),
        (({"cron": "0 8 * * *", "maxReplicas": 1},), "[0].minReplicas", "2 exceeds maxReplicas 1"),
        (
            ({"cron": "0 8 * * *", "minReplicas": 0},),
            "[0].minReplicas",
            "0 needs spec.scaling.idle",
        ),
        (
            ({"cron": "0 8 1 1 *"}, {"cron": "0,30 6-9 * * MON"}),
            "[1].cron",
            "'0,30 6-9 * * MON' and '0 8 1 1 *' of spec.scaling.schedules[0] share Monday 1 "
            "January 08:00 UTC",
        ),
        (({"cron": "0 8 * * 1-5"}, {"cron": "0 8 * * 6,7"}), "[1].cron", None),
        (({"cron": "0 8 * * *"}, {"cron": "0 20 * * *"}), "[1].cron", None),
        (({"cron": "0 8 1 * *"}, {"cron": "0 8 L * *"}), "[1].cron", None),
        (({"cron": "0 8 28 * *"}, {"cron": "0 8 L * *"}), "[1].cron", "28 February 08:00 UTC"),
        (({"cron": "0 8 * * *"}, {"cron": "0 8 * * *", "timeZone": BERLIN}), "[1].cron", None),
    ],
)
def test_a_bad_schedule_is_named_with_its_field_and_a_way_out(
    schedules: tuple[dict[str, Any], ...], field: str, words: str | None
) -> None:
    faults = schedule_faults(a_scaling(*schedules))
    if words is None:
        assert faults == ()
        return
    ((path, message),) = faults
    assert path == f"spec.scaling.schedules{field}"
    assert words in message


def test_bounds_that_are_omitted_are_compared_as_those_of_the_spec() -> None:
    idle = {"idle": {"after": "10m"}, "minReplicas": 0}
    assert schedule_faults(a_scaling({"cron": "0 8 * * *"}, **idle)) == ()
    assert schedule_faults(a_scaling({"cron": "0 8 * * *", "maxReplicas": 9}, minReplicas=4)) == ()


def test_a_bad_schedule_is_not_accepted() -> None:
    (denial,) = check(a_spec(scaling={"schedules": [{"cron": "0 8 30 2 *"}]}), {})
    assert denial.reason == "InvalidSchedule"
    assert denial.sentence.startswith("spec.scaling.schedules[0].cron: '0 8 30 2 *' never comes")


@given(st.text(st.sampled_from("0123456789*/-,#L WMONFEB"), min_size=1, max_size=24))
def test_any_text_is_read_or_named(cron: str) -> None:
    scaling = a_scaling({"cron": cron})
    if not schedule_faults(scaling):
        assert bounds_schedule(CHAT, scaling, at=utc("2026-03-02T12:00:00")).status.next_at is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("*/28 2 MON#5", "29 2 TUE"),
        ("29 2 *", "*/28 * MON#5"),
        ("LW * *", "* 2,4 5L"),
        ("L * *", "* 4,6 MON#5"),
        ("L 1,3 *", "31 * SUN"),
        ("LW * *", "*/2 * SAT,SUN"),
        ("1-7 * *", "* * 2#2,3#5"),
        ("30 * *", "L 2,6 *"),
    ],
)
def test_schedules_conflict_if_any_day_of_28_years_has_both(first: str, second: str) -> None:
    begin = utc("2001-01-01")
    expressions = [CronSim(f"0 8 {fields}", begin) for fields in (first, second)]
    common = {
        f"{day:%A} {day.day} {day:%B} 08:00 UTC"
        for day in (begin + timedelta(days=index) for index in range(28 * 365 + 7))
        if all(each.match_day(day) and day.month in each.months for each in expressions)
    }
    faults = schedule_faults(a_scaling({"cron": f"0 8 {first}"}, {"cron": f"0 8 {second}"}))
    assert len(faults) == bool(common)
    assert all(any(f" share {minute}, so" in message for minute in common) for _, message in faults)


def test_edited_schedules_leave_nothing_in_memory() -> None:
    def edit(number: int) -> None:
        # All days each, in texts that no other edit has.
        crons = (f"{index} 0 1-31,{index + 1},{number} * *" for index in range(16))
        assert schedule_faults(a_scaling(*({"cron": cron} for cron in crons))) == ()

    edit(1)
    tracemalloc.start()
    try:
        edit(2)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        edit(3)
        edit(4)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / 2 < 4096, "bytes that an edit leaves"
