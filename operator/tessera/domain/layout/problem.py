"""The layout problem and its solution.

Both are sent between processes and are therefore plain values. Equal fleets have equal problems, so
nothing is solved twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.api.mig import MigPlan
from tessera.domain.hardware.gpu_layouts import Layout
from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareOption:
    """Hardware on which a replica of a service fits."""

    instance_type: InstanceType
    tokens_per_second: float
    hourly_nanos: int
    """Billed price per hour, in nano-units."""
    fills_gpu: bool
    """A replica has its GPU for itself."""
    precision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceDemand:
    """What one service needs of the pools."""

    service: ServiceDemand
    """The demand in output tokens per second, as the solver takes it."""
    options: tuple[HardwareOption, ...]
    """All hardware on which a replica fits, the cheapest first."""
    current: tuple[InstanceType, ...] = ()
    """The instance types that it runs on now, first the one that it was placed on."""
    floor: int = 0
    """Replicas that leave no slice without a replacement; 0 if the service allows downtime."""
    assigned: Mapping[InstanceType, int] = field(default_factory=dict)
    """Replicas by the plans that are carried out."""
    is_moving: bool = False
    """Whether some replicas are not on these instance types yet."""
    is_asleep: bool = False
    """Whether it has no replica until a request comes."""
    max_hourly_nanos: int | None = None
    """Most that its replicas may cost per hour; None if it wants more replicas than it has, or lost
    a device."""

    def hourly_nanos(self, counts: Mapping[InstanceType, int]) -> int:
        """Return what these replicas cost per hour, without those on hardware that is no option."""
        prices = {option.instance_type: option.hourly_nanos for option in self.options}
        return sum(prices.get(each, 0) * count for each, count in counts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTerms:
    """Prices and backend of a pool whose layouts are planned."""

    pool: str
    currency: str
    per_gpu_hour: int
    """Price of one GPU per hour, in nano-units."""
    pinned_starts: bool
    asks_approval: bool = False
    """Whether a person approves what moves replicas or repartitions GPUs (`Propose`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutProblem:
    """Everything that layouts are computed from, sorted by name."""

    terms: tuple[PoolTerms, ...] = ()
    demands: tuple[SliceDemand, ...] = ()
    offers: tuple[GpuOffer, ...] = ()
    gpus: tuple[FleetGpu, ...] = ()
    observed_layouts: Mapping[str, Layout]
    """Observed layouts by GPU in MIG mode. `gpus` lacks unused slices of unavailable nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """A service that gets less than its demand, in output tokens per second or in replicas."""

    service: str
    demanded: float
    provided: float
    demanded_replicas: int
    provided_replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLayout:
    """The solution for one pool."""

    plan: MigPlan
    """The plan, whose `at` is set when it is adopted."""
    shortfalls: tuple[Shortfall, ...] = ()
    repartitioned_gpus: int = 0
    """GPUs whose layout changes."""
    crowded_gpus: int = 0
    """GPUs that keep their layout, since too few slices are free to empty them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutSolution:
    """The solution of a layout problem, by pool."""

    problem: LayoutProblem
    pools: Mapping[str, PoolLayout]
    staying: Mapping[str, PoolLayout] = field(default_factory=dict)
    """Layouts in which every running replica stays and no GPU is repartitioned, where a person
    approves those of `pools`."""
