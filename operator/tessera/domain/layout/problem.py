"""The question to the planner of layouts, and its answer.

Both go between processes and are therefore plain values. Equal fleets ask equal questions, so that
nothing is planned twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tessera.api.mig import MigPlan
from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu
from tessera.domain.mig.layouts import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareOption:
    """Hardware that a replica of a service could have."""

    instance_type: InstanceType
    tokens_per_second: float
    hourly_nanos: int
    """What it is billed, in nano-units."""
    fills_gpu: bool
    """It fills its GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceDemand:
    """What one service needs."""

    service: ServiceDemand
    """To the planner; demand in output tokens per second."""
    options: tuple[HardwareOption, ...]
    """All that would hold it, the cheapest first."""
    current: InstanceType | None = None
    """Where it runs now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTerms:
    """A pool whose GPUs may be cut."""

    pool: str
    currency: str
    per_gpu_hour: int
    """Nano-units."""
    pinned_starts: bool
    sibling_safe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutProblem:
    """All that layouts follow from. Everything is in the order of names."""

    terms: tuple[PoolTerms, ...] = ()
    demands: tuple[SliceDemand, ...] = ()
    offers: tuple[GpuOffer, ...] = ()
    gpus: tuple[FleetGpu, ...] = ()
    layouts: Mapping[str, Layout]
    """What is cut on each GPU in MIG mode; a plan sees less of one on a node that is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """A service that gets less than it wishes, in output tokens per second."""

    service: str
    demanded: float
    provided: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLayout:
    """The layouts of one pool."""

    plan: MigPlan
    """Its moment is not known yet."""
    shortfalls: tuple[Shortfall, ...] = ()
    repartitioned_gpus: int = 0
    """GPUs that are cut anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutSolution:
    """The answer to a question, by pool."""

    problem: LayoutProblem
    pools: Mapping[str, PoolLayout]
