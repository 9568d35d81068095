"""The spend of a tenant as it is stored between cycles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tessera.api.tenant_budget import WindowName
from tessera.domain.budget.periods import CalendarPeriod
from tessera.domain.money import Tariff


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredReplica:
    """A running replica whose cost is charged."""

    pod: str
    """Namespace and name of the pod."""
    pool: str
    tariff: Tariff
    charged_until: datetime


@dataclass(frozen=True, slots=True)
class WindowSpend:
    """Nano-units spent in the window that began at `start`, metered from `since` on."""

    start: datetime
    nanos: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendMeter:
    """The spend until `as_of`, and the replicas that ran then, by the uids of their pods."""

    as_of: datetime | None = None
    spend_by_window: Mapping[WindowName, WindowSpend] = field(default_factory=dict)
    running: Mapping[str, MeteredReplica] = field(default_factory=dict)
    incomplete_windows: Mapping[WindowName, datetime] = field(default_factory=dict)
    """Starts of windows of which an earlier part was not metered."""

    def spent(self, period: CalendarPeriod) -> int:
        """Return the nano-units spent in one window."""
        window_spend = self.spend_by_window.get(period.name)
        return (
            window_spend.nanos
            if window_spend is not None and window_spend.start == period.start
            else 0
        )

    def is_complete(self, period: CalendarPeriod) -> bool:
        """Return whether the whole window was metered."""
        return self.incomplete_windows.get(period.name) != period.start
