"""`ModelProvider`: an outside API whose models may be targets of ModelRoutes."""

from datetime import date, timedelta
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.meta import (
    MODEL_NAME,
    Conditions,
    DnsLabel,
    DnsSubdomain,
    Duration,
    UnitPrice,
    Wire,
    between,
    matching,
    name_rule,
    rule,
    rules_config,
    text_default,
)
from tessera.api.rate_limits import RateLimitsSpec

ProviderProtocol = Literal["OpenAIChat", "OpenAIResponses", "AnthropicMessages"]
KeyHeader = Literal["Authorization", "x-api-key", "api-key"]
OutputLimitField = Literal["max_tokens", "max_completion_tokens"]
# With the name of a model behind it and a slash between them a name as PriceLists have them.
ProviderName = Annotated[DnsLabel, StringConstraints(max_length=31)]
ProviderModelName = Annotated[
    str,
    matching(
        f"^{MODEL_NAME}$",
        "must be letters, digits and . _ : / @ + ~ -, as the provider calls the model",
    ),
    StringConstraints(max_length=96),
]
_SecretField = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
Region = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
]
DialectName = Annotated[
    str,
    matching(
        "^[a-z0-9]([-_.a-z0-9]*[a-z0-9])?$",
        "must be lower-case letters, digits and - _ . within, such as x-ai",
    ),
    StringConstraints(max_length=63),
]
_HOST = "[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?"
_Minutes = between(timedelta(milliseconds=100), timedelta(minutes=15))


class BilledTokens(Wire):
    """What the provider's bill says of tokens; each price is of a million."""

    input: UnitPrice
    """A million tokens of prompts."""

    cached_input: UnitPrice | None = None
    """A million tokens of prompts that the provider had in its cache; omitted, as `input`."""

    cache_write: UnitPrice | None = None
    """A million tokens of prompts that the provider writes into its cache, for 5 minutes where it
    has several durations; omitted, as `input`, and requests lose their `cache_control`."""

    long_cache_write: UnitPrice | None = None
    """A million tokens of prompts that it writes into its cache for an hour; omitted, as
    `cacheWrite`."""

    output: UnitPrice
    """A million tokens of answers."""

    reasoning: UnitPrice | None = None
    """A million tokens of answers that are reasoning; omitted, as `output`."""


class CostStep(BilledTokens):
    """Prices of all tokens of a request with a long prompt."""

    above_input_tokens: Annotated[int, Field(ge=1, le=100_000_000)]
    """The prices apply to requests with more tokens of the prompt than this, cached ones
    included."""


class ModelCost(BilledTokens):
    """What the provider's bill says of a model. A request reserves the most that it can cost."""

    per_request: UnitPrice = text_default("0")
    """A request, in addition to its tokens."""

    search: UnitPrice | None = None
    """A search of the web that the provider makes for an answer."""

    max_searches: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Most searches of a request, which each request reserves; set it with `search`."""

    steps: Annotated[tuple[CostStep, ...], Field(max_length=8)] = ()
    """Other prices of requests with long prompts, the shortest first. Of the steps whose
    `aboveInputTokens` a prompt exceeds, the last one applies to all tokens of the request."""

    observed_at: date | None = None
    """Day on which somebody last compared the prices with those of the provider."""

    model_config = rules_config(
        rule(
            "has(self.search) == has(self.maxSearches)",
            "spec.models[].cost needs both search and maxSearches, the most searches of a request, "
            "or neither",
        ),
        rule(
            "!has(self.steps) || (self.steps.map(s, s.aboveInputTokens).isSorted() && "
            "self.steps.all(s, self.steps.exists_one(t, t.aboveInputTokens == "
            "s.aboveInputTokens)))",
            "spec.models[].cost.steps needs ascending values of aboveInputTokens: sort the steps",
        ),
        rule(
            "!has(self.steps) || self.steps.all(s, (!has(self.cachedInput) || "
            "has(s.cachedInput)) && (!has(self.cacheWrite) || has(s.cacheWrite)) && "
            "(!has(self.longCacheWrite) || has(s.longCacheWrite)) && (!has(self.reasoning) || "
            "has(s.reasoning)))",
            "spec.models[].cost.steps[] needs each price of tokens that cost has: repeat those "
            "that do not change",
        ),
    )


class ProviderModel(Wire):
    """A model of the provider."""

    name: ProviderModelName
    """Name of the model as the provider calls it. PriceLists and limits name it
    `provider/model`, in lower case."""

    max_context_tokens: Annotated[int, Field(ge=16, le=100_000_000)]
    """Most tokens of a prompt and its answer together."""

    max_output_tokens: Annotated[int, Field(ge=1, le=100_000_000)]
    """Most tokens of an answer."""

    output_limit_field: OutputLimitField = "max_tokens"
    """Field that bounds an answer on the path of chats; other paths have one name for it."""

    tools: bool = True
    """Whether it calls tools; requests that offer some skip it otherwise."""

    media: bool = False
    """Whether it takes images and clips; requests that have some skip it otherwise."""

    reasoning: bool = False
    """Whether it takes an effort of reasoning, which is left out of requests otherwise."""

    cost: ModelCost
    """What the provider's bill says of it, in `spec.currency`."""


class ProviderKey(Wire):
    """Secret in the namespace of providers with the key of the provider."""

    name: DnsSubdomain
    """Name of the Secret, in the namespace of the chart's value `gateway.providers.namespace`."""

    key: _SecretField = "key"
    """Field of the Secret. A changed one holds at once, without a restart."""

    ca_key: _SecretField | None = None
    """Field of the same Secret with PEM certificates, at most 256 KiB, of the authorities that sign
    the certificate of the provider, or of a proxy with https. They are trusted in place of those of
    the system. Changed ones hold from the next connection on, without a restart."""


class ProviderTimeouts(Wire):
    """How long the provider may take."""

    connect: Annotated[Duration, between(timedelta(milliseconds=100), timedelta(minutes=1))] = (
        text_default("10s")
    )
    """Time to a connection."""

    first_byte: Annotated[Duration, _Minutes] = text_default("60s")
    """Time to the first byte of an answer."""

    gap: Annotated[Duration, _Minutes] = text_default("60s")
    """Time between two parts of a stream."""

    total: Annotated[Duration, between(timedelta(seconds=1), timedelta(hours=24))] = text_default(
        "15m"
    )
    """Time to the end of an answer."""


class ModelProviderSpec(Wire):
    """An outside API, who may use it, and what it costs."""

    base_url: Annotated[
        str,
        matching(
            f"^https://{_HOST}(/[A-Za-z0-9._~-]+)*$",
            "must be an https URL with the version, without user, query and slash at the end, such "
            "as https://api.example.com/v1",
        ),
        StringConstraints(max_length=253),
    ]
    """Base URL with the version, such as `https://api.example.com/v1`; the path of a request
    without `/v1` follows it."""

    protocols: Annotated[
        tuple[ProviderProtocol, ...],
        Field(min_length=1, max_length=3, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ]
    """What it speaks: `OpenAIChat` on `/chat/completions`, `OpenAIResponses` on `/responses`,
    `AnthropicMessages` on `/messages`. Nothing is translated: requests on another path skip it."""

    dialect: DialectName | None = None
    """Provider whose counts, costs and fields it has, such as `x-ai`; omitted, the one whose host
    `baseUrl` has. Without a known one the general rules apply alone."""

    key_header: KeyHeader = "Authorization"
    """Header with its key; in `Authorization` it stands after `Bearer`."""

    secret: ProviderKey
    """Secret with its key."""

    tenants: Annotated[
        tuple[DnsSubdomain, ...],
        Field(min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ]
    """TenantBudgets whose tenants may send requests to it, by targets of their routes and of
    routes that are shared with them."""

    region: Region | None = None
    """Where it works on requests, for `spec.dataResidency` of TenantBudgets; omitted, tenants that
    have any skip it."""

    proxy_url: (
        Annotated[
            str,
            matching(
                f"^https?://{_HOST}$",
                "must be a URL of a host and a port alone, such as http://proxy.example.com:3128",
            ),
            StringConstraints(max_length=253),
        ]
        | None
    ) = None
    """HTTP proxy on the way to it; proxies of the environment are not used."""

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "USD"
    """Currency of the costs, as an ISO 4217 code. Tenants with a limit of basis `Cost` in another
    one skip it."""

    max_concurrent_requests: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Most requests at a time, of all gateways; tenants share them by their weights."""

    rate_limits: RateLimitsSpec = Field(default_factory=RateLimitsSpec)
    """Limits of the requests of all tenants together. What a tenant needs that was refused is left
    to it, by its `weight`, by those who had more."""

    timeouts: ProviderTimeouts = Field(default_factory=ProviderTimeouts)
    """How long it may take."""

    models: Annotated[tuple[ProviderModel, ...], Field(min_length=1, max_length=64)]
    """Models of it that targets may name."""

    model_config = rules_config(
        rule(
            "self.models.all(a, self.models.exists_one(b, a.name.lowerAscii() == "
            "b.name.lowerAscii()))",
            "spec.models has two of the same name, in any case: keep one of them",
            ".models",
        ),
    )


class ModelProviderStatus(Wire):
    """What is known of the provider; written by the operator only."""

    model_config = ConfigDict(extra="ignore")

    observed_generation: int = 0
    """Generation of the spec that this status describes."""

    conditions: Conditions = ()
    """Condition Accepted: whether gateways may send requests to it."""


class ModelProvider(Wire):
    """An outside API whose models may be targets of ModelRoutes, behind the same keys and
    budgets."""

    spec: ModelProviderSpec
    """An outside API, who may use it, and what it costs."""

    status: ModelProviderStatus | None = None
    """What is known of the provider; written by the operator only."""

    model_config = rules_config(
        name_rule(
            "^[a-z0-9]([-a-z0-9]{0,29}[a-z0-9])?$",
            "metadata.name is also part of the names of its models: use at most 31 lower-case "
            "letters, digits and hyphens",
        )
    )
