"""The record of what a request used."""

from dataclasses import dataclass
from enum import StrEnum

from tessera.domain.observed.drafts import DraftCounts


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

    record_id: str
    """Made by the gateway and never used again: a record that is stored twice counts once."""
    request_id: str
    """`x-request-id`, which a client may choose and repeat."""
    started_at_ns: int
    """Unix time in nanoseconds; the months of a bill are cut by it."""
    tenant: str
    team: str | None = None
    user: str | None = None
    key: str | None = None
    service: str = ""
    """Namespace and name of the InferenceService, `team-a/chat`; empty while it is not known."""
    model: str = ""
    """The name that the client asked for."""
    variant: str | None = None
    replica: str | None = None
    path: str
    """Path of the request, for example `/v1/chat/completions`."""
    phase: Phase
    status: int
    reason: str
    """Why it was refused or failed, and how its replica was chosen otherwise."""
    stream: bool = False
    input_tokens: int = 0
    cached_tokens: int = 0
    predicted_cached_tokens: int = 0
    """What the record of its replica promised of `cached_tokens`; it is not stored."""
    uncached_prefix_tokens: int = 0
    """Those that a replica of the service had, by the records, and its engine computed again; they
    are not stored."""
    output_tokens: int = 0
    reasoning_tokens: int = 0
    recomputed_tokens: int = 0
    """Those that engines computed again since others failed: in no other count, and not stored."""
    estimated: bool = False
    """Tokens were counted by the gateway, since the engine reported none."""
    queue_ns: int = 0
    """Nanoseconds in the gateway before it reached an engine."""
    ttft_ns: int | None = None
    """Nanoseconds from its arrival to the first token; None without one."""
    total_ns: int
    tags: str = ""
    """`name=value` pairs of the trusted header, joined by commas."""
    price_version: str | None = None
    """Pool of its replica, and digest of that pool's prices: `a100@0123456789ab`."""
    trace_parent: str = ""
    """`traceparent` of the request, under which its spans stand; it is not stored."""
    client_address: str = ""
    """Of the connection: a proxy's where there is one; it is logged and not stored."""
    resumed: int = 0
    """How often its stream went on at another replica; it is not stored, as is the next."""
    unchecked_joints: int = 0
    """Those of them where the next engine did not say how it reads what came before."""
    latency: StreamLatency | None = None
    """Of a stream alone: the first token of another answer comes with its last."""
    drafts: DraftCounts | None = None
    """Of an engine that speculates and reports it; it is not stored."""
    requests: int = 1
    """Of a sum: the requests that it counts, which began later than `started_at_ns`; 0 of a call
    that did not answer its request, which another record counts."""
    charge_nanos: int | None = None
    """By the price list; None where no price is known."""
    currency: str | None = None
    """Of `charge_nanos`."""
    price_list: str | None = None
    """`RequestPrice.price_list`, from the admission on."""
    charges: tuple[tuple[str, int, int], ...] = ()
    """Accounts that pay: key of the scope, start of the window in Unix seconds, nano-units.

    With the key OTHER_MONTH, what counts in statements of a month that begins then.
    """
    owner: str | None = None
    """Tenant of the service."""
    service_class: str = ""
    waste_nanos: int = 0
    """At its price, what engines computed for it and its sender does not pay."""
    model_route: str = ""
    """Namespace and name of the ModelRoute that it came to, `team-a/assistant`; empty without."""
    target: str = ""
    """Name of the target of the route that was asked."""
    provider: str = ""
    """ModelProvider and its model, `openai/gpt-5`; empty of a service."""
    cost_nanos: int = 0
    """What the provider bills; 0 of a service, whose nodes cost."""
    cost_currency: str | None = None
    """Of `cost_nanos`."""
    target_reason: str = ""
    """How the target was chosen, or `Fallback`; it is not stored, as is the next."""
    skipped_targets: str = ""
    """Targets that gave no answer before, as `name=reason` pairs joined by commas."""


def gateway_of(record_id: str) -> str:
    """Return the name of the gateway process that made a record."""
    return record_id.rpartition("-")[0]
