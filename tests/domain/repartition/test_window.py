"""The maintenance window of a pool."""

from datetime import UTC, datetime

import pytest

from tessera.api.mig import MaintenanceWindow, Weekday
from tessera.domain.repartition.window import closed_reason


def at(day: int, hour: int) -> datetime:
    """In November 2026, of which the 20th is a Friday."""
    return datetime(2026, 11, day, hour, 30, tzinfo=UTC)


def a_window(start: str, end: str, *days: Weekday, time_zone: str = "UTC") -> MaintenanceWindow:
    return MaintenanceWindow(days=days, start=start, end=end, time_zone=time_zone)


def test_without_a_window_it_is_always_open() -> None:
    assert closed_reason(None, at(20, 12)) is None


@pytest.mark.parametrize(
    ("window", "moment", "is_open"),
    [
        (a_window("01:00", "05:00"), at(20, 4), True),
        (a_window("01:00", "05:00"), at(20, 5), False),
        (a_window("22:00", "02:00"), at(20, 23), True),
        (a_window("22:00", "02:00"), at(21, 1), True),
        (a_window("22:00", "02:00"), at(21, 3), False),
        (a_window("22:00", "02:00", "Fri"), at(21, 1), True),
        (a_window("22:00", "02:00", "Fri"), at(20, 1), False),
        (a_window("22:00", "22:00", "Fri"), at(21, 21), True),
        (a_window("01:00", "05:00", "Sat"), at(20, 4), False),
        (a_window("01:00", "05:00", time_zone="America/New_York"), at(20, 8), True),
    ],
)
def test_a_window_belongs_to_the_day_on_which_it_begins(
    window: MaintenanceWindow, moment: datetime, is_open: bool
) -> None:
    assert (closed_reason(window, moment) is None) == is_open


def test_an_unknown_time_zone_is_named() -> None:
    message = closed_reason(a_window("01:00", "05:00", time_zone="Mars/Olympus"), at(20, 4))
    assert message
    assert message.startswith("spec.mig.maintenanceWindow.timeZone Mars/Olympus is not an IANA")
