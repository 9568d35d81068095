"""What scaling policies read, remember and decide."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.reasons import ScalingReason
from tessera.domain.incremental import FOREVER, NEVER
from tessera.domain.observed.demand import NO_TOKENS, ArrivedTokens
from tessera.domain.observed.snapshot import TokenRates, contradicts_requests
from tessera.domain.placement.split_state import VariantChange, VariantMemory

# After so long without a reading, the stabilization window of scale-down starts again.
MAX_READING_GAP = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class TtftShares:
    """First tokens of the last five minutes, as gateways counted them."""

    read_at: datetime
    in_time: float
    """Share within the objective, and what waits longer is beyond it."""
    early: float
    """Share within half of the objective; at least so many."""
    slow: float = 0.0
    """Share whose prompts alone took engines longer than the objective; at least so many."""
    half_slow: float = 0.0
    """The same of half of the objective."""

    @property
    def late(self) -> float:
        """Return the share that other replicas might have served in time."""
        return 1 - self.in_time - self.slow


class LateAlone(NamedTuple):
    """The prompts that are late by themselves, of the last ten minutes."""

    share: float = 0.0
    counted_at: datetime | None = None
    """None before any request was counted."""


NONE_LATE = LateAlone()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLoad:
    """The load of a service; None is "not known"."""

    at: datetime
    replicas: int
    """Existing replicas; without a history they count as desired."""
    ready: int
    """Ready replicas with readings."""
    serving: int = 0
    """Ready replicas."""
    waiting: float | None
    """Waiting requests of all replicas."""
    running: float | None
    """Running requests of all replicas."""
    known_waiting: float = 0
    """What waits at least, while `waiting` is not known."""
    activity: float | None
    """Mean share of time in which the slices of ready replicas compute, as it is reported."""
    idle_replicas: int = 0
    """Replicas whose activity has contradicted their running requests for five minutes."""
    queued: int | None = None
    """Requests that wait at gateways, which `waiting` includes; None without a gateway."""
    gateway_requests: int = 0
    """Requests that came to gateways since their last report, or are in engines from there."""
    finished: float | None = None
    """Requests that engines finished in the last five minutes."""
    finish_rate: float | None = None
    """Requests per second that engines finished in the last minute."""
    token_rates: TokenRates | None = None
    """Tokens per second that engines computed in the last minute."""
    arrival_rate: float | None = None
    """Requests per second that came to gateways in the last minute."""
    arrivals: tuple[int, ...] = ()
    """Requests that came to gateways in each second of the last minute, oldest first."""
    arrived_tokens: ArrivedTokens = NO_TOKENS
    """What gateways expect of those of the last minute."""
    late_alone: LateAlone = NONE_LATE
    """Prompts that take longer than the TTFT objective by themselves, as gateways expect."""
    ttft: TtftShares | None = None
    """None is "not known", as without a gateway."""
    known_requests: float | None = None
    """Waiting and running requests of the replicas with readings; None without any reading."""
    with_counts: int = 0
    """Replicas whose waiting and running requests are known."""
    until: datetime = FOREVER
    """When the next young replica needs a reading, which changes the load by itself."""
    is_read: bool = False
    """Whether there are metrics of any service; explanations alone say so."""

    @property
    def is_known(self) -> bool:
        """Return whether the waiting and running requests of all replicas are known."""
        return self.waiting is not None and self.running is not None

    @property
    def measured_activity(self) -> float | None:
        """Return the activity, None where it contradicts the running requests."""
        is_idle = self.idle_replicas or contradicts_requests(self.activity, self.running)
        return None if is_idle else self.activity


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestWatch:
    """What is known of the last request of a service that may sleep."""

    last_request: datetime
    """No request was seen since."""
    read_at: datetime
    """Time of the last load that was known."""
    finished: float | None


@dataclass(frozen=True, slots=True)
class TimestampedReplicas:
    """A replica count, and when it was decided or recommended."""

    at: datetime
    replicas: int


@dataclass(frozen=True, slots=True)
class TimestampedRate:
    """What replicas of several variants serve together, and when it was decided.

    It is no count of replicas before a unit is known: `TimestampedReplicas` have another type.
    """

    at: datetime
    tokens_per_second: int


class RequestTokens(NamedTuple):
    """Mean tokens of the requests of a service."""

    prompt: int
    answer: int
    computed: int
    """Those of the prompt that the prefix cache does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingChange:
    """The last change of the replica count, which may not be reported before the next decision."""

    at: datetime
    replicas: int
    reason: ScalingReason
    message: str


class ScalingUnit(NamedTuple):
    """The replicas in which policies count: of several variants, those of the least capacity."""

    variant: str
    capacity: int
    """In thousandths of a token per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverflowHistory:
    """What requests showed that overflowed to other targets of their route."""

    serving: int
    """Ready replicas of the last minute with any."""
    since: datetime
    """Since when there are so many."""
    replica_rate: float = 0.0
    """Requests per second that each of them carried then; 0 is "not known"."""
    request_nanos: float = 0.0
    """Mean cost of such a request at the other target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingHistory:
    """What the next decision needs of earlier ones."""

    unit: ScalingUnit | None = None
    """What is counted; None before hardware was chosen."""

    up_window: tuple[TimestampedReplicas, ...] = ()
    """Recommendations of the scale-up window that no later one undercuts, oldest first."""
    down_window: tuple[TimestampedReplicas, ...] = ()
    """Recommendations of the scale-down window that no later one exceeds, oldest first."""
    decisions: tuple[TimestampedReplicas, ...] = ()
    """Decisions of the last period, oldest first; the last one is in effect."""
    reported: tuple[TimestampedRate, ...] = ()
    """The same as a status has them, where no hardware, and so no unit, was chosen since."""
    change: ScalingChange | None = None
    requests: RequestWatch | None = None
    """Only of a service that may sleep and has replicas."""
    lengths: RequestTokens | None = None
    """The tokens of requests as last measured; None before any were."""
    needs: tuple[TimestampedReplicas, ...] = ()
    """Recommendations of the last half hour that no later one exceeds, oldest first; the last one
    stands. Only of a service with a gate."""
    memory: object = None
    """What its policy alone needs of earlier readings."""
    refused: TimestampedReplicas | None = None
    """When the scheduler last found no node for a replica, and how many had one."""
    overflow: OverflowHistory | None = None
    """None while none overflowed, and once requests waited that no other target may answer."""
    counts: tuple[tuple[str, int], ...] = ()
    """Replicas of each variant as decided last, where there are several."""
    variants: tuple[VariantMemory, ...] = ()
    """What the split into replicas of several variants needs of earlier ones."""
    changes: tuple[VariantChange, ...] = ()
    """Why the number of each variant changed last; statuses are written later than that."""
    slowness: tuple[tuple[str, float], ...] = ()
    """Measured time of a step divided by the predicted one, of variants that run or ran."""
    left_types: tuple[tuple[str, datetime], ...] = ()
    """When a change of the instance type to a variant was taken back."""


class Decided(NamedTuple):
    """A replica count with its reason, before it is kept."""

    replicas: int
    reason: ScalingReason
    message: str
    change_at: datetime | None = None
    """When a window ends, so that the number changes unless the load does before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDecision:
    """The replica count with its reason; the caller keeps the history."""

    replicas: int
    """Replicas of the unit, whose capacity is needed."""
    reason: ScalingReason
    message: str
    history: ScalingHistory
    change_at: datetime | None = None
    """When the number changes unless the load does before; None while no window runs."""
    assessment: object = None
    """The numbers behind it, of which its policy makes an explanation."""
    until: datetime = field(default=NEVER, compare=False)
    """Until when the policy decides the same, while the readings and the history stay."""
    recommended: Decided | None = None
    """What the policy would decide, in replicas of the unit; where another sets the number."""
    recommended_pods: int = 0
    """The pods of all variants that the split would run for it."""
    pods: int | None = None
    """The number of pods where it is set; None where the capacity decides it."""
