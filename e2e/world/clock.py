"""The wall clock as the Kubernetes API writes it."""

import datetime


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)  # noqa: TID251 (the one place of the world)


def after(seconds: float) -> datetime.datetime:
    return now() + datetime.timedelta(seconds=seconds)


def stamp(moment: datetime.datetime | None = None) -> str:
    """Whole seconds, as in `creationTimestamp`."""
    return (moment or now()).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_stamp() -> str:
    """Microseconds, as Leases want them."""
    return now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
