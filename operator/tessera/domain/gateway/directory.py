"""What one gateway knows of the fleet: models, their replicas, keys and limits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tessera.api.inference_service import Wake
from tessera.api.key_record import KeyBudget, line_of
from tessera.api.model_files import ImageTokens
from tessera.api.model_provider import ModelProviderSpec, ProviderModel
from tessera.api.model_route import ModelRouteSpec
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.api.service_class import ServiceClass
from tessera.domain.charge.price_book import PriceListBook
from tessera.domain.charge.prices import OutsidePrice
from tessera.domain.charge.scopes import ChargeLimit, MemberKind
from tessera.domain.gateway.name_rights import NameRights
from tessera.domain.money import Money
from tessera.domain.perf.step import StepTime

NO_LIMITS = RateLimitsSpec()
# Header with which gates say of which variant a replica answers them.
VARIANT_HEADER = "x-tessera-variant"
_NO_GRANTS = NameRights()
_NO_PRICES = PriceListBook()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReplica:
    """One engine that answers requests of a model."""

    pod: Ref
    uid: str
    address: str
    """Host and port, for example `10.0.0.7:8000`."""
    ready_since: datetime | None
    """None while it is not ready."""
    leaving: bool = False
    """It is drained or terminates: it gets no new request."""
    engine: str = ""
    """Replicas of one model that have the same here go on with each other's streams."""
    variant: str = ""
    precision: str | None = None
    """Of its weights; None where the pool that it runs in is not known."""
    price_version: str | None = None
    """Pool, and digest of its prices, by which its time is charged."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    """Tokens of a prompt and its answer that its engine takes; None while that is not known."""
    step_time: StepTime | None = None
    """Predicted, times the ratio that was measured; None while the speed is unknown."""

    def takes(self, context_tokens: int) -> bool:
        """Return whether its engine takes a prompt and an answer of so many tokens together."""
        return self.max_model_len is None or context_tokens <= self.max_model_len


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedProvider:
    """A ModelProvider that gateways may send requests to; its key is known to `ProviderKeys`."""

    name: str
    spec: ModelProviderSpec
    weights: Mapping[str, float]
    """Of the tenants that may use it and exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideModel:
    """A model of an outside provider."""

    provider: OfferedProvider
    model: ProviderModel
    cost: OutsidePrice
    """What the provider's bill says; its `price_list` is the provider and a digest of the costs."""

    @property
    def name(self) -> str:
        """Return how records name it: `openai/gpt-5`."""
        return f"{self.provider.name}/{self.model.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedModel:
    """A model that the gateway offers: one InferenceService, a ModelRoute over several, or a model
    of an outside provider."""

    service: Ref
    uid: str
    created: int = 0
    """Unix time in seconds."""
    names: tuple[str, ...]
    """`model` of a request: the served name first, then the aliases."""
    adapters: tuple[str, ...] = ()
    tenant: str | None
    """Tenant of its namespace, who pays for its nodes."""
    tenants: frozenset[str] = frozenset()
    """Other tenants that its owner lets use it, by the names that it may offer to them."""
    public: bool = False
    """The same of every tenant."""
    require_charge: bool = False
    """Of other tenants only those with a limit of basis Charge may use it."""
    shared_prefix_cache: bool = False
    """Tenants find each other's prompts in the cache of its engines."""
    moves_streams: bool = False
    """Streams of a replica that leaves are continued on another one."""
    media_domains: tuple[str, ...] = ()
    """Hosts from which its engines fetch images and clips."""
    image: ImageTokens | None = None
    """What an image takes; None while the files of the model do not say it."""
    embedding_width: int | None = None
    """Numbers of an embedding; None while it is not known, and of a model that makes none."""
    service_class: ServiceClass = "Interactive"
    ttft_seconds: float = 1.0
    """Promised 95th percentile of the time to the first token."""
    itl_seconds: float = 0.033
    """Promised 95th percentile of the time between two tokens."""
    max_model_len: int | None = None
    """The longest of its ready replicas, or of those that it will have."""
    paths: tuple[str, ...] = ()
    """Paths on which its engines use the model; empty while the model is not known."""
    generates: bool = True
    """False of a pooling model, which generates no tokens."""
    replicas: tuple[EngineReplica, ...] = ()
    is_listed: bool = True
    """False of one whose spec is not accepted and that has no replica: it answers no request."""
    may_sleep: bool = False
    """`minReplicas` is 0: requests are held while a replica starts."""
    is_asleep: bool = False
    """No replica is wanted: the next request that waits starts one."""
    unfunded_by: str | None = None
    """Who grants it no replica, such as `TenantBudget/team-a`, so that no request starts one."""
    wake: Wake = "OwnTenant"
    """Whose requests start the first replica."""
    stopped: bool = False
    """`spec.replicas` is 0: no request starts a replica."""
    limits: RateLimitsSpec = NO_LIMITS
    token_cost: Money | None = None
    """What a million tokens of answers cost on its hardware, as its status says."""
    route: ModelRouteSpec | None = None
    """Of a ModelRoute, whose name `service` has then: its targets answer."""
    outside: OutsideModel | None = None
    """Of a model of a provider, which has no replica; `service` names no service then, and is the
    same for all models of the provider, whose `limits` they share."""

    def may_wake(self, tenant: str) -> bool:
        """Return whether requests of a tenant that may use the model start its first replica."""
        return self.wake == "All" or self.tenant == tenant

    @property
    def is_tried(self) -> bool:
        """Return whether it is a changed version, which gates alone ask."""
        return self.service != self.service.base

    @property
    def all_names(self) -> tuple[str, ...]:
        """Return all that requests may name it by, with its adapters: nothing while it is tried."""
        return () if self.is_tried else (*self.names, *self.adapters)

    @property
    def is_shared(self) -> bool:
        """Return whether another tenant than its own may use it."""
        return self.public or bool(self.tenants - {self.tenant})


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is stored: never the key itself, but its SHA-256."""

    name: str
    """Of its record; a rotation gives another one to the old key."""
    digest: str
    """SHA-256 of the key, in lower-case hexadecimal digits."""
    tenant: str
    team: str | None = None
    models: tuple[str, ...] = ()
    """Names of the models that it may use; empty means all that its tenant may use."""
    services: frozenset[Ref] = frozenset()
    """The only services that it may use, by whichever name; empty means all."""
    expires: datetime | None = None
    limits: RateLimitsSpec | None = None
    """None without any of its own."""
    budget: KeyBudget | None = None
    """What its requests may be charged, besides the limits of the tenant."""
    sheddable: bool = False
    """All its requests are refused first where there is no room."""
    allow_downgrade: bool = True
    """Of a route, another target than the last may answer its requests."""

    @property
    def line(self) -> str:
        """Return the name that it has, or had before a rotation: limits and sums go by that."""
        return line_of(self.name, self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who sends a request."""

    tenant: str
    team: str | None = None
    user: str | None = None
    key: str | None = None
    """Line of the key, `ci` of a former `ci.9f86d081` too; None for a token of a ServiceAccount or
    of OIDC."""
    models: tuple[str, ...] = ()
    services: frozenset[Ref] = frozenset()
    limits: RateLimitsSpec | None = None
    """Of the key; None without any."""
    budget: KeyBudget | None = None
    """Of the key."""
    sheddable: bool = False
    """Of the key."""
    evaluates: str | None = None
    """Namespace of whose services its gates ask versions, by names that no other sender may use,
    and nothing else; None for any sender but a Job of gates."""
    allow_downgrade: bool = True
    """Of the key."""
    is_lasting: bool = field(default=False, compare=False)
    """It holds as long as its directory: it is that of a key that does not expire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """A TenantBudget, as far as requests need it."""

    name: str
    namespaces: tuple[str, ...]
    weight: float = 1.0
    limits: RateLimitsSpec = NO_LIMITS
    teams: Mapping[str, RateLimitsSpec] = field(default_factory=dict)
    allow_downgrade: bool = True
    """Of a route, another target than the last may answer its requests."""
    cheaper_targets: bool = False
    """Of a route, the cheapest target alone that can take them gets its requests: so much is spent
    of a limit."""
    currency: str = "USD"
    """Of its charges."""
    time_zone: str = "UTC"
    """In which windows of limits begin."""
    generation: int = 0
    """Of the budget, higher for one that was created again."""
    charge_limits: tuple[ChargeLimit, ...] = ()
    """Those of basis Charge."""
    residency: frozenset[str] | None = None
    """Regions of providers that its requests may go to; None for all."""
    outside: tuple[ChargeLimit, ...] = ()
    """Of limits of basis Cost, what the operator lends for requests to providers in the window of
    now. Their names are `outside Month`, which no limit has."""

    def is_charged(self, model: OfferedModel) -> bool:
        """Say whether a limit of basis Charge holds for requests for a model, or for some."""
        members = {
            MemberKind.SERVICE: {str(model.service.base)},
            MemberKind.MODEL: {name.lower() for name in (*model.names[:1], *model.adapters)},
        }
        return any(
            limit.member is None or limit.kind not in members or limit.member in members[limit.kind]
            for limit in self.charge_limits
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """All that requests are judged by; a new value replaces the last one."""

    models: tuple[OfferedModel, ...] = ()
    """The oldest service first."""
    outside: Mapping[tuple[str, str], OfferedModel] = field(default_factory=dict)
    """By provider and model: targets of routes alone, which no name of a request resolves to."""
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict)
    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    """By digest."""
    revoked_keys: Mapping[str, ApiKey] = field(default_factory=dict)
    """By digest: the last ones that were removed, so that a refusal of one can be attributed."""
    tenantless_keys: Mapping[str, ApiKey] = field(default_factory=dict)
    """By digest: keys of tenants that do not exist, which are refused."""
    default_limits: RateLimitsSpec = NO_LIMITS
    """Of every tenant that has none of its own."""
    name_rights: NameRights = _NO_GRANTS
    prices: PriceListBook = _NO_PRICES

    def moved_replicas(self) -> frozenset[str]:
        """Return the UIDs of the replicas that leave and whose streams are moved."""
        moving = (model for model in self.models if model.moves_streams)
        return frozenset(
            replica.uid for model in moving for replica in model.replicas if replica.leaving
        )


@dataclass(frozen=True, slots=True)
class ModelChanges:
    """What differs between two directories; a model that changed is in both."""

    old: Sequence[OfferedModel]
    """As the first directory has them."""
    new: Sequence[OfferedModel]

    @property
    def removed(self) -> Sequence[OfferedModel]:
        """Return the models that the second directory does not have."""
        uids = {model.uid for model in self.new}
        return [model for model in self.old if model.uid not in uids]

    @property
    def removed_replicas(self) -> frozenset[str]:
        """Return the UIDs of the replicas that the second directory does not have."""
        old, new = (
            {replica.uid for model in models for replica in model.replicas}
            for models in (self.old, self.new)
        )
        return frozenset(old - new)


def model_changes(before: Iterable[OfferedModel], after: Iterable[OfferedModel]) -> ModelChanges:
    """Return the models that left, came or changed; most of those that did not are the same."""
    old = {model.uid: model for model in before}
    new = []
    for model in after:
        known = old.get(model.uid)
        if known is model or known == model:
            del old[model.uid]
        else:
            new.append(model)
    return ModelChanges(tuple(old.values()), new)
