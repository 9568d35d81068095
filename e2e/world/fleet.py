"""The fleet file: which nodes a world has."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from tessera.domain.hardware.device import sized_profiles
from tessera.domain.hardware.gpu_catalog import Product, products
from world import mig
from world.errors import WorldError
from world.mig import PlacedSlice

Tier = Literal["Reserved", "OnDemand", "Spot"]
Cloud = Literal["aws", "gcp", "azure", "onPrem"]
# The first two are played by the world in the words of the real ones; the last is the real one.
AutoscalerKind = Literal["karpenter", "clusterAutoscaler", "karpenterCore"]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,50}[a-z0-9])?$")]
# Where each cloud says which group of the cluster autoscaler a node is of.
GROUP_LABELS: dict[Cloud, str] = {
    "aws": "eks.amazonaws.com/nodegroup",
    "gcp": "cloud.google.com/gke-nodepool",
    "azure": "kubernetes.azure.com/agentpool",
    "onPrem": "",
}
# The slices of a GPU in MIG mode, in the order of their starts; None is a whole GPU.
GpuLayout = tuple[PlacedSlice, ...] | None


class FleetError(WorldError):
    """The fleet file is wrong; says where."""


class Taint(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class MigManagerEntry(BaseModel):
    """NVIDIA's mig-manager on a node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str = "gpu-operator"
    config: str = "tessera-mig"
    """The ConfigMap that it mounts."""
    pace: Annotated[float, Field(gt=0, le=10)] = 0.05
    """1 takes as long as the real one, which is about a minute."""
    lag_seconds: Annotated[float, Field(ge=0, alias="lagSeconds")] = 1.0
    """Until it sees a change of the ConfigMap; with the real one it is up to 90 s."""


class NodeEntry(BaseModel):
    """One entry under `nodes`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    kind: Literal["gpu", "cpu", "kwok"] = "gpu"
    count: Annotated[int, Field(ge=1, le=5000)] | None = None
    product: str | None = None
    tier: Tier = "OnDemand"
    cloud: Cloud = "onPrem"
    zone: str | None = None
    gpus: tuple[Literal["whole"] | tuple[str, ...], ...] = ()
    mig_manager: Annotated[MigManagerEntry | Literal[False], Field(alias="migManager")] = (
        MigManagerEntry()
    )
    labels: dict[str, str] = {}
    taints: tuple[Taint, ...] = ()
    resources: dict[str, Annotated[int, Field(ge=0)]] = {}
    """What other device plugins offer, `nvidia.com/hostdev` or so; pods get nothing of it."""
    cpu: Annotated[int, Field(ge=1)] = 96
    memory_gib: Annotated[int, Field(ge=1, alias="memoryGiB")] = 1024

    @model_validator(mode="after")
    def _check_consistency(self) -> "NodeEntry":
        if self.kind == "gpu" and not self.gpus:
            raise ValueError("gpus: a node of kind gpu needs at least one; or say kind: cpu")
        if self.kind == "cpu" and self.gpus:
            raise ValueError("gpus: a node of kind cpu has none")
        if self.gpus and self.product is None:
            raise ValueError("product: needed where there are gpus")
        if self.product is not None and self.product not in products():
            known = ", ".join(sorted(products()))
            raise ValueError(f"product: {self.product} is not known; known are {known}")
        for problem in self._bad_layouts():
            raise ValueError(problem)
        return self

    def _bad_layouts(self) -> Iterator[str]:
        for index, layout in enumerate(self.gpus):
            product = products()[self.product or ""]
            if layout == "whole":
                continue
            for profile in layout:
                if mig.find_mig_profile(product, profile) is None:
                    known = ", ".join(gi_profile.name for gi_profile in sized_profiles(product))
                    yield f"gpus[{index}]: {product.product} has no {profile}; it has {known}"
            if mig.place_slices(product, layout) is None:
                yield f"gpus[{index}]: {' + '.join(layout)} do not fit on one {product.product}"


class NodeGroupEntry(NodeEntry):
    """One entry under `groups`: nodes like this one come when pods need them, and go."""

    kind: Literal["gpu", "cpu"] = "gpu"
    count: None = None
    autoscaler: AutoscalerKind = "karpenter"
    max_nodes: Annotated[int, Field(ge=0, le=20, alias="maxNodes")] = 1
    start_seconds: Annotated[float, Field(ge=0, alias="startSeconds")] = 60.0
    """From the decision until the node has registered; its GPUs come a second or two later."""
    empty_seconds: Annotated[float, Field(ge=0, alias="emptySeconds")] = 30.0
    """A node that has had no pod of its own for so long is removed."""
    retry_seconds: Annotated[float, Field(gt=0, alias="retrySeconds")] = 10.0
    """After a refusal of the cloud."""
    known_resources: Annotated[
        dict[str, Annotated[int, Field(ge=1)]], Field(alias="knownResources")
    ] = {}
    """What the autoscaler was told that a node has beside CPU, memory and whole GPUs."""


class FleetFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: Annotated[tuple[NodeEntry, ...], Field(min_length=1)]
    groups: tuple[NodeGroupEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a world."""

    name: str
    live: bool
    """Has a kubelet of this world; the others are KWOK's, whose pods do not really run."""
    product: Product | None
    gpus: tuple[GpuLayout, ...]
    tier: Tier
    cloud: Cloud
    zone: str | None
    mig_manager: MigManagerEntry | None
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    resources: Mapping[str, int]
    cpu: int
    memory_gib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Nodes that an autoscaler makes when pods need them."""

    name: str
    template: Node
    autoscaler: AutoscalerKind
    max_nodes: int
    start_seconds: float
    empty_seconds: float
    retry_seconds: float
    known_resources: Mapping[str, int]

    def node(self, name: str) -> Node:
        return replace(self.template, name=name)


def read(path: Path) -> tuple[Node, ...]:
    """The nodes of a fleet file; a mistake names the file and the field."""
    nodes = tuple(node for entry in _read(path).nodes for node in _expand(entry))
    names = [node.name for node in nodes]
    for name in names:
        if names.count(name) > 1:
            raise FleetError(f"{path}: nodes: two are named {name}")
    return nodes


def read_groups(path: Path) -> tuple[NodeGroup, ...]:
    """The node groups of a fleet file."""
    content = _read(path)
    groups = tuple(_node_group(entry) for entry in content.groups)
    names = [group.name for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise FleetError(f"{path}: groups: two are named {name}")
        # Its nodes are named after it.
        for entry in content.nodes:
            if entry.name == name or entry.name.startswith(f"{name}-"):
                raise FleetError(f"{path}: groups: {name} would name a node like {entry.name}")
    return groups


def _read(path: Path) -> FleetFile:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise FleetError(f"{path}: cannot be read: {error}") from error
    try:
        return FleetFile.model_validate(content)
    except ValidationError as error:
        raise FleetError("\n".join(_messages(path, error))) from error


def _node_group(entry: NodeGroupEntry) -> NodeGroup:
    (template,) = _expand(entry)
    key = "karpenter.sh/nodepool"
    if entry.autoscaler == "clusterAutoscaler":
        key = GROUP_LABELS[entry.cloud]
    labels = {key: entry.name, **template.labels} if key else template.labels
    return NodeGroup(
        name=entry.name,
        template=replace(template, labels=labels),
        autoscaler=entry.autoscaler,
        max_nodes=entry.max_nodes,
        start_seconds=entry.start_seconds,
        empty_seconds=entry.empty_seconds,
        retry_seconds=entry.retry_seconds,
        known_resources=entry.known_resources,
    )


def _messages(path: Path, error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        steps = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in problem["loc"])
        where, text = "".join(steps).lstrip("."), problem["msg"].removeprefix("Value error, ")
        # Our own checks are about an entry, and begin with the field.
        joint = "." if problem["type"] == "value_error" else ": "
        yield f"{path}: {where}{joint}{text}"


def _expand(entry: NodeEntry) -> Iterator[Node]:
    names = [entry.name]
    if entry.count is not None:
        names = [f"{entry.name}-{index}" for index in range(entry.count)]
    product = None if entry.product is None else products()[entry.product]
    for name in names:
        yield Node(
            name=name,
            live=entry.kind != "kwok",
            product=product,
            gpus=tuple(_place_slices(product, layout) for layout in entry.gpus if product),
            tier=entry.tier,
            cloud=entry.cloud,
            zone=entry.zone,
            mig_manager=entry.mig_manager or None,
            labels=entry.labels,
            taints=entry.taints,
            resources=entry.resources,
            cpu=entry.cpu,
            memory_gib=entry.memory_gib,
        )


def _place_slices(product: Product, layout: Literal["whole"] | tuple[str, ...]) -> GpuLayout:
    return None if layout == "whole" else mig.place_slices(product, layout)
