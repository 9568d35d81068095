"""What a tenant has spent, as it is kept between turns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tessera.api.tenant_budget import WindowName
from tessera.domain.budget.periods import CalendarPeriod
from tessera.domain.money import Tariff


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredReplica:
    """A replica that is being counted."""

    pod: str
    """Namespace and name."""
    pool: str
    tariff: Tariff
    charged_until: datetime
    """Until when it is counted."""


@dataclass(frozen=True, slots=True)
class WindowSpend:
    """Nano-units spent in the window that began at `start`, counted from `since` on."""

    start: datetime
    nanos: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendMeter:
    """What was spent until `as_of`, and what was running then, by the pods' uids."""

    as_of: datetime | None = None
    spend_by_window: Mapping[WindowName, WindowSpend] = field(default_factory=dict)
    running: Mapping[str, MeteredReplica] = field(default_factory=dict)
    incomplete_windows: Mapping[WindowName, datetime] = field(default_factory=dict)
    """Windows, by their start, of which an earlier part is not known."""

    def spent(self, period: CalendarPeriod) -> int:
        """Nano-units of one window."""
        window_spend = self.spend_by_window.get(period.name)
        return (
            window_spend.nanos
            if window_spend is not None and window_spend.start == period.start
            else 0
        )

    def is_complete(self, period: CalendarPeriod) -> bool:
        """The whole window was counted."""
        return self.incomplete_windows.get(period.name) != period.start
