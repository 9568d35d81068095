"""Node groups as they are just now, and what a test changes of them."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tessera.domain.hardware.gpu_catalog import products
from world.fleet import Node, NodeGroup

Arrival = Literal["Normal", "Never", "Other", "NoDriver", "QuotaExceeded", "NoCapacity"]
# Nodes on their way out: as they were empty, or drained first.
Leaving = Literal["Empty", "Drained"]
# So long do Karpenter and the cluster autoscaler wait for a machine to register.
GIVE_UP_SECONDS = 900.0


class GroupChange(BaseModel):
    """What is to be changed of a group; a field that is left out stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arrival: Arrival | None = None
    """What becomes of machines that are asked for from now on."""
    for_seconds: Annotated[float, Field(gt=0)] | None = None
    """So long, and `Normal` afterwards."""
    product: str | None = None
    """Of nodes that are `Other` than the template."""
    gpus: Annotated[int, Field(ge=1, le=16)] | None = None
    """Whole ones, of nodes that are `Other` than the template."""
    message: str | None = None
    """What the cloud says instead of its usual words."""
    max_nodes: Annotated[int, Field(ge=0)] | None = None
    """At most as many as the fleet file says."""
    start_seconds: Annotated[float, Field(ge=0)] | None = None
    empty_seconds: Annotated[float, Field(ge=0)] | None = None
    retry_seconds: Annotated[float, Field(gt=0)] | None = None
    give_up_seconds: Annotated[float, Field(gt=0)] | None = None


@dataclass(slots=True, kw_only=True)
class Launch:
    """A machine that was asked for and has not registered."""

    node: Node
    """As it will be."""
    group: NodeGroup
    size: int
    """Of the group before it."""
    due: float | None
    """None for one that never comes."""
    give_up_at: float
    give_up_seconds: float
    driver: bool
    asked: tuple[str, ...]
    """Resources of device plugins that its pods ask for."""


@dataclass(slots=True, kw_only=True)
class GroupState:
    """One group: how its machines come, and which there are."""

    group: NodeGroup
    most: int
    """Nodes for which the world has addresses."""
    arrival: Arrival = "Normal"
    normal_at: float | None = None
    other: Node
    """What comes instead of the template when `arrival` says so."""
    message: str | None = None
    give_up_seconds: float = GIVE_UP_SECONDS
    launches: dict[str, Launch] = field(default_factory=dict)
    nodes: dict[str, Launch] = field(default_factory=dict)
    """What was asked for and has come, by the names of the nodes."""
    missing: dict[str, str | None] = field(default_factory=dict)
    """Of the nodes whose object was seen the resource that they lack."""
    empty_since: dict[str, float] = field(default_factory=dict)
    leaving: dict[str, Leaving] = field(default_factory=dict)
    retry_at: float = 0.0
    refusals: int = 0
    asked: int = 0
    """Machines that were ever asked for; they number the names."""

    @property
    def size(self) -> int:
        return len(self.launches) + len(self.nodes)

    def advance(self, now: float) -> None:
        """Let a time of something else than normal nodes end."""
        if self.normal_at is not None and self.normal_at <= now:
            self.arrival, self.normal_at, self.retry_at = "Normal", None, now

    def launch(self, asked: tuple[str, ...], now: float) -> Launch:
        """Ask the cloud for a machine."""
        self.asked += 1
        name = f"{self.group.name}-{self.asked}"
        spec = self.other if self.arrival == "Other" else self.group.template
        launch = Launch(
            node=replace(spec, name=name),
            group=self.group,
            size=self.size,
            due=None if self.arrival == "Never" else now + self.group.start_seconds,
            give_up_at=now + self.give_up_seconds,
            give_up_seconds=self.give_up_seconds,
            driver=self.arrival != "NoDriver",
            asked=asked,
        )
        self.launches[name] = launch
        return launch

    def change(self, change: GroupChange, now: float) -> None:
        """Apply what a test wants.

        Raises `LookupError` for a product that is not known, and for too many nodes.
        """
        fields = change.model_dump(exclude_none=True)
        if fields.get("max_nodes", 0) > self.most:
            raise LookupError(f"maxNodes of group {self.group.name} is {self.most}")
        if change.arrival is not None:
            self.arrival, self.message = change.arrival, change.message
            self.normal_at = None if change.for_seconds is None else now + change.for_seconds
            self.retry_at = min(self.retry_at, now)
        template = self.group.template
        product = products()[change.product] if change.product else template.product
        gpus = template.gpus if change.gpus is None else (None,) * change.gpus
        if change.product or change.gpus:
            self.other = replace(template, product=product, gpus=gpus)
        self.give_up_seconds = change.give_up_seconds or self.give_up_seconds
        keys = ("max_nodes", "start_seconds", "empty_seconds", "retry_seconds")
        self.group = replace(self.group, **{key: fields[key] for key in keys if key in fields})

    def forget(self, name: str) -> None:
        """A node is gone."""
        for known in (self.nodes, self.missing, self.empty_since, self.leaving):
            known.pop(name, None)

    def body(self) -> dict[str, Any]:
        """The state for tests."""
        return {
            "arrival": self.arrival,
            "launching": sorted(self.launches),
            "nodes": sorted(self.nodes),
            "asked": self.asked,
            "refusals": self.refusals,
        }


def group_state(group: NodeGroup) -> GroupState:
    """The state of a group at the start: without a node."""
    return GroupState(group=group, most=group.max_nodes, other=group.template)
