"""`TenantBudget`: spending limits of a tenant, and the owner of the budget."""

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints

from tessera.api.accelerator_pool import Tier
from tessera.api.meta import (
    Amount,
    Conditions,
    DnsLabel,
    DnsSubdomain,
    TimeZoneName,
    Wire,
    matching,
    rule,
    rules_config,
    text_default,
)
from tessera.api.model_files import StorageSize
from tessera.api.rate_limits import RateLimitsSpec, TeamName

WindowName = Literal["Hour", "Day", "Month"]
# A window of a limit, with the tier where it counts one alone: `Month` or `Month/OnDemand`.
LIMIT_KEY = re.compile(f"^({'|'.join(get_args(WindowName))})(/({'|'.join(get_args(Tier))}))?$")
LimitKey = Annotated[str, StringConstraints(pattern=LIMIT_KEY.pattern)]

# Name of a model as a grant has it: in lower case, so that every name has one spelling.
GrantedName = Annotated[
    str,
    matching(
        "^[a-z0-9][a-z0-9._:/-]*$",
        "must be lower-case letters, digits and . _ : / -, such as llama-3; it stands for the name "
        "in any case",
    ),
    StringConstraints(max_length=128),
]


class Tenant(Wire):
    """Namespaces of the tenant."""

    namespaces: Annotated[tuple[DnsLabel, ...], Field(min_length=1, max_length=64)]
    """Namespaces whose services and batches count against the budget."""


class Limit(Wire):
    """Spending limit for one calendar window."""

    window: WindowName
    """Calendar `Hour`, `Day` or `Month` in `spec.timeZone`."""

    amount: Amount
    """Maximum spend in one window, in `spec.currency`, for example `"2500"` or `"0.50"`."""

    tier: Tier | None = None
    """Tier of the AcceleratorPools that count, for example `OnDemand` to bound what bursts cost;
    omitted, all of them."""


class NameGrant(Wire):
    """Names that belong to the tenant, and tenants that may get its services by them."""

    names: Annotated[
        tuple[GrantedName, ...],
        Field(min_length=1, max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ]
    """Served names, aliases and names of adapters, in lower case; each stands for its spellings in
    any case. A name stays reserved while no service has it."""

    tenants: Annotated[
        tuple[DnsSubdomain, ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """TenantBudgets whose tenants may get services by the names, besides the tenant itself."""

    public: bool = False
    """Whether every tenant may get services by the names."""

    namespaces: Annotated[
        tuple[DnsLabel, ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """Namespaces of the tenant whose services alone get requests by the names, also those of the
    tenant itself; omitted, all of them."""


class OnSpendUnknown(Wire):
    """Behavior while the spend of a window is unknown because its record was lost."""

    allow_up_to: Amount | None = None
    """Amount that replicas beyond minReplicas and batches may still spend in such a window, counted
    from the loss of the record; omitted, nothing is added until the next window starts."""


class TenantBudgetSpec(Wire):
    """Owner, tenant and limits of the budget."""

    owner: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """Owner of the budget, for example an e-mail address; the metric
    `tessera_budget_within_budget` and its alerts have it as a label."""

    tenant: Tenant
    """Namespaces of the tenant."""

    basis: Literal["Cost"] = "Cost"
    """`Cost`: the tenant's share of the node bill, by slices and time."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    """Currency as an ISO 4217 code; the pools that the tenant uses must have prices in it."""

    time_zone: TimeZoneName = "UTC"
    """IANA name of the time zone in which windows start, for example `Europe/Berlin`."""

    weight: Annotated[Amount, Field(ge=Decimal("0.01"), le=Decimal(1000))] = text_default("1")
    """Weight of the tenant, from `0.01` to `1000`, where devices are too few for all: new replicas
    get them in proportion to the weights. Namespaces without a budget have weight 1 together."""

    limits: Annotated[tuple[Limit, ...], Field(min_length=1, max_length=6)]
    """Spending limits; all of them apply."""

    gpus: Annotated[Amount, Field(gt=0)] | None = None
    """Quota of GPUs that all replicas and batches of the tenant may hold at once, a slice as its
    billing weight: beyond it nothing is added, services of class `Interactive` come first, and
    minReplicas that run are never reduced. Omitted, as many as the limits pay."""

    storage: StorageSize = "16Ti"
    """Quota of the claims with model files that all services and batches of the tenant may have at
    once, for example `2Ti`: beyond it no claim is created and none grows, and those that exist
    stay."""

    rate_limits: RateLimitsSpec = Field(default_factory=RateLimitsSpec)
    """Limits of all requests of the tenant through gateways; omitted, the gateway's defaults."""

    teams: Annotated[dict[TeamName, RateLimitsSpec], Field(max_length=64)] = Field(
        default_factory=dict
    )
    """Limits of teams within the tenant, by the name that keys and tokens carry."""

    publishing: Annotated[tuple[NameGrant, ...], Field(max_length=16)] = ()
    """Names by which services of the tenant may be offered to other tenants through gateways."""

    accepted_publishers: (
        Annotated[
            tuple[DnsSubdomain, ...],
            Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """TenantBudgets whose tenants' services this tenant accepts; omitted, those of all tenants that
    may offer it services."""

    on_spend_unknown: OnSpendUnknown = Field(default_factory=OnSpendUnknown)
    """Behavior while the spend of a window is unknown because its record was lost."""

    model_config = rules_config(
        rule(
            "self.limits.all(l, self.limits.exists_one(m, m.window == l.window && "
            "has(m.tier) == has(l.tier) && (!has(m.tier) || m.tier == l.tier)))",
            "spec.limits has two limits for the same window and tier: keep the smaller one",
            ".limits",
        ),
        rule(
            "self.tenant.namespaces.all(n, self.tenant.namespaces.exists_one(m, m == n))",
            "spec.tenant.namespaces lists a namespace twice: remove one",
            ".tenant.namespaces",
        ),
        rule(
            "!has(self.publishing) || self.publishing.all(g, !has(g.namespaces) || "
            "g.namespaces.all(n, n in self.tenant.namespaces))",
            "spec.publishing has a namespace that spec.tenant.namespaces lacks: add it there, or "
            "remove it here",
            ".publishing",
        ),
        rule(
            "double(self.weight) >= 0.01 && double(self.weight) <= 1000.0",
            "spec.weight must be from 0.01 to 1000, for example 2",
            ".weight",
        ),
        rule(
            "!has(self.gpus) || double(self.gpus) > 0.0",
            "spec.gpus must be above 0, for example 8: to add nothing, set a limit of 0",
            ".gpus",
        ),
    )


class _BudgetStatusBase(Wire):
    """Base of the parts of the status. It ignores unknown fields, so that the record of the spend
    stays readable when a newer operator added fields."""

    model_config = ConfigDict(extra="ignore")


class WindowStatus(_BudgetStatusBase):
    """Current state of one window."""

    window: WindowName
    """Window of the limit."""

    tier: Tier | None = None
    """Tier of the pools that count; absent, all of them."""

    start: datetime
    """Start of the window."""

    end: datetime
    """End of the window, when the next one starts."""

    limit: Amount
    """Maximum spend in the window."""

    counted_from: datetime | None = None
    """When counting started, if later than `start` because the limit is new."""

    spent: Amount
    """Spend from `start` to `spend.asOf`."""

    committed: Amount
    """Cost of minReplicas until `end`, plus what is reserved beyond them."""

    forecast: Amount
    """Spend at `end` if everything that runs continues."""

    max_overspend: Amount
    """Maximum amount by which the window can exceed its limit, since minReplicas are never
    reduced."""


class RunningStatus(_BudgetStatusBase):
    """Replica whose cost is being charged."""

    uid: str
    """UID of the pod."""

    pod: str
    """The pod, as namespace/name."""

    pool: str
    """AcceleratorPool that it runs on."""

    weight: Amount
    """Share of a GPU that it is charged for."""

    per_gpu_hour: Annotated[Amount, Field(alias="perGPUHour")]
    """Latest known price of one whole GPU per hour."""

    charged_until: datetime
    """Time up to which it is charged."""

    tier: Tier | None = None
    """Tier of the pool, where a limit counts one alone."""


class RunningGroupStatus(_BudgetStatusBase):
    """Replicas of one price whose cost is being charged, without their names."""

    pool: str
    """AcceleratorPool that they run on."""

    weight: Amount
    """Share of a GPU that each is charged for."""

    per_gpu_hour: Annotated[Amount, Field(alias="perGPUHour")]
    """Latest known price of one whole GPU per hour."""

    replicas: Annotated[int, Field(ge=1, le=100_000)]
    """How many they are, all charged until `spend.asOf`."""

    tier: Tier | None = None
    """Tier of the pool, where a limit counts one alone."""


class SpendStatus(_BudgetStatusBase):
    """Record of the spend, from which a restarted operator continues."""

    as_of: datetime
    """When the record was written: at least once a minute, and before any addition."""

    windows: Annotated[tuple[WindowStatus, ...], Field(max_length=6)] = ()
    """State of the current window of each limit."""

    running: Annotated[tuple[RunningStatus, ...], Field(max_length=4000)] = ()
    """Replicas that were being charged; of more than 400 those that were bound last."""

    running_groups: Annotated[tuple[RunningGroupStatus, ...], Field(max_length=200)] = ()
    """The other replicas that were being charged, counted by pool and weight."""

    incomplete_windows: Annotated[tuple[LimitKey, ...], Field(max_length=6)] = ()
    """Windows in which some earlier spend is unknown."""


class BudgetOverride(_BudgetStatusBase):
    """Permission to add replicas and batches although the spend is unknown or not recorded."""

    until: AwareDatetime
    """When it ends."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Why it was given."""


class TenantBudgetStatus(_BudgetStatusBase):
    """Observed state of the budget; written by the operator only."""

    observed_generation: int = 0
    """Generation of the spec that this status describes."""

    conditions: Conditions = ()
    """Conditions Accepted, Enforcing and WithinBudget."""

    accepted_spec: TenantBudgetSpec | None = None
    """Last accepted spec, which stays in force while `spec` cannot be used."""

    spend: SpendStatus | None = None
    """Record of the spend, from which a restarted operator continues."""

    override: BudgetOverride | None = None
    """Override in effect, from the annotation `tessera.dev/budget-override`."""

    summary: str = ""
    """Window closest to its limit in one line, for `kubectl get`: spend, limit and share."""

    per_hour: Amount | None = None
    """Current cost per hour of everything that runs."""

    services: int = 0
    """InferenceServices of the tenant."""

    batches: int = 0
    """BatchInferences of the tenant that are not finished."""


class TenantBudget(Wire):
    """Spending limits of a tenant, and the owner of the budget."""

    spec: TenantBudgetSpec
    """Owner, tenant and limits of the budget."""

    status: TenantBudgetStatus | None = None
    """Observed state of the budget; written by the operator only."""
