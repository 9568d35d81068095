"""What scaling policies read, remember and decide."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.reasons import ScalingReason
from tessera.domain.observed.snapshot import TokenRates
from tessera.domain.scaling.policies.capacity.bursts import Burst
from tessera.domain.scaling.policies.capacity.growth import Growth
from tessera.domain.scaling.policies.capacity.pace import Pace, TtftShares

# Share of `maxNumSeqs` that requests may fill on the remaining replicas. A replica with twice its
# share of the connections then runs all of its requests. Steps slow down as they fill: where a full
# step takes three times as long as an empty one, the arrivals that fill this share of the remaining
# half of the replicas fill them completely.
HEADROOM = 0.5
# After so long without a reading, the stabilization window of scale-down starts again.
MAX_READING_GAP = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPolicy:
    """The scaling spec of a service, with what its class and its hardware add."""

    spec: ScalingSpec
    queue_target: float
    """Waiting requests per replica above which replicas are added."""
    max_num_seqs: int
    """Maximum concurrent requests per replica."""
    bounds_source: str = "spec.scaling."
    """Where the bounds stand, with which messages begin that name one."""

    @property
    def replica_requests(self) -> float:
        """Return how many requests a replica is planned for."""
        return self.max_num_seqs * HEADROOM

    @property
    def longest_window(self) -> timedelta:
        return max(
            self.spec.scale_up.stabilization_window, self.spec.scale_down.stabilization_window
        )


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
    """Mean share of time in which the slices of ready replicas compute."""
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
    ttft: TtftShares | None = None
    """None is "not known", as without a gateway."""
    known_requests: float | None = None
    """Waiting and running requests of the replicas with readings; None without any reading."""
    with_counts: int = 0
    """Replicas whose waiting and running requests are known."""

    @property
    def is_known(self) -> bool:
        """Return whether the waiting and running requests of all replicas are known."""
        return self.waiting is not None and self.running is not None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingChange:
    """The last change of the replica count, which may not be reported before the next decision."""

    at: datetime
    replicas: int
    reason: ScalingReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandHistory:
    """What the policy `Capacity` needs of earlier readings."""

    in_flight: tuple[tuple[datetime, float], ...] = ()
    """Waiting and running requests of the last minute, oldest first."""
    known_at: datetime | None = None
    """Time of the last load that was known."""
    full_since: datetime | None = None
    """Since when requests wait although all replicas serve; None while they do not."""
    correction: float = 1.0
    """Share of the predicted capacity that full replicas were measured to carry."""
    lengths: tuple[int, int] | None = None
    """Mean tokens of prompts and answers, as last measured; None before any were."""
    pace: Pace = field(default_factory=Pace)
    growth: Growth = field(default_factory=Growth)
    bursts: tuple[Burst, ...] = ()
    """Those of the last half hour, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingHistory:
    """What the next decision needs of earlier ones."""

    up_window: tuple[TimestampedReplicas, ...] = ()
    """Recommendations of the scale-up window that no later one undercuts, oldest first."""
    down_window: tuple[TimestampedReplicas, ...] = ()
    """Recommendations of the scale-down window that no later one exceeds, oldest first."""
    decisions: tuple[TimestampedReplicas, ...] = ()
    """Decisions of the last period, oldest first; the last one is in effect."""
    change: ScalingChange | None = None
    requests: RequestWatch | None = None
    """Only of a service that may sleep and has replicas."""
    demand: DemandHistory | None = None
    """Only under the policy `Capacity`."""
    refused: TimestampedReplicas | None = None
    """When the scheduler last found no node for a replica, and how many had one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityAssessment:
    """The numbers behind a decision of the policy `Capacity`."""

    arrival_rate: float
    """Requests per second, of the source that decided."""
    source: str
    """Where the rate comes from."""
    replica_rate: float
    """Requests per second that a replica carries within the SLO, corrected by measurements."""
    bursts: int
    """Replicas that bursts need; 0 for none."""
    needed: int
    """Replicas for the arrivals, with their headroom."""
    retained: int
    """Replicas below which none is removed."""
    hold: timedelta
    """Time for which fewer must be enough before replicas are removed."""
    headroom: float
    """Factor of the arrivals for their growth while a replica starts."""
    pace: float
    """Factor of the predicted capacity that attained first tokens show."""
    lead: timedelta
    """From the binding of a replica to its readiness."""
    lengths: tuple[int, int]
    """Tokens of a prompt and of an answer."""


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
    reason: ScalingReason
    message: str
    history: ScalingHistory
    change_at: datetime | None = None
    """When the number changes unless the load does before; None while no window runs."""
    assessment: CapacityAssessment | None = None
    """Only under the policy `Capacity`."""
    recommended: Decided | None = None
    """What the policy would decide; only in mode `External`."""
