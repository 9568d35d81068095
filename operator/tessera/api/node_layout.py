"""`NodeLayout`: the GPUs of one node, as its agent sees them and as the operator wants them."""

from typing import Annotated, Literal

from pydantic import Field

from tessera.api.meta import Wire

MigMode = Literal["Enabled", "Disabled", "Enabling", "Disabling", "Unsupported"]
GpuFault = Literal["ResetRequired", "InUse", "PartitionFailed", "QueryFailed", "UnknownProfile"]


class PlacedSlice(Wire):
    """A slice in its place."""

    profile: Annotated[str, Field(max_length=24)]
    """The MIG profile, such as 3g.40gb."""

    start: Annotated[int, Field(ge=0, le=15)]
    """The memory slice that it begins at."""


class DesiredGpu(Wire):
    """One GPU as it should be."""

    uuid: Annotated[str, Field(max_length=64)]
    """Its identity; indices move."""

    slices: Annotated[tuple[PlacedSlice, ...], Field(max_length=8)] = ()
    """All of its slices."""


class NodeLayoutSpec(Wire):
    """What the agent is to cut; written by the operator alone."""

    gpus: Annotated[tuple[DesiredGpu, ...], Field(max_length=16)] = ()
    """GPUs that are not named are left alone."""


class ObservedSlice(PlacedSlice):
    """A slice that exists."""

    uuid: Annotated[str, Field(max_length=64)] = ""
    """Of the MIG device; empty while it is half made."""

    memory_mib: Annotated[int, Field(alias="memoryMiB")] = 0
    """Its memory."""

    pods: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    """namespace/name of the pods that hold it."""

    processes: int = 0
    """Processes that compute on it."""


class ObservedGpu(Wire):
    """One GPU as its driver tells."""

    index: int
    """Its number on the node."""

    uuid: Annotated[str, Field(max_length=64)]
    """Its identity."""

    product: Annotated[str, Field(max_length=63)]
    """The name that its driver gives, blanks as dashes."""

    memory_mib: Annotated[int, Field(alias="memoryMiB")]
    """Its memory."""

    mode: MigMode
    """MIG mode; one that waits for a reset is `enabling` or `disabling`."""

    slices: Annotated[tuple[ObservedSlice, ...], Field(max_length=8)] = ()
    """What is cut, by start."""

    pods: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    """namespace/name of the pods that hold the whole GPU."""

    fault: GpuFault | None = None
    """Why it is not as it should be."""

    message: Annotated[str, Field(max_length=500)] = ""
    """The same with its numbers, and what to do."""


class NodeLayoutStatus(Wire):
    """What the agent sees; written by it alone."""

    observed_generation: int = 0
    """The generation of the spec that was carried out, as far as no GPU has a fault."""

    partitioning_enabled: bool = False
    """The agent may cut; otherwise it only looks."""

    driver_version: Annotated[str, Field(max_length=63)] = ""
    """Version of the driver."""

    gpus: Annotated[tuple[ObservedGpu, ...], Field(max_length=16)] = ()
    """The GPUs by index."""

    problem: Annotated[str, Field(max_length=500)] = ""
    """Why nothing can be told of this node; empty when all is well."""


class NodeLayout(Wire):
    """The GPUs of one node; it has the node's name and goes with it."""

    spec: NodeLayoutSpec | None = None
    """What the agent is to cut; written by the operator alone, and absent until it wants a cut."""

    status: NodeLayoutStatus | None = None
    """What the agent sees; written by it alone."""
