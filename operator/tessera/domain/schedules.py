"""Bounds of the autoscaler by time: functions of the spec and the time, without memory.

Cron expressions are matched against the wall clock of their time zone, so that 08:00 stays 08:00
when daylight saving time begins or ends. A time that the clock skips then counts as the end of the
gap, and one that it shows twice as the first of the two.
"""

import calendar
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from cronsim.cronsim import Field

from tessera.api.inference_service import InferenceServiceSpec, Scaling, ScalingSchedule
from tessera.api.rollout import GateWindow
from tessera.api.service_status import ScheduledBoundsStatus, ScheduleStatus
from tessera.api.text import counted
from tessera.domain.budget.periods import zone_of
from tessera.domain.incremental import FOREVER, Until, constant, reused, reused_until, tabulated
from tessera.domain.observed.snapshot import Ref

_EPOCH = datetime(2001, 1, 1)  # noqa: DTZ001 - a time of a wall clock
# Schedules that change bounds each minute cost no more than those of a week.
_MAX_CHANGES = 48
_MINUTE, _SECOND = timedelta(minutes=1), timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class BoundsSchedule:
    """The bounds at a time, and the next ones."""

    scaling: Scaling
    """The spec with the current bounds, without schedules."""
    status: ScheduleStatus

    def apply(self, spec: InferenceServiceSpec) -> InferenceServiceSpec:
        """Return the spec with the current bounds."""
        return spec.model_copy(update={"scaling": self.scaling})


@reused_until
def bounds_schedule(_ref: Ref, scaling: Scaling, *, at: datetime) -> Until[BoundsSchedule]:
    """Return the bounds of valid schedules: those of the one whose time was last.

    Of two with the same time, in different time zones or after a gap, the one listed later applies.
    """
    schedules = scaling.schedules
    _, current = max((_last_time(schedule, at), index) for index, schedule in enumerate(schedules))
    bounds = _bounds(scaling, current)
    others = (schedule for index, schedule in enumerate(schedules) if index != current)
    next_at = min((_next_time(schedule, at) for schedule in others), default=None)
    following = None
    if next_at is not None:
        times = [_last_time(schedule, next_at) for schedule in schedules]
        following = _bounds(
            scaling, max(index for index, time in enumerate(times) if time == next_at)
        )
    schedule = BoundsSchedule(
        scaling.model_copy(
            update={
                "min_replicas": bounds.min_replicas,
                "max_replicas": bounds.max_replicas,
                "schedules": (),
            }
        ),
        ScheduleStatus(current=bounds, next=following, next_at=next_at),
    )
    return Until(schedule, next_at or FOREVER)


def bounds_at(scaling: Scaling, moments: Iterable[datetime]) -> Iterator[tuple[int, int]]:
    """Yield the fewest and the most replicas at moments in their order, by valid schedules.

    After more changes than a week of days has, the bounds stay as they were last.
    """
    schedules, until = scaling.schedules, datetime.min.replace(tzinfo=UTC)
    least, most, changes = scaling.min_replicas, scaling.max_replicas, 0
    for moment in moments:
        if schedules and moment >= until and changes < _MAX_CHANGES:
            changes += 1
            _, current = max((_last_time(each, moment), at) for at, each in enumerate(schedules))
            until = min(_next_time(schedule, moment) for schedule in schedules)
            bounds = _bounds(scaling, current)
            least, most = bounds.min_replicas, bounds.max_replicas
        yield least, most


def _bounds(scaling: Scaling, index: int) -> ScheduledBoundsStatus:
    schedule = scaling.schedules[index]
    least, most = schedule.min_replicas, schedule.max_replicas
    return ScheduledBoundsStatus(
        schedule=f"{_field(index)} ({schedule.cron} {schedule.time_zone})",
        min_replicas=scaling.min_replicas if least is None else least,
        max_replicas=scaling.max_replicas if most is None else most,
    )


def _field(index: int) -> str:
    return f"spec.scaling.schedules[{index}]"


def in_window(window: GateWindow, at: datetime) -> bool:
    """Return whether a window is open; one whose times cannot be read never is."""
    if zone_of(window.time_zone) is None or isinstance(_parse(window.cron), str):
        return False
    return at - _last_time(window, at) < window.duration


def _last_time(schedule: ScalingSchedule | GateWindow, at: datetime) -> datetime:
    """Return the last time of a schedule until now, now included."""
    zone = ZoneInfo(schedule.time_zone)
    walls = CronSim(schedule.cron, _wall_clock(at, zone) + _SECOND, reverse=True)
    return next(time for wall in walls if (time := _time_of(wall, zone)) <= at)


def _next_time(schedule: ScalingSchedule, at: datetime) -> datetime:
    """Return the first time of a schedule after now."""
    zone = ZoneInfo(schedule.time_zone)
    walls = CronSim(schedule.cron, at.astimezone(zone).replace(tzinfo=None))
    return next(time for wall in walls if (time := _time_of(wall, zone)) > at)


def _wall_clock(at: datetime, zone: ZoneInfo) -> datetime:
    """Return the latest time that the wall clock showed until now."""
    local = at.astimezone(zone)
    repeated = _offset(local.replace(fold=0)) - _offset(local)
    return local.replace(tzinfo=None, microsecond=0) + repeated


def _offset(local: datetime) -> timedelta:
    return local.utcoffset() or timedelta()


def _time_of(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return when the wall clock shows a time first, or what comes after it."""
    time = wall.replace(tzinfo=zone).astimezone(UTC)
    while time.astimezone(zone).replace(tzinfo=None) != wall:
        wall += _MINUTE
        time = wall.replace(tzinfo=zone).astimezone(UTC)
    return time


@reused
def schedule_faults(scaling: Scaling) -> tuple[tuple[str, str], ...]:
    """Return what is wrong with the schedules: fields and messages."""
    return tuple(_faults(scaling))


def _faults(scaling: Scaling) -> Iterator[tuple[str, str]]:
    parsed: list[tuple[int, str, _Times]] = []
    for index, schedule in enumerate(scaling.schedules):
        field, bounds = _field(index), _bounds(scaling, index)
        if zone_of(schedule.time_zone) is None:
            yield (
                f"{field}.timeZone",
                f"{schedule.time_zone} is not an IANA time zone; use a name such as Europe/Berlin "
                "from timedatectl list-timezones",
            )
        if bounds.min_replicas > bounds.max_replicas:
            yield (
                f"{field}.minReplicas",
                f"minReplicas {bounds.min_replicas} exceeds maxReplicas {bounds.max_replicas}; "
                "lower it or raise maxReplicas (omitted, they are those of spec.scaling)",
            )
        if bounds.min_replicas == 0 and scaling.idle is None:
            yield (
                f"{field}.minReplicas",
                "0 needs spec.scaling.idle, for example idle: {after: 10m}; set that, or at least "
                "1",
            )
        times = _parse(schedule.cron)
        if isinstance(times, str):
            yield f"{field}.cron", times
            continue
        for other, time_zone, before in parsed:
            same_zone = time_zone == schedule.time_zone
            if same_zone and (minute := _common_minute(before, times)) is not None:
                yield (
                    f"{field}.cron",
                    f"{schedule.cron!r} and {scaling.schedules[other].cron!r} of {_field(other)} "
                    f"share {minute} {time_zone}, so it is undecided which bounds apply; change "
                    "the times of one of them",
                )
        parsed.append((index, schedule.time_zone, times))


class _Times(NamedTuple):
    """The times of a cron expression."""

    expression: CronSim
    days: int
    """Those of `_month_days` that it has in any month, as a bit mask."""


def _parse(cron: str) -> _Times | str:
    """Return the times of the expression, or what is wrong with it."""
    fields = cron.split()
    form = "write minute, hour, day of month, month and day of week, such as 0 8 * * 1-5"
    if len(fields) != 5:
        return f"{cron!r} has {counted(len(fields), 'field')}, a cron expression has 5: {form}"
    try:
        expression = CronSim(cron, _EPOCH)
    except CronSimError as error:
        # The library refuses days that no month of the expression has.
        other_months = (*fields[:3], "*", fields[4])
        if str(error) != Field.DAY.msg() or not _is_valid(other_months):
            return f"{cron!r} is no cron expression ({str(error).lower()}): {form}"
    else:
        days = _days(expression)
        if any(days & _days_by_month()[month] for month in expression.months):
            return _Times(expression, days)
    return f"{cron!r} never comes, since no year has such a day; correct its days or months"


def _days(expression: CronSim) -> int:
    """Return the days of any month that an expression has, as a bit mask."""
    days, weekdays = (
        functools.reduce(operator.or_, (_days_of_item(field, item) for item in items))
        for field, items in (("days", expression.days), ("weekdays", expression.weekdays))
    )
    return days & weekdays if expression.day_and else days | weekdays


def _item_days(field: str, item: object) -> int:
    """Return those of `_month_days` that one item of a field has, such as the last Friday."""
    expression = CronSim("* * * * *", _EPOCH)
    setattr(expression, field, {item})
    # The other field has every day.
    return _bit_mask(map(expression.match_day, _month_days()))


_days_of_item = tabulated(_item_days, size=128)


def _is_valid(fields: tuple[str, ...]) -> bool:
    try:
        CronSim(" ".join(fields), _EPOCH)
    except CronSimError:
        return False
    return True


@constant
def _month_days() -> tuple[date, ...]:
    """Return a date of each kind: by its day, its weekday and the length of its month.

    Whether an expression has a day depends on nothing else but the month.
    """
    dates = {
        (day, date(year, month, day).weekday(), _last_day(year, month)): date(year, month, day)
        for year in range(_EPOCH.year, _EPOCH.year + 28)
        for month in (1, 2, 4)  # of each length
        for day in range(1, _last_day(year, month) + 1)
    }
    return tuple(day for _, day in sorted(dates.items()))


@constant
def _days_by_month() -> Mapping[int, int]:
    """Return those of `_month_days` that each month may have, as bit masks."""
    # Of a common year and a leap year.
    lengths = {month: {_last_day(year, month) for year in (2001, 2004)} for month in range(1, 13)}
    return {
        month: _bit_mask(_last_day(day.year, day.month) in lengths[month] for day in _month_days())
        for month in lengths
    }


def _last_day(year: int, month: int) -> int:
    return calendar.monthrange(year, month)[1]


def _bit_mask(bits: Iterable[bool]) -> int:
    return sum(1 << index for index, bit in enumerate(bits) if bit)


def _common_minute(first: _Times, second: _Times) -> str | None:
    """Return a minute at which both come; None if there is none."""
    minutes = first.expression.minutes & second.expression.minutes
    hours = first.expression.hours & second.expression.hours
    if not minutes or not hours:
        return None
    for month in sorted(first.expression.months & second.expression.months):
        if days := first.days & second.days & _days_by_month()[month]:
            day = next(day for index, day in enumerate(_month_days()) if days >> index & 1)
            name = calendar.month_name[month]
            return f"{day:%A} {day.day} {name} {min(hours):02}:{min(minutes):02}"
    return None
