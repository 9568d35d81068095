"""When GPUs may be cut anew."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tessera.api.mig import MaintenanceWindow

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def closed_reason(window: MaintenanceWindow | None, at: datetime) -> str | None:
    """Why nothing new begins now; None when it may.

    Hours are those of the wall clock in the window's zone. A window with equal ends lasts a day.
    """
    if window is None:
        return None
    try:
        local = at.astimezone(ZoneInfo(window.time_zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return (
            f"spec.mig.maintenanceWindow.timeZone {window.time_zone} is no IANA time zone, so "
            "nothing is cut; write one such as Europe/Berlin"
        )
    if _is_open(window, local):
        return None
    days = ", ".join(window.days) if window.days else "every day"
    return (
        f"it is {_DAYS[local.weekday()]} {local:%H:%M} in {window.time_zone}, the window is "
        f"{window.start} to {window.end}, {days}"
    )


def _is_open(window: MaintenanceWindow, local: datetime) -> bool:
    clock = f"{local:%H:%M}"
    if window.start < window.end:
        return window.start <= clock < window.end and _starts_on(window, local)
    if clock >= window.start:
        return _starts_on(window, local)
    return clock < window.end and _starts_on(window, local - timedelta(days=1))


def _starts_on(window: MaintenanceWindow, day: datetime) -> bool:
    return not window.days or _DAYS[day.weekday()] in window.days
