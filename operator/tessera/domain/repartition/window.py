"""The maintenance window of a pool: when a repartition may begin."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tessera.api.mig import MaintenanceWindow

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def closed_reason(window: MaintenanceWindow | None, at: datetime) -> str | None:
    """Return why no unit may begin now, None when one may.

    Times are wall-clock times in the window's time zone. A window whose start equals its end lasts
    24 hours.
    """
    if window is None:
        return None
    try:
        local = at.astimezone(ZoneInfo(window.time_zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return (
            f"spec.mig.maintenanceWindow.timeZone {window.time_zone} is not an IANA time zone, so "
            "no GPU is repartitioned; set one such as Europe/Berlin"
        )
    if _is_open(window, local):
        return None
    days = ", ".join(window.days) if window.days else "every day"
    return (
        f"outside spec.mig.maintenanceWindow: it is {_DAYS[local.weekday()]} {local:%H:%M} in "
        f"{window.time_zone}, the window is {window.start} to {window.end}, {days}"
    )


def _is_open(window: MaintenanceWindow, local: datetime) -> bool:
    clock = f"{local:%H:%M}"
    if window.start < window.end:
        return window.start <= clock < window.end and _starts_on(window, local)
    if clock >= window.start:
        return _starts_on(window, local)
    # After midnight the window belongs to the day on which it began.
    return clock < window.end and _starts_on(window, local - timedelta(days=1))


def _starts_on(window: MaintenanceWindow, day: datetime) -> bool:
    return not window.days or _DAYS[day.weekday()] in window.days
