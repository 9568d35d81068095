"""The fleet that a simulation runs: its engines, its bounds, and how replicas come and go."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from tessera.domain.perf.step import StepTime
from tessera_lab.engine.requests import EngineLimits
from tessera_lab.fleet.observation import ReplicaModel, Settings


class Tier(StrEnum):
    """How the node of a replica is paid."""

    RESERVED = "Reserved"
    ON_DEMAND = "OnDemand"
    SPOT = "Spot"


class Router(StrEnum):
    """How a request gets its replica."""

    GATEWAY = "gateway"
    """The gateway's own choice, `domain.picking`; requests wait there until a replica has room."""
    LEAST_TTFT = "least-ttft"
    """The same choice, at once: what waits is in the engines' queues, where rivals look for it."""
    PREFIXES = "prefixes"
    """As `GATEWAY`, with a record of the prefixes that each replica holds."""
    CACHES = "caches"
    """As `PREFIXES`, but it sees the caches of the engines, with answers and to the block."""
    LEAST_REQUESTS = "least-requests"
    RANDOM = "random"
    BOUNDED_HASH = "bounded-hash"
    """Consistent hashing of a prompt's beginning with bounded load, as KubeAI's `PrefixHash`."""
    LLM_D = "llm-d"
    """The weighted scorers of llm-d's router, which see the caches of the engines."""
    DYNAMO = "dynamo"
    """The cost formula of NVIDIA Dynamo's KV router, which sees them, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUp:
    """Seconds from the order of a replica until it is ready: a triangular distribution."""

    low: float
    mode: float
    high: float

    @property
    def mean(self) -> float:
        return (self.low + self.mode + self.high) / 3

    def scaled(self, factor: float) -> "StartUp":
        return StartUp(low=self.low * factor, mode=self.mode * factor, high=self.high * factor)


# A node with the image, and weights that are read from disk: measured starts of Qwen3-32B on an
# H100 took 91 to 139 s.
COLD_START = StartUp(low=85, mode=105, high=140)
# An engine that sleeps on a node that is held for it, with its weights in host memory.
WARM_START = StartUp(low=6, mode=10, high=14)


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """Which tiers the replicas run on."""

    reserved: int = 0
    """Nodes that are paid for the whole run; they are used first."""
    spot: bool = False
    """Replicas beyond the reserved ones run on spot nodes while there are any, and on demand until
    they are ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHardware:
    """A replica of other hardware than the fleet's own, with what its engine then has."""

    replica: ReplicaModel
    limits: EngineLimits
    step: StepTime
    size: int
    """Its GPUs, in those of a replica of the fleet's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePool:
    """Nodes of one tier, each of which is for one replica."""

    name: str
    tier: Tier
    nodes: int | None = None
    """Those that are always there; None where a node comes for a replica and goes with it."""
    start_seconds: float = 0.0
    """Time from the order of a node until it is there, before a replica's start-up; it is paid."""
    hardware: PoolHardware | None = None
    """Of the replicas on it; None is the fleet's own."""

    @property
    def size(self) -> int:
        return 1 if self.hardware is None else self.hardware.size


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """One service on one kind of replica."""

    replica: ReplicaModel
    """As it was profiled, which policies see."""
    limits: EngineLimits
    step: StepTime
    """As it is; the same as in the profile unless that is wrong."""
    gpus: int = 1
    """GPUs of a replica."""
    min_replicas: int = 1
    max_replicas: int = 64
    initial_replicas: int = 1
    """Replicas that are ready at the start."""
    start_up: StartUp = COLD_START
    held_start_up: StartUp | None = None
    """Start-up on a node that is held; None where nodes are given back at once."""
    node_hold: float = 0.0
    """Seconds for which a node that is not reserved is held, and paid, after its replica."""
    drain_timeout: float = 300.0
    """Seconds after which a removed replica breaks its streams."""
    router: Router = Router.LEAST_TTFT
    router_settings: Settings = field(default_factory=dict)
    """Changes of what the authors of a rival's router published."""
    gateways: int = 1
    """Gateways among which requests are spread, each with a record of its own."""
    session_tokens: int = 0
    """Tokens of a prompt's beginning by which its gateway is chosen; 0 spreads at random."""
    purchase: Purchase = field(default_factory=Purchase)
    pools: tuple[NodePool, ...] = ()
    """Those among which the policy chooses, the first ones used first by a policy that does not;
    without any there is one for each tier, and `purchase` chooses."""

    @property
    def node_pools(self) -> tuple[NodePool, ...]:
        return self.pools or tuple(NodePool(name=tier, tier=tier) for tier in Tier)

    def on(self, pool: NodePool) -> "FleetModel":
        """Return the fleet as it is on the hardware of one of its pools."""
        chosen = pool.hardware
        if chosen is None:
            return self
        return replace(
            self,
            replica=chosen.replica,
            limits=chosen.limits,
            step=chosen.step,
            gpus=self.gpus * chosen.size,
        )
