"""Windows of the calendar: hours, days and months by the clock of a time zone."""

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tessera.api.tenant_budget import WindowName


@dataclass(frozen=True, slots=True)
class Window:
    """From `start` until just before `end`, both in UTC."""

    name: WindowName
    start: datetime
    end: datetime

    def overlap(self, start: datetime, end: datetime) -> tuple[datetime, datetime]:
        """The part of a span within the window; empty when its end is not after its start."""
        return max(start, self.start), min(end, self.end)


def zone_of(name: str) -> ZoneInfo | None:
    """The zone of an IANA name; None when there is none of that name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def window_at(name: WindowName, at: datetime, zone: ZoneInfo) -> Window:
    """The window in which a moment lies. Windows follow each other without a gap."""
    local = at.astimezone(zone)
    if name == "hour":
        start = local.replace(minute=0, second=0, microsecond=0).astimezone(UTC)
        return Window(name, start, start + timedelta(hours=1))
    first = local.date() if name == "day" else local.date().replace(day=1)
    days = 1 if name == "day" else 32
    after = first + timedelta(days=days)
    last = after if name == "day" else after.replace(day=1)
    start, end = (
        datetime.combine(date, time(), tzinfo=zone).astimezone(UTC) for date in (first, last)
    )
    return Window(name, start, end)


def following(window: Window, zone: ZoneInfo) -> Window:
    """The window after one."""
    return window_at(window.name, window.end, zone)
