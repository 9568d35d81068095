"""What is known of the GPUs of a pool."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.api.ref import Ref
from tessera.domain.mig.gpu_models import GpuModel
from tessera.domain.mig.layouts import Layout, SlicePlacement
from tessera.domain.observed.node_layout import ObservedNodeLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInstance:
    """A slice that exists. Places are made up where nobody tells them; counts are right then."""

    placement: SlicePlacement
    holders: tuple[Ref, ...] = ()
    """Pods on it, ours or not; only known with an agent."""
    processes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MigGpu:
    """One GPU in MIG mode."""

    index: int
    uuid: str = ""
    """Empty where no agent tells it."""
    instances: tuple[GpuInstance, ...] = ()
    fault: str | None = None
    """A word of NodeLayout's `fault`."""
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
    """An agent says which pod is on which slice, and where slices begin."""
    can_partition: bool = False
    """An agent may cut here."""
    tainted: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, int] = field(default_factory=dict)
    node_layout: ObservedNodeLayout | None = None
    inconsistency: str | None = None
    """Why labels and resources fit no layout; there are no cards then."""
