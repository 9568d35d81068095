"""`ModelRoute`: one name over several targets, the cheapest first."""

import json
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from tessera.api.inference_service import ServedName
from tessera.api.meta import (
    Conditions,
    DnsLabel,
    DnsSubdomain,
    Duration,
    Wire,
    between,
    rule,
    rules_config,
)
from tessera.api.model_provider import ProviderModelName, ProviderName
from tessera.api.ref import Ref

# As RouteTarget.target_name says it, in CEL.
_NAME = (
    "(has({0}.name) ? {0}.name : has({0}.service) ? "
    "{0}.service.substring({0}.service.indexOf('/') + 1) : '')"
).format
MAX_TARGETS = 8
MAX_SCHEMA_BYTES = 16_384
MAX_SCHEMA_DEPTH = 64
MAX_SCORE = 5
# More characters of a message are not read, so that no message takes long to judge.
MAX_RULE_NUMBER = 100_000
# Calls of one request, each perhaps repeated once.
MAX_CALLS = 3
RouteSelection = Literal["Weights", "Rules"]
ReasoningEffort = Literal["Minimal", "Low", "Medium", "High"]
FallbackKind = Literal[
    "Context", "RateLimited", "ServerError", "Timeout", "Overloaded", "ContentFilter"
]
_ServiceName = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/)?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        max_length=127,
    ),
]
_Word = Annotated[str, StringConstraints(min_length=2, max_length=64)]
_Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,64}$", max_length=64)]


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuse what would make each request large, or what readers of JSON do not take."""
    values: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH):
        containers = [each for each in values if isinstance(each, dict | list)]
        values = [
            value
            for each in containers
            for value in (each.values() if isinstance(each, dict) else each)
        ]
    if values:
        raise ValueError(f"nests deeper than {MAX_SCHEMA_DEPTH} levels")
    if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise ValueError("has more than 16 KiB of JSON")
    return schema


class RouteCondition(Wire):
    """What a request has to be like; all that is given has to hold. It reads what every turn of a
    conversation carries: the system prompt, the first message of the user, and the tools."""

    max_characters: Annotated[int, Field(ge=0, le=MAX_RULE_NUMBER)] | None = None
    """Most characters of the first message of the user."""

    max_words: Annotated[int, Field(ge=0, le=MAX_RULE_NUMBER)] | None = None
    """Most words of it."""

    max_question_marks: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Most question marks in it."""

    max_score: Annotated[int, Field(ge=1, le=MAX_SCORE)] | None = None
    """Highest score of it by `spec.score`, from 1 for a simple request to 5."""

    tags: Annotated[dict[_Tag, _Tag], Field(max_length=8)] = Field(default_factory=dict)
    """Values of the header `x-tessera-tags`."""

    tools: bool | None = None
    """Whether it offers tools."""

    media: bool | None = None
    """Whether it has images or clips in its first message."""


class RouteScore(Wire):
    """How requests are scored from 1: each signal that a request shows adds a point."""

    long_from: Annotated[int, Field(ge=1, le=MAX_RULE_NUMBER)] = 301
    """Characters of the first message of the user from which on it is long."""

    questions_from: Annotated[int, Field(ge=1, le=1000)] = 3
    """Question marks from which on it has many."""

    words: Annotated[tuple[_Word, ...], Field(max_length=64)] = (
        "analyze",
        "compare",
        "explain why",
        "step by step",
        "write code",
    )
    """Words of demanding requests, in any case; each that occurs is a signal, as it is written."""


class TargetSettings(Wire):
    """What a target changes in the requests that it gets, so that two may be one service."""

    max_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Most tokens of an answer; a lower number of the request holds."""

    reasoning_effort: ReasoningEffort | None = None
    """How long the model reasons, whatever the request says."""

    thinking: bool | None = None
    """Whether a model that can do both thinks before it answers."""

    response_schema: (
        Annotated[
            dict[str, Any],
            Field(max_length=64, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}),
            AfterValidator(_bounded),
        ]
        | None
    ) = None
    """JSON schema of the answers, in place of one in the request; at most 16 KiB."""


class TargetTimeouts(Wire):
    """How long a target may take before the next one is asked; nothing is repeated after the first
    byte of an answer."""

    first_token: (
        Annotated[Duration, between(timedelta(milliseconds=100), timedelta(minutes=15))] | None
    ) = None
    """Time to the first token, or to the whole of an answer that is no stream."""

    total: Annotated[Duration, between(timedelta(seconds=1), timedelta(hours=24))] | None = None
    """Time to the end of the answer; a stream ends with an error then."""


class ProviderTarget(Wire):
    """A model of an outside provider."""

    name: ProviderName
    """ModelProvider; it has to list the tenant of who asks."""

    model: ProviderModelName
    """Model, as `spec.models` of the provider names it."""


class RouteTarget(Wire):
    """A service, or a model of an outside provider, that may answer."""

    name: DnsLabel | None = None
    """Name of the target in headers, records and metrics; omitted, that of its service."""

    service: _ServiceName | None = None
    """InferenceService, `name` or `namespace/name`: it has to be of the tenant, shared with it, or
    public. Who asks needs the right to use it as well."""

    provider: ProviderTarget | None = None
    """Model of an outside provider, in place of a service; the target needs a name then. Keys for
    some services alone do not use it."""

    weight: Annotated[int, Field(ge=0, le=1000)] = 1
    """Share of the conversations that it gets, in proportion to those of the others, with
    `select: Weights`."""

    when: RouteCondition | None = None
    """Which requests it gets with `select: Rules`; omitted, all. The last target has none."""

    set: TargetSettings = Field(default_factory=TargetSettings)
    """What is changed in its requests."""

    timeouts: TargetTimeouts = Field(default_factory=TargetTimeouts)
    """How long it may take."""

    model_config = rules_config(
        rule(
            "has(self.service) != has(self.provider)",
            "spec.targets[] needs either service or provider",
        ),
        rule(
            "!has(self.provider) || has(self.name)",
            "spec.targets[] with a provider needs a name",
        ),
    )

    @property
    def target_name(self) -> str:
        """Return how it is named."""
        return self.name or (self.service or "").rpartition("/")[2]

    def service_ref(self, namespace: str) -> Ref | None:
        """Return its service, of a route in a namespace; None for a model of a provider."""
        if self.service is None:
            return None
        own, _, name = self.service.rpartition("/")
        return Ref(own or namespace, name)


class RouteAccess(Wire):
    """Who may use the route, in addition to the right to use its targets."""

    tenants: Annotated[
        tuple[DnsSubdomain, ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """TenantBudgets whose tenants may use it, besides that of its namespace."""

    public: bool = False
    """Whether every tenant may use it."""


class ModelRouteSpec(Wire):
    """One name over several targets."""

    served_name: ServedName | None = None
    """`model` of the requests; omitted, the name of the route."""

    access: RouteAccess = Field(default_factory=RouteAccess)
    """Who may use the route."""

    select: RouteSelection = "Rules"
    """`Rules`: the first target whose `when` holds. `Weights`: one by chance, the same for all
    requests of a conversation."""

    score: RouteScore = Field(default_factory=RouteScore)
    """How requests are scored for `when.maxScore`."""

    fallback: Annotated[
        tuple[FallbackKind, ...],
        Field(max_length=6, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ("Context", "RateLimited", "ServerError", "Timeout", "Overloaded", "ContentFilter")
    """Why the next target is asked where one gives no answer: too little context, a limit of
    requests or tokens, no replica or a failure, `timeouts`, a queue that would miss `spec.slo`, or
    a refusal by a content filter of a provider. A request asks at most three; after the first byte
    nothing else answers."""

    targets: Annotated[tuple[RouteTarget, ...], Field(min_length=1, max_length=MAX_TARGETS)]
    """Targets, the cheapest first. Where the chosen one gives no answer, those after it follow in
    order, then those before it, the nearest first."""

    model_config = rules_config(
        rule(
            "!has(self.targets[self.targets.size() - 1].when)",
            "spec.targets: the last one answers what no other takes, so it has no when",
            ".targets",
        ),
        rule(
            f"self.targets.all(a, self.targets.exists_one(b, {_NAME('a')} == {_NAME('b')}))",
            "spec.targets: two have the same name; give each a name of its own",
            ".targets",
        ),
        rule(
            "!has(self.select) || self.select != 'Weights' || "
            "self.targets.exists(t, !has(t.weight) || t.weight > 0)",
            "spec.targets: with select Weights one needs a weight above 0",
            ".targets",
        ),
    )


class _RouteStatusBase(Wire):
    """Base of the parts of the status, which ignores fields that a newer operator added."""

    model_config = ConfigDict(extra="ignore")


class TargetStatus(_RouteStatusBase):
    """State of one target."""

    name: str
    """Name of the target."""

    service: str = ""
    """Namespace and name of its InferenceService."""

    provider: str = ""
    """ModelProvider and model, joined by a slash, in place of a service."""

    reason: str
    """`Available`, or why it is skipped."""


class ModelRouteStatus(_RouteStatusBase):
    """What is known of a route; written by the operator only."""

    observed_generation: int = 0
    """Generation of the spec that this status describes."""

    summary: str = ""
    """Targets that can answer, of all, with their names: `2/3: small, large`."""

    conditions: Conditions = ()
    """Condition Accepted: whether every target can get requests."""

    targets: Annotated[tuple[TargetStatus, ...], Field(max_length=MAX_TARGETS)] = ()
    """Targets, in the order of the spec."""


class ModelRoute(Wire):
    """One name over several targets, so that the cheapest that can answers, and another where it
    gives no answer."""

    spec: ModelRouteSpec
    """One name over several targets."""

    status: ModelRouteStatus | None = None
    """What is known of the route; written by the operator only."""
