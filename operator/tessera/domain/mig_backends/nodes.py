"""The observed nodes of a MIG pool: their GPUs and GPU instances."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.api.node_layout import NodeLayoutStatus
from tessera.api.ref import Ref
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.hardware.gpu_models import GpuModel
from tessera.domain.observed.node_layout import ObservedNodeLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInstance:
    """A slice that exists. Without an agent its placement is assumed, but counts are right."""

    placement: SlicePlacement
    holders: tuple[Ref, ...] = ()
    """All pods on it, created by Tessera or not; only known with an agent."""
    processes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MigGpu:
    """One GPU in MIG mode."""

    index: int
    uuid: str = ""
    """Empty without an agent."""
    instances: tuple[GpuInstance, ...] = ()
    fault: str | None = None
    """The `fault` that the NodeLayout reports."""
    message: str = ""

    @property
    def layout(self) -> Layout:
        return tuple(instance.placement for instance in self.instances)


@dataclass(frozen=True, slots=True, kw_only=True)
class MigNode:
    """One node of a pool."""

    name: str
    gpu_model: GpuModel
    ready: bool
    gpus: tuple[MigGpu, ...] = ()
    """The GPUs in MIG mode, by index."""
    whole_gpus: int = 0
    """GPUs that are not in MIG mode."""
    reports_pods: bool = False
    """An agent reports the starts of slices and the pods on them."""
    can_partition: bool = False
    """An agent runs here and may partition GPUs."""
    tainted: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, int] = field(default_factory=dict)
    node_layout: ObservedNodeLayout | None = None
    unavailable: str | None = None
    """Why its agent's report cannot be relied on; what it reported last stays."""
    inconsistency: str | None = None
    """Why labels and resources fit no layout; `gpus` is empty then."""

    @property
    def agent_status(self) -> NodeLayoutStatus | None:
        """Return what its agent reported last; None without an agent."""
        return self.node_layout.status if self.node_layout is not None else None

    @property
    def located_pods(self) -> frozenset[Ref]:
        """Return the pods that its agent reports on slices."""
        return frozenset(
            pod for gpu in self.gpus for instance in gpu.instances for pod in instance.holders
        )
