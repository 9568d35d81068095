"""What a tenant has spent, as it is kept between turns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tessera.api.tenant_budget import WindowName
from tessera.domain.budget.windows import Window
from tessera.domain.money import Tariff


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A replica that is being counted."""

    pod: str
    """Namespace and name."""
    pool: str
    tariff: Tariff
    through: datetime
    """Until when it is counted."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Nano-units spent in the window that began at `start`, counted from `since` on."""

    start: datetime
    nanos: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """What was spent until `as_of`, and what was running then, by the pods' uids."""

    as_of: datetime | None = None
    settled: Mapping[WindowName, Settled] = field(default_factory=dict)
    running: Mapping[str, Running] = field(default_factory=dict)
    lost: Mapping[WindowName, datetime] = field(default_factory=dict)
    """Windows, by their start, of which an earlier part is not known."""

    def spent(self, window: Window) -> int:
        """Nano-units of one window."""
        found = self.settled.get(window.name)
        return found.nanos if found is not None and found.start == window.start else 0

    def knows(self, window: Window) -> bool:
        """The whole window was counted."""
        return self.lost.get(window.name) != window.start
