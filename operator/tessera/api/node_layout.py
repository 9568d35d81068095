"""`NodeLayout`: desired and observed MIG layout of the GPUs of one node."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from tessera.api.meta import StatusText, Wire

# Of one node; no machine has more.
MAX_GPUS = 16

MigMode = Literal["Enabled", "Disabled", "Enabling", "Disabling", "Unsupported"]
PodName = Annotated[
    str, StringConstraints(pattern=r"^[-a-z0-9.]{1,63}/[-a-z0-9.]{1,253}$", max_length=317)
]
GpuFault = Literal["ResetRequired", "InUse", "PartitionFailed", "QueryFailed", "UnknownProfile"]


class PlacedSlice(Wire):
    """Slice at its placement on the GPU."""

    profile: Annotated[str, Field(max_length=24)]
    """MIG profile, for example `3g.40gb`."""

    start: Annotated[int, Field(ge=0, le=15)]
    """First memory slice of the placement."""


class DesiredGpu(Wire):
    """Desired layout of one GPU."""

    uuid: Annotated[str, Field(max_length=64)]
    """UUID of the GPU; its index can change."""

    slices: Annotated[tuple[PlacedSlice, ...], Field(max_length=8)] = ()
    """All slices that the GPU should have."""


class NodeLayoutSpec(Wire):
    """Desired layout of the node; written by the operator only."""

    gpus: Annotated[tuple[DesiredGpu, ...], Field(max_length=MAX_GPUS)] = ()
    """GPUs to partition; a GPU that is not listed is not changed."""


class ObservedSlice(PlacedSlice):
    """Slice that exists."""

    uuid: Annotated[str, Field(max_length=64)] = ""
    """UUID of the MIG device; empty while the slice is being created."""

    memory_mib: Annotated[int, Field(alias="memoryMiB", ge=0, le=10**7)] = 0
    """Memory of the slice in MiB."""

    pods: Annotated[tuple[PodName, ...], Field(max_length=8)] = ()
    """Pods that hold the slice, as namespace/name."""

    processes: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Compute processes on the slice."""


class ObservedGpu(Wire):
    """Observed state of one GPU, as its driver reports it."""

    index: Annotated[int, Field(ge=0, le=255)]
    """Index of the GPU on the node."""

    uuid: Annotated[str, Field(max_length=64)]
    """UUID of the GPU."""

    product: Annotated[str, Field(max_length=63)]
    """Product name from the driver, with dashes instead of spaces."""

    memory_mib: Annotated[int, Field(alias="memoryMiB", ge=0, le=10**7)]
    """Memory of the GPU in MiB."""

    mode: MigMode
    """MIG mode; `Enabling` and `Disabling` wait for a GPU reset."""

    slices: Annotated[tuple[ObservedSlice, ...], Field(max_length=8)] = ()
    """Slices of the GPU, by start."""

    pods: Annotated[tuple[PodName, ...], Field(max_length=8)] = ()
    """Pods that hold the whole GPU, as namespace/name."""

    fault: GpuFault | None = None
    """Why the GPU does not have the desired layout."""

    message: Annotated[StatusText, Field(max_length=500)] = ""
    """Explanation of the fault, with numbers, and what to do."""


class NodeLayoutStatus(Wire):
    """Observed layout of the node; written by its agent only."""

    observed_generation: int = 0
    """Generation of the spec that was applied, except to GPUs with a fault."""

    partitioning_enabled: bool = False
    """Whether the agent may partition GPUs; otherwise it only reports them."""

    driver_version: Annotated[str, Field(max_length=63)] = ""
    """Version of the NVIDIA driver."""

    gpus: Annotated[tuple[ObservedGpu, ...], Field(max_length=MAX_GPUS)] = ()
    """GPUs of the node, by index."""

    problem: Annotated[StatusText, Field(max_length=500)] = ""
    """Why the agent cannot report the GPUs of this node, whose last state is in `gpus`; empty
    without a problem."""

    last_heartbeat_time: AwareDatetime | None = None
    """When the agent last wrote this status, by the API server's clock; at least every minute while
    it runs."""


class NodeLayout(Wire):
    """MIG layout of the GPUs of one node; it has the node's name and is deleted with it."""

    spec: NodeLayoutSpec | None = None
    """Desired layout of the node; written by the operator only, and absent until it changes a
    layout."""

    status: NodeLayoutStatus | None = None
    """Observed layout of the node; written by its agent only."""
