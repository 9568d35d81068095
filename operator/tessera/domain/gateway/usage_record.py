"""The record of what a request used, in which each field says what it is.

Tables, sums, groups of reports and statements, bounds, files, corrections, and the fields of logs
and spans follow from what the fields say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum, StrEnum, auto
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from tessera.domain.observed.drafts import DraftCounts


class RecordDimension(StrEnum):
    """What the rows of a report tell apart, as `--by` names it."""

    TENANT = "tenant"
    TEAM = "team"
    USER = "user"
    KEY = "key"
    SERVICE = "service"
    MODEL = "model"
    ROUTE = "route"
    TARGET = "target"
    PROVIDER = "provider"
    TAG = "tag"
    """All tags of a request, `name=value` joined by commas."""
    VARIANT = "variant"
    PRICE_VERSION = "priceVersion"
    """Pool of the replica, and digest of that pool's prices."""
    REPLICA = "replica"
    STREAM = "stream"
    """`true` of requests that asked for a stream."""
    PATH = "path"
    PHASE = "phase"
    REASON = "reason"
    SERVICE_CLASS = "class"
    PRICE_LIST = "priceList"
    OWNER = "owner"
    FLAG = "flag"
    """Why a row of a statement is not simply what requests of its time were charged."""


class NumberRange(Enum):
    """What a number can be; a larger one is cut, since one refused row would hold up all others."""

    COUNT = auto()
    """From 0 to 2^31 - 1."""
    TOKENS = auto()
    """The same for each request of a sum."""
    TIME = auto()
    """Nanoseconds from 0 to 2^63 - 1."""
    MONEY = auto()
    """Nano-units, from -2^53 to 2^53."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """Tells records apart: those that agree in all dimensions of a sum are added up."""

    by: RecordDimension | None = None
    """Its name in reports; None where they do not tell it apart."""
    in_usage: bool = True
    """Whether reports of usage take it."""
    in_sums: bool = True
    """Whether sums that stand for records tell it apart."""
    is_chosen: bool = False
    """Whether clients choose it, so that such a sum tells few of its values apart."""
    hashed: int | None = None
    """Its place among those by which the ids of hourly sums are hashed, which never changes; None
    where statements do not tell it apart."""
    folds: bool = True
    """Whether hourly sums give it up where a tenant has too many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Is added up."""

    bound: NumberRange
    in_statements: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How a field stands in its table, where that does not follow from its type."""

    column: str = ""
    default: str | None = None
    """Of the server, for gateways that do not know the column."""
    bound: NumberRange | None = None
    is_small: bool = False
    """Whether 32 bits hold it."""


@dataclass(frozen=True, slots=True)
class NotStored:
    """A field that neither tables nor sums have."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The names of a field in the access log and in spans; empty where it is in none."""

    log: str = ""
    span: str = ""
    beside: str = ""
    """The field without which it does not say anything."""


NOT_STORED, UNSEEN = NotStored(), Seen()


class Phase(StrEnum):
    """How a request ended."""

    COMPLETED = "Completed"
    REFUSED = "Refused"
    """Before it reached an engine."""
    ABORTED = "Aborted"
    """The client went away."""
    FAILED = "Failed"
    """The engine failed, or its answer was not one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLatency:
    """How a stream kept the objectives that its service had when it came; it is not stored."""

    ttft_target_ns: int
    itl_target_ns: int
    gaps: int = 0
    """Tokens after the first; of several choices at once none are counted."""
    late_gaps: int = 0
    """Those that came later after the one before than the target."""


# Nothing changes it; to make a frozen one of so many fields takes three times as long, and each
# request makes several.
@dataclass(slots=True, kw_only=True)
class UsageRecord:
    """What one request used, or several together: one row of the store.

    It has neither prompts nor answers.
    """

    record_id: Annotated[str, Seen("recordId")]
    """Made by the gateway and never used again: a record that is stored twice counts once."""
    request_id: Annotated[str, Seen("requestId", "tessera.request_id")]
    """`x-request-id`, which a client may choose and repeat."""
    started_at_ns: Annotated[int, Stored(bound=NumberRange.TIME)]
    """Unix time in nanoseconds; the months of a bill are cut by it."""
    tenant: Annotated[str, Dimension(by=RecordDimension.TENANT, hashed=0, folds=False)]
    team: Annotated[str | None, Dimension(by=RecordDimension.TEAM, hashed=1)] = None
    user: Annotated[
        str | None,
        Dimension(by=RecordDimension.USER, hashed=3, is_chosen=True),
        Seen("user"),
    ] = None
    key: Annotated[str | None, Dimension(by=RecordDimension.KEY, hashed=2)] = None
    service: Annotated[str, Dimension(by=RecordDimension.SERVICE, hashed=4)] = ""
    """Namespace and name of the InferenceService, `team-a/chat`; empty while it is not known."""
    model: Annotated[
        str,
        Dimension(by=RecordDimension.MODEL, hashed=5),
        Seen("model", "gen_ai.request.model"),
    ] = ""
    """The name that the client asked for."""
    variant: Annotated[str | None, Dimension(by=RecordDimension.VARIANT), UNSEEN] = None
    replica: Annotated[str | None, Dimension(by=RecordDimension.REPLICA, in_sums=False)] = None
    path: Annotated[
        str,
        Dimension(by=RecordDimension.PATH),
        Stored(column="route"),
        Seen("path", "http.route"),
    ]
    """Path of the request, for example `/v1/chat/completions`."""
    phase: Annotated[Phase, Dimension(by=RecordDimension.PHASE), Seen("phase")]
    status: Annotated[
        int,
        Stored(bound=NumberRange.COUNT, is_small=True),
        Seen("status", "http.response.status_code"),
    ]
    reason: Annotated[str, Dimension(by=RecordDimension.REASON)]
    """Why it was refused or failed, and how its replica was chosen otherwise."""
    stream: Annotated[bool, Dimension(by=RecordDimension.STREAM), Seen("stream")] = False
    input_tokens: Annotated[
        int,
        Measure(bound=NumberRange.TOKENS),
        Seen("inputTokens", "gen_ai.usage.input_tokens"),
    ] = 0
    cached_tokens: Annotated[
        int,
        Measure(bound=NumberRange.TOKENS),
        Seen("cachedTokens", "gen_ai.usage.cache_read.input_tokens"),
    ] = 0
    predicted_cached_tokens: Annotated[
        int, NOT_STORED, Seen("predictedCachedTokens", "tessera.predicted_cached_tokens")
    ] = 0
    """What the record of its replica promised of `cached_tokens`; it is not stored."""
    uncached_prefix_tokens: Annotated[int, NOT_STORED, Seen("uncachedPrefixTokens")] = 0
    """Those that a replica of the service had, by the records, and its engine computed again; they
    are not stored."""
    output_tokens: Annotated[
        int,
        Measure(bound=NumberRange.TOKENS),
        Seen("outputTokens", "gen_ai.usage.output_tokens"),
    ] = 0
    reasoning_tokens: Annotated[int, Measure(bound=NumberRange.TOKENS), Seen("reasoningTokens")] = 0
    recomputed_tokens: Annotated[int, NOT_STORED] = 0
    """Those that engines computed again since others failed: in no other count, and not stored."""
    estimated: Annotated[bool, Dimension(), Seen("estimated")] = False
    """Tokens were counted by the gateway, since the engine reported none."""
    queue_ns: Annotated[
        int, Measure(bound=NumberRange.TIME, in_statements=False), Seen("queueMs")
    ] = 0
    """Nanoseconds in the gateway before it reached an engine."""
    ttft_ns: Annotated[int | None, Stored(bound=NumberRange.TIME), Seen("ttftMs")] = None
    """Nanoseconds from its arrival to the first token; None without one."""
    total_ns: Annotated[int, Measure(bound=NumberRange.TIME, in_statements=False), Seen("totalMs")]
    tags: Annotated[str, Dimension(by=RecordDimension.TAG, is_chosen=True), UNSEEN] = ""
    """`name=value` pairs of the trusted header, joined by commas."""
    price_version: Annotated[str | None, Dimension(by=RecordDimension.PRICE_VERSION), UNSEEN] = None
    """Pool of its replica, and digest of that pool's prices: `a100@0123456789ab`."""
    trace_parent: Annotated[str, NOT_STORED] = ""
    """`traceparent` of the request, under which its spans stand; it is not stored."""
    client_address: Annotated[str, NOT_STORED, Seen("clientAddress")] = ""
    """Of the connection: a proxy's where there is one; it is logged and not stored."""
    resumed: Annotated[int, NOT_STORED, Seen("resumed", "tessera.resumed")] = 0
    """How often its stream went on at another replica; it is not stored, as is the next."""
    unchecked_joints: Annotated[int, NOT_STORED] = 0
    """Those of them where the next engine did not say how it reads what came before."""
    latency: Annotated[StreamLatency | None, NOT_STORED] = None
    """Of a stream alone: the first token of another answer comes with its last."""
    drafts: Annotated[DraftCounts | None, NOT_STORED] = None
    """Of an engine that speculates and reports it; it is not stored."""
    requests: Annotated[
        int,
        Measure(bound=NumberRange.COUNT),
        Stored(default="1"),
        Seen("requests", beside="model_route"),
    ] = 1
    """Of a sum: the requests that it counts, which began later than `started_at_ns`; 0 of a call
    that did not answer its request, which another record counts."""
    charge_nanos: Annotated[int | None, Measure(bound=NumberRange.MONEY)] = None
    """By the price list; None where no price is known."""
    currency: Annotated[str | None, Dimension(hashed=9, folds=False), UNSEEN] = None
    """Of `charge_nanos`."""
    price_list: Annotated[
        str | None,
        Dimension(by=RecordDimension.PRICE_LIST, in_usage=False, hashed=7, folds=False),
        UNSEEN,
    ] = None
    """`RequestPrice.price_list`, from the admission on."""
    charges: Annotated[tuple[tuple[str, int, int], ...], Stored(default="[]")] = ()
    """Accounts that pay: key of the scope, start of the window in Unix seconds, nano-units.

    With the key OTHER_MONTH, what counts in statements of a month that begins then.
    """
    owner: Annotated[
        str | None,
        Dimension(by=RecordDimension.OWNER, in_usage=False, hashed=8, folds=False),
        UNSEEN,
    ] = None
    """Tenant of the service."""
    service_class: Annotated[
        str,
        Dimension(by=RecordDimension.SERVICE_CLASS, in_usage=False, hashed=6, folds=False),
        Stored(default=""),
        UNSEEN,
    ] = ""
    waste_nanos: Annotated[
        int, Measure(bound=NumberRange.MONEY, in_statements=False), Stored(default="0")
    ] = 0
    """At its price, what engines computed for it and its sender does not pay."""
    model_route: Annotated[
        str,
        Dimension(by=RecordDimension.ROUTE, hashed=10),
        Stored(default=""),
        Seen("modelRoute", "tessera.route", beside="model_route"),
    ] = ""
    """Namespace and name of the ModelRoute that it came to, `team-a/assistant`; empty without."""
    target: Annotated[
        str,
        Dimension(by=RecordDimension.TARGET, hashed=11),
        Stored(default=""),
        Seen("target", "tessera.target", beside="model_route"),
    ] = ""
    """Name of the target of the route that was asked."""
    provider: Annotated[
        str,
        Dimension(by=RecordDimension.PROVIDER, hashed=12, folds=False),
        Stored(default=""),
        Seen("provider", beside="provider"),
    ] = ""
    """ModelProvider and its model, `openai/gpt-5`; empty of a service."""
    cost_nanos: Annotated[int, Measure(bound=NumberRange.MONEY), Stored(default="0")] = 0
    """What the provider bills; 0 of a service, whose nodes cost."""
    cost_currency: Annotated[str | None, Dimension(), UNSEEN] = None
    """Of `cost_nanos`."""
    target_reason: Annotated[
        str, NOT_STORED, Seen("targetReason", "tessera.target_reason", beside="model_route")
    ] = ""
    """How the target was chosen, or `Fallback`; it is not stored, as is the next."""
    skipped_targets: Annotated[
        str, NOT_STORED, Seen("skippedTargets", "tessera.skipped_targets", beside="model_route")
    ] = ""
    """Targets that gave no answer before, as `name=reason` pairs joined by commas."""


def gateway_of(record_id: str) -> str:
    """Return the name of the gateway process that made a record."""
    return record_id.rpartition("-")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordField:
    """What a field of a record says of itself."""

    name: str
    type: type
    """Without None."""
    is_optional: bool
    default: Any
    """MISSING where it has none."""
    dimension: Dimension | None
    measure: Measure | None
    stored: Stored
    is_stored: bool
    seen: Seen

    @property
    def bound(self) -> NumberRange | None:
        """Return what its number can be; None where it is none."""
        return self.measure.bound if self.measure is not None else self.stored.bound


def _record_fields() -> tuple[RecordField, ...]:
    hints = get_type_hints(UsageRecord, include_extras=True)
    return tuple(
        _record_field(field.name, hints[field.name], field.default) for field in fields(UsageRecord)
    )


def _record_field(name: str, hint: Any, default: Any) -> RecordField:
    kind, *said = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    types = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    by_type = {type(word): word for word in said}
    dimension = by_type.get(Dimension)
    first, *others = name.split("_")
    camel = first + "".join(map(str.title, others))
    shown = Seen(camel, f"tessera.{name}") if dimension is not None else UNSEEN
    return RecordField(
        name=name,
        type=get_origin(types[0]) or types[0],
        is_optional=len(types) > 1,
        default=default,
        dimension=dimension,
        measure=by_type.get(Measure),
        stored=by_type.get(Stored, Stored()),
        is_stored=NotStored not in by_type,
        seen=by_type.get(Seen, shown),
    )


FIELDS = _record_fields()
BY_NAME = {field.name: field for field in FIELDS}
STORED = tuple(field for field in FIELDS if field.is_stored)
_DIMENSIONS = {field.name: field.dimension for field in STORED if field.dimension is not None}
# Fields that tell apart: the rows of sums that stand for records, and those of hourly sums in the
# order in which the ids of these are hashed.
SUMMED_BY = tuple(name for name, said in _DIMENSIONS.items() if said.in_sums and not said.is_chosen)
CHOSEN = tuple(name for name, said in _DIMENSIONS.items() if said.is_chosen)
_PLACES = ((said.hashed, name) for name, said in _DIMENSIONS.items() if said.hashed is not None)
HASHED = tuple(name for _, name in sorted(_PLACES))


def _columns(columns: Mapping[RecordDimension | None, str]) -> Mapping[RecordDimension, str]:
    return {by: columns[by] for by in RecordDimension if by in columns}


# Columns by dimension, of reports of usage and of statements, of which two are computed.
USAGE_COLUMNS = _columns({said.by: name for name, said in _DIMENSIONS.items() if said.in_usage})
CHARGE_COLUMNS = _columns(
    {_DIMENSIONS[name].by: name for name in HASHED}
    | {RecordDimension.TAG: "tag", RecordDimension.FLAG: "flag"}
)
MEASURES = tuple(field.name for field in STORED if field.measure is not None)
# What hourly sums count.
COUNTS = tuple(
    field.name for field in STORED if field.measure is not None and field.measure.in_statements
)
