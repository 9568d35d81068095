"""Calendar periods: hours, days, weeks and months in a time zone."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tessera.api.accelerator_pool import Tier
from tessera.api.ref import Ref
from tessera.api.tenant_budget import LimitKey, WindowName
from tessera.domain.money import Tariff

# Longer than any window: so long after the first of a month it is always the next month.
MAX_PERIOD = timedelta(days=32)


@dataclass(frozen=True, slots=True)
class CalendarPeriod:
    """A period from `start` until just before `end`, both in UTC."""

    name: WindowName
    start: datetime
    end: datetime
    tier: Tier | None = None
    """What runs in pools of this tier counts alone; None counts everything."""
    service: Ref | None = None
    """The replicas of this service count alone; None counts everything."""

    @property
    def key(self) -> LimitKey:
        """Return the name by which spend is recorded."""
        return limit_key(self.name, self.tier, self.service)

    @property
    def part(self) -> str:
        """Return what counts alone, to stand after the name: ` of tier OnDemand`."""
        tier = f" of tier {self.tier}" if self.tier else ""
        return f"{tier} of service {self.service}" if self.service else tier

    @property
    def text(self) -> str:
        """Return the name for people: `month`, or `month of tier OnDemand`."""
        return f"{self.name.lower()}{self.part}"

    def cost(self, tariff: Tariff, start: datetime, end: datetime) -> int:
        """Return the nano-units of the part of a span within the period, as far as they count."""
        if self.tier is not None and self.tier != tariff.tier:
            return 0
        if self.service is not None and self.service != tariff.service:
            return 0
        return tariff.cost(*self.overlap(start, end))

    def overlap(self, start: datetime, end: datetime) -> tuple[datetime, datetime]:
        """Return the part of a span within the period; empty if it does not end after its start."""
        return max(start, self.start), min(end, self.end)


def limit_key(name: WindowName, tier: Tier | None, service: Ref | None = None) -> LimitKey:
    """Return the name by which the spend of a limit is recorded."""
    key = name if tier is None else f"{name}/{tier}"
    return key if service is None else f"{key}/{service}"


def service_of(key: LimitKey) -> Ref | None:
    """Return the service that a limit of this name counts alone."""
    parts = key.split("/")
    return Ref(*parts[-2:]) if len(parts) > 2 else None


def zone_of(name: str) -> ZoneInfo | None:
    """Return the time zone of an IANA name; None for an unknown name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def period_at(
    name: WindowName, at: datetime, zone: ZoneInfo, tier: Tier | None = None
) -> CalendarPeriod:
    """Return the period that contains a moment; periods follow each other without a gap."""
    local = at.astimezone(zone)
    if name == "Hour":
        # Hours of standard time, so that a change of daylight saving time moves or stretches none.
        shift = (local.utcoffset() or timedelta()) - (local.dst() or timedelta())
        start = (at.astimezone(UTC) + shift).replace(minute=0, second=0, microsecond=0) - shift
        return CalendarPeriod(name, start, start + timedelta(hours=1), tier)
    today = local.date()
    if name == "Month":
        first = today.replace(day=1)
        last = (first + MAX_PERIOD).replace(day=1)
    else:
        first = today if name == "Day" else today - timedelta(days=today.weekday())
        last = first + timedelta(days=1 if name == "Day" else 7)
    start, end = (
        datetime.combine(date, time(), tzinfo=zone).astimezone(UTC) for date in (first, last)
    )
    return CalendarPeriod(name, start, end, tier)


def next_period(period: CalendarPeriod, zone: ZoneInfo) -> CalendarPeriod:
    """Return the period that follows another one."""
    following = period_at(period.name, period.end, zone, period.tier)
    return replace(following, service=period.service)
