"""`TenantBudget`: spending limits of a tenant, and the owner of the budget."""

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints

from tessera.api.accelerator_pool import Tier
from tessera.api.meta import (
    LOWER_MODEL_NAME,
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

WindowName = Literal["Hour", "Day", "Week", "Month"]
BudgetBasis = Literal["Cost", "Charge"]
_SERVICE = "[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9]*[a-z0-9])?"
# A window of a limit, with the tier where it counts one alone: `Month` or `Month/OnDemand`.
LIMIT_KEY = re.compile(f"^({'|'.join(get_args(WindowName))})(/({'|'.join(get_args(Tier))}))?$")
LimitKey = Annotated[str, StringConstraints(pattern=LIMIT_KEY.pattern)]

LimitName = Annotated[
    str,
    matching(
        "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        "must be lower-case letters, digits, dots and hyphens, such as charge-month",
    ),
    StringConstraints(max_length=63),
]
ServiceName = Annotated[str, StringConstraints(pattern=f"^{_SERVICE}$", max_length=127)]
# Windows of single services that a record of the spend has: about 200 KiB.
MAX_SERVICE_WINDOWS = 1000
# In a limit's `for` instead of a name: each of them has the amount for itself.
EACH = "*"
# Limits of basis Charge that hold for one request, besides that of its key's record.
MAX_LIMITS_PER_REQUEST = 12

# Name of a model as a grant has it: in lower case, so that every name has one spelling.
GrantedName = Annotated[
    str,
    matching(
        f"^{LOWER_MODEL_NAME}$",
        "must be lower-case letters, digits and . _ : / @ + ~ -, such as llama-3; it stands for "
        "the name in any case",
    ),
    StringConstraints(max_length=128),
]


class Tenant(Wire):
    """Namespaces of the tenant."""

    namespaces: Annotated[tuple[DnsLabel, ...], Field(min_length=1, max_length=64)]
    """Namespaces whose services and batches count against the budget."""


def _or_each(pattern: str, words: str) -> Any:
    return matching(rf"^([*]|{pattern})$", f"must be {words}, or * for each")


_TeamOrEach = Annotated[
    str,
    _or_each("[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", "the name of a team"),
    StringConstraints(max_length=63),
]
_KeyOrEach = Annotated[
    str,
    _or_each("[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "the name of a key"),
    StringConstraints(max_length=63),
]
_UserOrEach = Annotated[
    str, _or_each("[!-~]+", "a user without spaces"), StringConstraints(max_length=255)
]
_ServiceOrEach = Annotated[
    str,
    _or_each(_SERVICE, "namespace/name of an InferenceService"),
    StringConstraints(max_length=127),
]
_ModelOrEach = Annotated[
    str,
    _or_each(LOWER_MODEL_NAME, "a served name in lower case"),
    StringConstraints(max_length=128),
]


class LimitMember(Wire):
    """Requests that a limit of basis `Charge` counts, by one of the fields; with `service` also
    what a limit of basis `Cost` counts. With `"*"` each team, key, user, service or model has the
    amount for itself, also one that is new."""

    team: _TeamOrEach | None = None
    """Requests of the team that keys and tokens carry."""

    key: _KeyOrEach | None = None
    """Requests with the key, by its name within the tenant."""

    user: _UserOrEach | None = None
    """Requests of the user: the subject of a token. Requests with a key have none."""

    service: _ServiceOrEach | None = None
    """Requests to the InferenceService, as namespace/name, whichever tenant it belongs to; of
    basis `Cost` the replicas of one of the tenant."""

    model: _ModelOrEach | None = None
    """Requests for the model or adapter, by the name that its service serves, in lower case;
    requests by an alias count as well."""

    model_config = rules_config(
        rule(
            "[has(self.team), has(self.key), has(self.user), has(self.service), has(self.model)]"
            ".filter(x, x).size() == 1",
            "spec.limits[].for needs one of team, key, user, service and model: write a limit for "
            "each",
        )
    )

    @property
    def part(self) -> tuple[str, str]:
        """Return the field that is set, and its value."""
        return next(iter(self.model_dump(exclude_none=True).items()), ("", EACH))

    @property
    def text(self) -> str:
        """Return it as default names of limits end: `key-ci`, or `key` for each."""
        return "-".join(self.part).replace("-*", "")


class Limit(Wire):
    """Spending limit for one calendar window."""

    name: LimitName | None = None
    """Name of the limit, unique in the budget. Omitted, it is made of basis, window and what the
    limit is for: `charge-month`, `cost-day-ondemand`, `charge-day-key` for each key."""

    window: WindowName
    """Calendar `Hour`, `Day`, `Week`, which begins on Monday, or `Month` in `spec.timeZone`."""

    amount: Amount
    """Maximum spend in one window, in `spec.currency`, for example `"2500"` or `"0.50"`."""

    basis: BudgetBasis | None = None
    """What counts, `Cost` or `Charge`; omitted, `spec.basis`."""

    tier: Tier | None = None
    """Tier of the AcceleratorPools that count, for example `OnDemand` to bound what bursts cost;
    omitted, all of them. Of basis `Cost` alone."""

    for_: Annotated[LimitMember | None, Field(alias="for")] = None
    """What counts; omitted, all of the tenant. Of basis `Cost` a `service` alone."""


_BASIS = "(has({0}.basis) ? {0}.basis : self.basis)".format


def _content() -> str:
    """Return `TenantBudgetSpec.content_of` a limit `l` in CEL, where `for` is `__for__`."""
    member = "''"
    for kind in reversed(LimitMember.model_fields):
        field = f"l.__for__.{kind}"
        member = f"has({field}) ? '-{kind}-' + {field} : {member}"
    member = f"(has(l.__for__) ? ({member}) : '').replace('-*', '')"
    return f"{_BASIS('l')} + '-' + l.window + (has(l.tier) ? '-' + l.tier : '') + {member}"


def _most(kind: str) -> str:
    """Return in CEL how many limits for members of a kind hold for one of them at most."""
    # Of a service nodes cost as well, which no request counts.
    charged = f" && {_BASIS('m')} == 'Charge'" if kind == "service" else ""
    return (
        f"([0] + self.limits.map(l, has(l.__for__) && has(l.__for__.{kind}) ? "
        f"self.limits.filter(m, has(m.__for__) && has(m.__for__.{kind}) && "
        f"m.__for__.{kind} in ['*', l.__for__.{kind}]{charged}).size() : 0)).max()"
    )


_DISTINCT = "[self.limits.map(l, {})].all(n, n.all(a, n.exists_one(b, a == b)))".format
LIMIT_RULES = (
    rule(
        _DISTINCT(_content()),
        "spec.limits has two limits with the same basis, window, tier and for: keep the smaller "
        "one",
        ".limits",
    ),
    rule(
        _DISTINCT(f"has(l.name) ? l.name : ({_content()}).lowerAscii()"),
        "spec.limits has two limits of the same name: give one of them another name",
        ".limits",
    ),
    rule(
        f"self.limits.all(l, !has(l.tier) || {_BASIS('l')} == 'Cost')",
        "spec.limits has a tier in a limit of basis Charge, and prices of requests have no tiers: "
        "remove it, or set basis to Cost",
        ".limits",
    ),
    rule(
        f"self.limits.all(l, !has(l.__for__) || has(l.__for__.service) || "
        f"{_BASIS('l')} == 'Charge')",
        "spec.limits has a for without service in a limit of basis Cost, which counts nodes and no "
        "requests: remove it, or set basis to Charge",
        ".limits",
    ),
    rule(
        f"self.limits.filter(l, !has(l.__for__) && {_BASIS('l')} == 'Charge').size() + "
        f"{_most('team')} + [{_most('key')}, {_most('user')}].max() + {_most('service')} + "
        f"{_most('model')} <= {MAX_LIMITS_PER_REQUEST}",
        f"spec.limits has more than {MAX_LIMITS_PER_REQUEST} limits that may hold for one request: "
        "remove some windows",
        ".limits",
    ),
)


_Residency = Annotated[
    str, StringConstraints(pattern=r"^(InCluster|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$", max_length=63)
]


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


class BudgetAction(Wire):
    """What happens from a spent share of a limit on, until less is spent of it again."""

    at: Annotated[int, Field(ge=1, le=100)]
    """Spent share in percent, from 1 to 100."""

    action: Literal[
        "Notify",
        "BatchesOnSpot",
        "HoldBatches",
        "CapScaleUp",
        "NoNewServices",
        "Throttle",
        "CheaperTargets",
    ]
    """`Notify`: an Event. `HoldBatches`: no attempt of a batch runs. `CheaperTargets`: requests for
    a ModelRoute get the cheapest target alone that can take them. Of basis `Cost` alone:
    `BatchesOnSpot`: batches run on spot capacity alone, `CapScaleUp`: no replica beyond minReplicas
    is added, `NoNewServices`: new InferenceServices are refused. Of basis `Charge` alone:
    `Throttle`: what is left is spread over the rest of the window. Limits with `for` notify and
    throttle."""

    floor: Amount | None = None
    """With `Throttle`: what may be charged in an hour in any case, while the limit has it."""


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

    basis: BudgetBasis = "Cost"
    """What limits without a basis of their own count. `Cost`: the tenant's share of the node bill,
    by slices and time. `Charge`: what its requests through gateways are charged by PriceLists."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    """Currency as an ISO 4217 code; the pools that the tenant uses must have prices in it."""

    time_zone: TimeZoneName = "UTC"
    """IANA name of the time zone in which windows start, for example `Europe/Berlin`."""

    weight: Annotated[Amount, Field(ge=Decimal("0.01"), le=Decimal(1000))] = text_default("1")
    """Weight of the tenant, from `0.01` to `1000`, where devices are too few for all: new replicas
    get them in proportion to the weights. Namespaces without a budget have weight 1 together."""

    limits: Annotated[tuple[Limit, ...], Field(min_length=1, max_length=32)]
    """Spending limits; all of them apply. One request may match at most 12."""

    actions: Annotated[tuple[BudgetAction, ...], Field(max_length=16)] | None = None
    """What happens before a limit is spent; omitted, `Notify` at 50, 80 and 100 percent."""

    gpus: Annotated[Amount, Field(gt=0)] | None = None
    """Quota of GPUs that all replicas and batches of the tenant may hold at once, a slice as its
    billing weight: beyond it nothing is added, services of class `Interactive` come first, and
    minReplicas that run are never reduced. Omitted, as many as the limits pay."""

    storage: StorageSize = "16Ti"
    """Quota of the claims with model files and with answers of gates that the tenant may have at
    once, for example `2Ti`: beyond it no claim is created and none grows, and those that exist
    stay."""

    rate_limits: RateLimitsSpec = Field(default_factory=RateLimitsSpec)
    """Limits of all requests of the tenant through gateways; omitted, the gateway's defaults."""

    teams: Annotated[dict[TeamName, RateLimitsSpec], Field(max_length=64)] = Field(
        default_factory=dict
    )
    """Limits of teams within the tenant, by the name that keys and tokens carry."""

    allow_downgrade: bool = True
    """Whether other targets of a ModelRoute than the last may answer requests of the tenant."""

    data_residency: (
        Annotated[
            tuple[_Residency, ...],
            Field(min_length=1, max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Where requests of the tenant may be worked on besides the cluster: regions of ModelProviders,
    or `InCluster` alone for nowhere; omitted, anywhere."""

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
        *LIMIT_RULES,
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

    def basis_of(self, limit: Limit) -> BudgetBasis:
        """Return what a limit counts."""
        return limit.basis or self.basis

    def name_of(self, limit: Limit) -> str:
        """Return the name of a limit: its own, or the default."""
        return limit.name or self.content_of(limit).lower()

    def content_of(self, limit: Limit) -> str:
        """Return what a limit is for in one text, which two limits with the same sense share."""
        parts = self.basis_of(limit), limit.window, limit.tier, limit.for_ and limit.for_.text
        return "-".join(part for part in parts if part)

    @property
    def cost_limits(self) -> tuple[tuple[int, Limit], ...]:
        """Return the limits of basis Cost, with their places in `limits`."""
        return self._limits("Cost")

    @property
    def charge_limits(self) -> tuple[tuple[int, Limit], ...]:
        """Return the limits of basis Charge, with their places in `limits`."""
        return self._limits("Charge")

    def _limits(self, basis: BudgetBasis) -> tuple[tuple[int, Limit], ...]:
        listed = enumerate(self.limits)
        return tuple(each for each in listed if self.basis_of(each[1]) == basis)


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
    """Spend from `start` to `spend.asOf`, with what was used at outside providers."""

    outside: Amount | None = None
    """What of it was used at these; absent for none."""

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

    service: ServiceName | None = None
    """Its InferenceService, where a limit counts one alone."""


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


class ServiceSpendStatus(_BudgetStatusBase):
    """Spend of one service in a window that counts it alone."""

    window: WindowName
    """Window of the limit."""

    tier: Tier | None = None
    """Tier of the pools that count; absent, all of them."""

    service: ServiceName
    """The service."""

    start: datetime
    """Start of the window."""

    spent: Amount
    """Spend from `start` to `spend.asOf`."""

    incomplete: bool = False
    """Whether some earlier spend is unknown."""


class SpendStatus(_BudgetStatusBase):
    """Record of the spend, from which a restarted operator continues."""

    as_of: datetime
    """When the record was written: at least once a minute, and before any addition."""

    windows: Annotated[tuple[WindowStatus, ...], Field(max_length=16)] = ()
    """State of the current window of each limit of basis `Cost` without `for`."""

    services: (
        Annotated[tuple[ServiceSpendStatus, ...], Field(max_length=MAX_SERVICE_WINDOWS)] | None
    ) = None
    """Current windows of the other ones in which something is spent or unknown; of more than 1000
    those with the largest spend."""

    running: Annotated[tuple[RunningStatus, ...], Field(max_length=4000)] = ()
    """Replicas that were being charged; of more than 400 those that were bound last."""

    running_groups: Annotated[tuple[RunningGroupStatus, ...], Field(max_length=200)] = ()
    """The other replicas that were being charged, counted by pool and weight."""

    incomplete_windows: Annotated[tuple[LimitKey, ...], Field(max_length=16)] = ()
    """Windows in which some earlier spend is unknown."""


class BudgetOverride(_BudgetStatusBase):
    """Permission to add replicas and batches although the spend is unknown or not recorded."""

    until: AwareDatetime
    """When it ends."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Why it was given."""


class BudgetRaise(_BudgetStatusBase):
    """Raise of one limit until a time."""

    limit: Annotated[str, StringConstraints(min_length=1, max_length=320)]
    """Name of the limit."""

    by: Annotated[Amount, Field(gt=0)]
    """What is added to its amount, in `spec.currency`."""

    until: AwareDatetime
    """When it ends."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Why it was given."""


class AccountStatus(_BudgetStatusBase):
    """What one member spent of a limit that each has for itself."""

    member: str
    """The team, key, user, service or model."""

    spent: Amount
    """Charges of the window."""


class LimitStatus(_BudgetStatusBase):
    """Current state of one limit."""

    name: str
    """Name of the limit."""

    basis: BudgetBasis
    """What counts."""

    start: datetime
    """Start of the window."""

    end: datetime
    """End of the window, when the next one starts."""

    limit: Amount
    """Maximum spend in the window, with raises."""

    spent: Amount
    """Spend of the window as of the last record; where each member has the amount for itself, of
    the one nearest to it. Above `limit` where that was lowered."""

    lent: Amount | None = None
    """What gateways hold above it for requests; absent for none."""

    outside: Amount | None = None
    """What of `spent` was used at outside providers; absent for none."""

    members: int | None = None
    """How many are known, where each has the amount for itself."""

    nearest: Annotated[tuple[AccountStatus, ...], Field(max_length=5)] = ()
    """Those of them that are nearest to the limit."""

    reached: int = 0
    """Highest threshold that is reached, in percent."""

    actions: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    """Actions in effect, from `spec.actions`; `Refuse` once no request fits into what is left of
    a limit of basis `Charge`."""


class OutsideStatus(_BudgetStatusBase):
    """What of a limit of basis `Cost` is lent to gateways, for calls of outside providers."""

    window: WindowName
    """Window of the limit."""

    start: datetime
    """Start of the window."""

    amount: Amount
    """What gateways may borrow in the window, in steps of 2 % of the limit from the first request
    on. What is not used is given back once no request came for 5 minutes."""

    used: Amount
    """What of it was charged at the last record of the spend; this alone counts as spent."""

    generation: int
    """Rises when the amount changes, so that an old status lends nothing."""

    previous_amount: Amount | None = None
    """The amount before it was lowered: nothing else gets it before the gateways' account has the
    lower one. Absent otherwise."""


BudgetRaises = Annotated[tuple[BudgetRaise, ...], Field(max_length=32)]


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

    raises: BudgetRaises = ()
    """Raises of limits in effect, from the annotation `tessera.dev/budget-raises`."""

    limits: Annotated[tuple[LimitStatus, ...], Field(max_length=32)] = ()
    """State of each limit of `spec`, in its order."""

    outside: Annotated[tuple[OutsideStatus, ...], Field(max_length=4)] = ()
    """What is lent for calls of ModelProviders; gateways spend there no more than it says."""

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
