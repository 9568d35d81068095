"""MIG settings of a pool, and the layout plans in its status."""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tessera.api.meta import (
    Amount,
    Duration,
    StatusText,
    Wire,
    at_most,
    rule,
    rules_config,
    text_default,
)

# A MIG profile, such as 3g.40gb or 1g.10gb+me.
Profile = Annotated[
    str, StringConstraints(pattern=r"^[1-9]g\.[0-9]+gb(\+[a-z.]+)?$", max_length=24)
]

# A slice with its placement, such as `3g.40gb@4`; without `@` where the placement is open.
SliceText = Annotated[str, StringConstraints(max_length=32)]

TimeOfDay = Annotated[
    str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", max_length=5)
]
Weekday = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
Phase = Literal["Draining", "Partitioning", "Verifying", "Temporary", "Canceled"]


class MaintenanceWindow(Wire):
    """When GPUs may be repartitioned."""

    days: Annotated[tuple[Weekday, ...], Field(max_length=7)] = ()
    """Days on which the window starts; empty means every day."""

    start: TimeOfDay
    """Start of the window, as `HH:MM`."""

    end: TimeOfDay
    """End of the window, as `HH:MM`; a time before `start` is on the next day. A repartition in
    progress is completed after it."""

    time_zone: Annotated[str, Field(max_length=64)] = "UTC"
    """IANA name of the time zone, for example `Europe/Berlin`."""


class Mig(Wire):
    """How the GPUs of the pool are partitioned into MIG slices."""

    mode: Literal["Auto", "Propose", "Static"] = "Auto"
    """`Auto` plans layouts from the demand of services and applies them. `Propose` uses free slices
    at once; a plan that moves replicas or repartitions GPUs is written to the status and waits for
    the annotation `tessera.dev/approve-layout` with its name. `Static` gives every GPU the
    `layout`."""

    layout: Annotated[
        dict[Profile, Annotated[int, Field(ge=1, le=8)]], Field(max_length=8, default_factory=dict)
    ]
    """With `Static`: number of slices per profile on every GPU; empty changes no GPU."""

    backend: Literal["MigManager", "Agent"] = "MigManager"
    """Component that partitions: NVIDIA's mig-manager, which drains and rebuilds whole GPUs, or
    Tessera's own node agent, which leaves the other slices of a GPU running."""

    max_concurrent: Annotated[int, Field(ge=1, le=64)] = 1
    """Maximum number of nodes that are repartitioned at the same time."""

    drain_deadline: Annotated[Duration, at_most(timedelta(hours=24))] = text_default("30m")
    """Time for the replicas on the slices of a node to be replaced and to finish their requests, at
    most `24h`."""

    on_deadline: Literal["Cancel", "Evict"] = "Cancel"
    """`Cancel`: after `drainDeadline` the node takes pods again with its present layout, and the
    repartition begins again as much later. `Evict`: replicas are stopped then, even below
    `minReplicas` of their services."""

    maintenance_window: MaintenanceWindow | None = None
    """When GPUs may be repartitioned; omitted, at any time."""

    model_config = rules_config(
        rule(
            "self.mode == 'Static' || !has(self.layout) || size(self.layout) == 0",
            "spec.mig.layout sets the layout of all GPUs and needs spec.mig.mode Static; "
            "Auto plans its own",
            ".layout",
        ),
    )


class GpuTarget(Wire):
    """Desired layout of one GPU."""

    gpu: int
    """Index of the GPU on its node."""

    slices: Annotated[tuple[SliceText, ...], Field(max_length=8)] = ()
    """Slices that the GPU should have; empty means none."""


class NodeTarget(Wire):
    """Desired layout of the GPUs of a node that are in MIG mode."""

    node: Annotated[str, Field(max_length=253)]
    """Name of the node."""

    gpus: Annotated[tuple[GpuTarget, ...], Field(max_length=16)]
    """GPUs in MIG mode, by index."""


class Assignment(Wire):
    """Slices that the plan assigns to a service."""

    service: Annotated[str, Field(max_length=320)]
    """The InferenceService, as namespace/name."""

    profile: Annotated[str, Field(max_length=24)]
    """MIG profile that it runs on."""

    replicas: int
    """Number of replicas on that profile."""

    previous_profile: Annotated[str, Field(max_length=24)] = ""
    """MIG profile before the plan; empty for a new service."""

    message: Annotated[StatusText, Field(max_length=300)] = ""
    """Calculation behind the assignment, in one sentence."""


class ServiceChange(Wire):
    """What a plan changes for a service."""

    service: Annotated[str, Field(max_length=320)]
    """The InferenceService, as namespace/name."""

    moves: int = 0
    """Replicas that move to another slice."""

    per_hour_before: Amount
    """Price per hour of its replicas that run on planned GPUs."""

    per_hour_after: Amount
    """Price per hour of its replicas by the plan."""


class Unit(Wire):
    """Node, or some of its GPUs, that is being repartitioned."""

    node: Annotated[str, Field(max_length=253)]
    """Name of the node."""

    gpus: Annotated[tuple[int, ...], Field(max_length=16)]
    """Indices of the GPUs that change."""

    phase: Phase
    """Progress of the repartition. `Temporary` GPUs have a temporary layout, which takes replicas
    while other GPUs are repartitioned. A `Canceled` repartition begins again after as much time as
    it had."""

    since: datetime
    """When this phase began."""

    attempt: int = 1
    """How often the backend was requested."""

    replacements: int = 0
    """Replicas that were displaced for it. A unit to which others come instead keeps its node
    closed until it is free."""

    temporary_layout: Annotated[tuple[GpuTarget, ...], Field(max_length=16)] = ()
    """Temporary layout of the GPUs before they get the planned one."""

    message: Annotated[StatusText, Field(max_length=300)] = ""
    """What the repartition waits for."""


class MigPlan(Wire):
    """Layout plan with its cost."""

    name: Annotated[str, Field(max_length=16)]
    """Name of the plan, which an approval refers to; it changes with the plan's content."""

    at: datetime
    """When it was calculated."""

    gpus_before: int
    """GPUs in use before the plan."""

    gpus_after: int
    """GPUs in use after the plan."""

    per_hour_before: Amount
    """Cost per hour of the GPUs in use before the plan."""

    per_hour_after: Amount
    """Cost per hour of the GPUs in use after the plan."""

    lower_bound: Amount
    """Proven minimum cost per hour of any plan that serves the same demand."""

    gap: Amount
    """Maximum distance of the plan from the optimum, as a share of its cost."""

    moves: int = 0
    """Replicas that move to another slice."""

    services: Annotated[tuple[Assignment, ...], Field(max_length=512)] = ()
    """Slices by service."""

    changes: Annotated[tuple[ServiceChange, ...], Field(max_length=512)] = ()
    """Services whose replicas move or whose price changes."""

    nodes: Annotated[tuple[NodeTarget, ...], Field(max_length=512)] = ()
    """Desired layout of all GPUs, by node."""

    unmet: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Services, as namespace/name, for which the pool has too little capacity."""


class MigStatus(Wire):
    """Layout plans and their progress."""

    target: MigPlan | None = None
    """Plan that is being applied, or was applied last."""

    proposed: MigPlan | None = None
    """Plan that waits for its approval or, where it only saves cost, for five minutes to pass."""

    units: Annotated[tuple[Unit, ...], Field(max_length=64)] = ()
    """Nodes and GPUs that are being repartitioned."""

    done: int = 0
    """GPUs that have the planned layout."""

    total: int = 0
    """GPUs in the plan."""

    @property
    def busy_nodes(self) -> frozenset[str]:
        """Nodes that are being repartitioned."""
        return frozenset(unit.node for unit in self.units if unit.phase != "Canceled")
