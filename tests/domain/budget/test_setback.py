"""The spend of a tenant after the clock was set back."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from tessera.domain.budget.meter import SpendMeter, WindowSpend
from tessera.domain.budget.metering import after_setback, is_current, recorded_meter
from tests.builders import NOW

HOUR = timedelta(hours=1)
MONTH = WindowSpend(NOW.replace(day=1, hour=0), 500, NOW.replace(day=1, hour=0))


def recorded_at(as_of: datetime, **windows: WindowSpend) -> SpendMeter:
    return SpendMeter(as_of=as_of, spend_by_window=dict(windows) or {"Month": MONTH})


@pytest.mark.parametrize("ahead", [timedelta(minutes=5), HOUR, 9 * HOUR])
def test_a_record_of_a_window_of_now_counts_whatever_the_clock_was(ahead: timedelta) -> None:
    meter = recorded_meter(recorded_at(NOW + ahead), SpendMeter(), NOW)
    later = after_setback(meter, NOW)
    assert (later.as_of, later.spend_by_window) == (NOW, {"Month": MONTH})


def test_a_record_of_later_windows_alone_says_nothing_of_now() -> None:
    start = NOW + timedelta(days=20)
    later = recorded_at(start + HOUR, Month=WindowSpend(start, 500, start))
    assert not is_current(later, NOW)
    assert recorded_meter(later, SpendMeter(), NOW).as_of is None
    assert recorded_meter(later, recorded_at(NOW), NOW) == recorded_at(NOW)


def test_a_record_of_now_stands_against_one_of_before_the_setback() -> None:
    recorded = recorded_at(NOW - timedelta(minutes=1))
    outside = replace(recorded_at(NOW + HOUR), names_replicas=False)
    assert recorded_meter(recorded, outside, NOW) is recorded
