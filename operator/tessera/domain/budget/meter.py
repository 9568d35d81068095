"""The spend of a tenant as it is stored between cycles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from tessera.api.tenant_budget import LimitKey
from tessera.domain.budget.periods import CalendarPeriod
from tessera.domain.money import Tariff

# A weight is a share like 15/112; its ninth digit is a nano-unit in an hour.
WEIGHT_QUANTUM = Decimal("1e-9")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredReplica:
    """A running replica whose cost is charged."""

    pod: str
    """Namespace and name of the pod."""
    pool: str
    tariff: Tariff
    charged_until: datetime
    bound: datetime
    """When the pod was bound; `charged_until` while only the record is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredGroup:
    """Running replicas that a record counts without naming them, charged until its `as_of`."""

    pool: str
    tariff: Tariff
    replicas: int


@dataclass(frozen=True, slots=True)
class WindowSpend:
    """Nano-units spent in the window that began at `start`, metered from `since` on."""

    start: datetime
    nanos: int
    since: datetime


@dataclass(frozen=True, slots=True)
class OutsideLoan:
    """What is lent for calls of outside providers in the window that began at `start`."""

    start: datetime
    amount: int = 0
    """Nano-units that gateways may borrow in all."""
    used: int = 0
    """Those of them that were charged, as gateways reported last."""
    generation: int = 0
    """Rises when the amount changes; 0 while nothing was lent."""
    previous_amount: int = 0
    """The amount before it was lowered, until an account has the lower one; 0 else."""
    idle_since: datetime | None = None
    """When this operator first saw that nothing of it is used; None while it is used."""

    @property
    def counted(self) -> int:
        """Return the nano-units that are available to nothing else: what accounts may lend."""
        return max(self.amount, self.previous_amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendMeter:
    """The spend until `as_of`, and the replicas that ran then, by the uids of their pods."""

    as_of: datetime | None = None
    spend_by_window: Mapping[LimitKey, WindowSpend] = field(default_factory=dict)
    running: Mapping[str, MeteredReplica] = field(default_factory=dict)
    groups: tuple[MeteredGroup, ...] = ()
    """Further replicas that ran then; only right after a record was restored."""
    names_replicas: bool = True
    """False when restored from a record that says nothing of replicas: those bound before it are
    charged from then on."""
    incomplete_windows: Mapping[LimitKey, datetime] = field(default_factory=dict)
    """Starts of windows of which an earlier part was not metered."""
    loans: Mapping[str, OutsideLoan] = field(default_factory=dict)
    """What is lent for calls of outside providers, which the spend has not, by window."""

    def spent(self, period: CalendarPeriod) -> int:
        """Return the nano-units spent in one window."""
        window_spend = self.spend_by_window.get(period.key)
        return (
            window_spend.nanos
            if window_spend is not None and window_spend.start == period.start
            else 0
        )

    def loan(self, period: CalendarPeriod) -> OutsideLoan:
        """Return what is lent in one window: nothing of a part of the tenant's spend."""
        loan = self.loans.get(period.key)
        return loan if loan and loan.start == period.start else OutsideLoan(period.start)

    def is_complete(self, period: CalendarPeriod) -> bool:
        """Return whether the whole window was metered."""
        return self.incomplete_windows.get(period.key) != period.start


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendRecord:
    """The spend of a budget as it is known outside its object, without its replicas."""

    currency: str
    meter: SpendMeter
    """One without `as_of` could not be read."""
