"""`TenantBudget`: how much money a tenant may spend, and who answers for it."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.meta import Amount, Conditions, DnsLabel, Wire, rule, with_rules

WindowName = Literal["Hour", "Day", "Month"]


class Tenant(Wire):
    """Who the tenant is."""

    namespaces: Annotated[tuple[DnsLabel, ...], Field(min_length=1, max_length=64)]
    """Everything that Tessera runs in these namespaces counts."""


class Limit(Wire):
    """So much money in so much time."""

    window: WindowName
    """`Hour`, `Day` and `Month` of the calendar in `spec.timeZone`."""

    amount: Amount
    """The most that may be spent in one window, in `spec.currency`."""


class OnSpendUnknown(Wire):
    """What holds while the spend of a window is not known, because its record was lost."""

    allow_up_to: Amount | None = None
    """Money that may still be granted in such a window, counted from the loss on; without it
    nothing is added until the next window begins."""


class TenantBudgetSpec(Wire):
    """What the platform team grants."""

    owner: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """Who answers for the money, for example a mail address; alerts carry it."""

    tenant: Tenant
    """Who the tenant is."""

    basis: Literal["Cost"] = "Cost"
    """`Cost`: the tenant's share of the node bill, by slices and time."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    """ISO 4217 code; the pools that the tenant uses must be priced in it."""

    time_zone: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$", max_length=64)
    ] = "UTC"
    """Name in the IANA database, for example `Europe/Berlin`; windows begin by its clock."""

    limits: Annotated[tuple[Limit, ...], Field(min_length=1, max_length=3)]
    """All of them hold."""

    on_spend_unknown: OnSpendUnknown = Field(default_factory=OnSpendUnknown)
    """What holds while the spend of a window is not known, because its record was lost."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "self.limits.all(l, self.limits.exists_one(m, m.window == l.window))",
                "spec.limits has 2 limits for the same window; keep the smaller",
                ".limits",
            ),
            rule(
                "self.tenant.namespaces.all(n, self.tenant.namespaces.exists_one(m, m == n))",
                "spec.tenant.namespaces names a namespace 2 times; remove one",
                ".tenant.namespaces",
            ),
        )
    )


class _BudgetStatusBase(Wire):
    """A part of the status. It is the record of what was spent, so what a newer operator added does
    not make the rest unreadable."""

    model_config = ConfigDict(extra="ignore")


class WindowStatus(_BudgetStatusBase):
    """One window as it stands."""

    window: WindowName
    """Which limit."""

    start: datetime
    """When the window began."""

    end: datetime
    """When the next one begins."""

    limit: Amount
    """What may be spent."""

    counted_from: datetime | None = None
    """From when on it is counted, where that is later than `start`: its limit is new."""

    spent: Amount
    """What was spent from `start` to `spend.asOf`."""

    committed: Amount
    """What the floors will still burn until `end`, and what was granted beyond them."""

    forecast: Amount
    """What will have been spent at `end` if everything that runs goes on."""

    max_overspend: Amount
    """By how much the window may end above its limit at most, since floors are never cut."""


class RunningStatus(_BudgetStatusBase):
    """A replica whose cost is being counted."""

    uid: str
    """The pod's uid."""

    pod: str
    """Namespace and name of the pod."""

    pool: str
    """The AcceleratorPool that it stands on."""

    weight: Amount
    """Share of a GPU that it is billed."""

    per_gpu_hour: Annotated[Amount, Field(alias="perGPUHour")]
    """Price of a whole GPU for an hour, as last known."""

    charged_until: datetime
    """Until when it is counted in `settled`."""


class SpendStatus(_BudgetStatusBase):
    """The record of what was spent, which a restarted operator goes on from."""

    as_of: datetime
    """When the record was written; at most a minute ago, and before each grant."""

    windows: Annotated[tuple[WindowStatus, ...], Field(max_length=3)] = ()
    """One for each limit."""

    running: Annotated[tuple[RunningStatus, ...], Field(max_length=4000)] = ()
    """The replicas that were being counted."""

    incomplete_windows: Annotated[tuple[WindowName, ...], Field(max_length=3)] = ()
    """Windows of which an earlier part is not known."""


class TenantBudgetStatus(_BudgetStatusBase):
    """What became of it; written by the operator alone."""

    observed_generation: int = 0
    """The generation of the spec that this status speaks about."""

    conditions: Conditions = ()
    """Accepted and WithinBudget."""

    spend: SpendStatus | None = None
    """The record of what was spent."""

    summary: str = ""
    """The tightest window in one line, for `kubectl get`: spent, limit and share."""

    per_hour: Amount | None = None
    """What everything that runs costs in an hour now."""

    services: int = 0
    """Services of the tenant."""

    batches: int = 0
    """Batches of the tenant that are not finished."""


class TenantBudget(Wire):
    """How much money a tenant may spend, and who answers for it."""

    spec: TenantBudgetSpec
    """What the platform team grants."""

    status: TenantBudgetStatus | None = None
    """What became of it; written by the operator alone."""
