"""What a scaling policy sees of a fleet, and what it may know beforehand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tessera.domain.observed.demand import NO_TOKENS, ArrivedTokens
from tessera.domain.perf.step import StepTime


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSample:
    """The metrics of one ready replica at the last scrape."""

    running: int
    waiting: int
    waiting_tokens: int = 0
    """Prompt tokens of requests without a first token."""
    kv_tokens: int = 0
    """Tokens in the KV cache."""
    kv_usage: float = 0.0
    """Share of the KV cache in use."""
    busy: float = 0.0
    """Share of the time since the scrape before in which the GPU ran any kernel: GPU_UTIL / 100 of
    a whole GPU."""
    busy_seconds: float = 0.0
    """Time in which the GPU ran any kernel since the start, as the next three are counted."""
    steps: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counters of all engines of the service since the start, at the last scrape."""

    finished: int = 0
    prompt_tokens: int = 0
    """Of finished requests, as is the next."""
    output_tokens: int = 0
    first_tokens: int = 0
    """Requests that got their first token."""
    ttft_seconds: float = 0.0
    """Sum over these."""
    in_time: int = 0
    """Those of them within the objective, and within half of it."""
    in_half_time: int = 0
    slow_prefills: int = 0
    """Requests whose prompt alone took longer than the objective, and longer than half of it."""
    half_slow_prefills: int = 0
    output_gaps: int = 0
    """Gaps between two tokens of finished requests."""
    gap_seconds: float = 0.0
    """Sum over these."""
    steps: int = 0
    """Engine steps."""
    prefill_tokens: int = 0
    """Prompt tokens that steps computed."""
    generated_tokens: int = 0
    """Output tokens that steps computed."""
    queried_tokens: int = 0
    """Prompt tokens that were looked up in prefix caches, and those found there."""
    hit_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """What the API server knows of a replica."""

    number: int
    ordered_at: float
    bound_at: float | None
    """When it got its node; None while it has none."""
    pool: str = ""
    ready_at: float | None = None
    """None while it starts."""
    draining_since: float | None = None
    sample: EngineSample | None = None
    """None before its first scrape, and where its metrics are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What can be known at a decision; policies read what their published signal has."""

    at: float
    """Seconds since the start of the trace."""
    replicas: int
    """Replicas that are ordered, as a Deployment's `spec.replicas`. There may be more while spot
    nodes start."""
    ready: int
    """Ready replicas, not draining."""
    scraped_at: float
    """Time of the last scrape, which `engines` and `totals` are of."""
    counted_at: float = 0.0
    """When the operator last read speeds and the counts of gateways, which it does less often."""
    engines: tuple[EngineSample | None, ...] = ()
    """Replicas that were ready at the last scrape; None is one whose metrics are missing."""
    statuses: tuple[ReplicaStatus, ...] = ()
    """All replicas, also those that drain."""
    targets: Mapping[str, int] = field(default_factory=dict)
    """Replicas that are ordered in each pool, if the policy chooses among pools."""
    foreign: Mapping[str, int] = field(default_factory=dict)
    """Nodes of pools that others use."""
    totals: Totals = field(default_factory=Totals)
    in_flight: int = 0
    """Requests at the gateway now: they wait, or are in engines."""
    queued: int = 0
    """Those of them that wait at the gateway for a replica."""
    arrived: int = 0
    """Requests that have come to the gateway since the start."""
    arrived_tokens: ArrivedTokens = NO_TOKENS
    """Of those whose lengths the gateway expected by their clients' earlier ones."""
    arrivals: tuple[int, ...] = ()
    """Those of each second of the last minute, oldest first."""
    finished_lengths: Sequence[tuple[int, int]] = ()
    """Prompt and output tokens of the requests that ended since the last decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """A replica as a profile of it shows it before it serves."""

    step: StepTime
    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    ttft: float
    """Objective of the time to the first token, seconds."""
    itl: float
    """Objective of the time between two tokens, seconds."""
    lead: float
    """Mean time from the order of a replica until it is ready, seconds."""
    input_tokens: int
    """Typical tokens of a prompt."""
    output_tokens: int


# Replicas in all, or those of each pool by its name.
Decision = int | Mapping[str, int]


def total(decision: Decision) -> int:
    """Return the replicas of all pools."""
    return decision if isinstance(decision, int) else sum(decision.values())


class Policy(Protocol):
    """A scaling policy with the memory of one run."""

    interval: float
    """Seconds between decisions."""
    scrape: float
    """Seconds between scrapes; 0 reads the engines at each decision."""

    def decide(self, observation: Observation) -> Decision:
        """Return the replicas that shall be in effect; a number of all is held within bounds."""
        ...


# Knobs of a policy by name; a choice is a number, too.
Settings = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFamily:
    """A policy with its knobs."""

    title: str
    """As tables show it, with the version that was read."""
    create: Callable[[Settings, ReplicaModel], Policy]
    """Returns the policy at the start of a run; the settings have all knobs."""
    published: Settings = field(default_factory=dict)
    """All knobs, as published."""
    grid: tuple[Settings, ...] = ()
    """At least 30 changes of `published` to tune over; none for a policy without knobs."""
