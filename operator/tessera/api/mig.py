"""What a pool says about cutting its GPUs, and what its status tells of that."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from tessera.api.meta import Amount, Wire, rule, with_rules

# A MIG profile, such as 3g.40gb or 1g.10gb+me.
Profile = Annotated[
    str, StringConstraints(pattern=r"^[1-9]g\.[0-9]+gb(\+[a-z.]+)?$", max_length=24)
]

# A slice in its place, such as `3g.40gb@4`; without `@` where the place is not decided.
SliceText = Annotated[str, StringConstraints(max_length=32)]

TimeOfDay = Annotated[
    str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", max_length=5)
]
Weekday = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
Phase = Literal["Draining", "Partitioning", "Verifying", "Temporary"]


class MaintenanceWindow(Wire):
    """When GPUs may be cut anew."""

    days: Annotated[tuple[Weekday, ...], Field(max_length=7)] = ()
    """Days on which it begins; empty means every day."""

    start: TimeOfDay
    """When it begins."""

    end: TimeOfDay
    """When it ends; before `start` means the next day. What was begun is still finished."""

    time_zone: Annotated[str, Field(max_length=64)] = "UTC"
    """IANA name of the time zone."""


class Mig(Wire):
    """How the GPUs of the pool are cut into MIG slices."""

    mode: Literal["Auto", "Propose", "Static"] = "Auto"
    """`Auto` plans layouts from what services need and applies them; `Propose` writes the plan to
    the status and waits for the annotation `tessera.dev/approve-layout` with the plan's name;
    `Static` gives every GPU the `layout`."""

    layout: Annotated[
        dict[Profile, Annotated[int, Field(ge=1, le=8)]], Field(max_length=8, default_factory=dict)
    ]
    """With `Static`: how many slices of which profile every GPU gets; empty leaves all as it is."""

    backend: Literal["MigManager", "Agent"] = "MigManager"
    """Who cuts: NVIDIA's mig-manager, which empties and rebuilds whole GPUs, or Tessera's own agent
    on the nodes, which leaves the neighbours of a slice alone."""

    max_concurrent: Annotated[int, Field(ge=1, le=64)] = 1
    """Nodes that are worked on at once."""

    maintenance_window: MaintenanceWindow | None = None
    """When GPUs may be cut anew; without it always."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "self.mode == 'Static' || !has(self.layout) || size(self.layout) == 0",
                "spec.mig.layout: 1 layout for all GPUs needs spec.mig.mode Static; Auto plans its "
                "own",
                ".layout",
            ),
        )
    )


class GpuTarget(Wire):
    """One GPU as it should be."""

    gpu: int
    """Its index on the node."""

    slices: Annotated[tuple[SliceText, ...], Field(max_length=8)] = ()
    """What should be cut; empty means nothing."""


class NodeTarget(Wire):
    """The GPUs of a node that are in MIG mode."""

    node: Annotated[str, Field(max_length=253)]
    """Its name."""

    gpus: Annotated[tuple[GpuTarget, ...], Field(max_length=16)]
    """Those in MIG mode, by index."""


class Assignment(Wire):
    """What the plan gives to a service."""

    service: Annotated[str, Field(max_length=320)]
    """namespace/name."""

    profile: Annotated[str, Field(max_length=24)]
    """On slices of which profile it runs."""

    replicas: int
    """On how many."""

    previous_profile: Annotated[str, Field(max_length=24)] = ""
    """The profile that it had; empty when it is new."""

    message: Annotated[str, Field(max_length=300)] = ""
    """The arithmetic in one sentence."""


class Unit(Wire):
    """What is being cut anew now: a node, or some GPUs of it."""

    node: Annotated[str, Field(max_length=253)]
    """The name of the node."""

    gpus: Annotated[tuple[int, ...], Field(max_length=16)]
    """Indices of its GPUs that change."""

    phase: Phase
    """How far it is; `Temporary` GPUs are cut otherwise than planned for a while, so that replicas
    have somewhere to go while others are cut."""

    since: datetime
    """When this phase began."""

    attempt: int = 1
    """How often the backend was asked."""

    temporary_layout: Annotated[tuple[GpuTarget, ...], Field(max_length=16)] = ()
    """What its GPUs are cut into for a while, before they become as planned."""

    message: Annotated[str, Field(max_length=300)] = ""
    """What it waits for."""


class MigPlan(Wire):
    """A plan of layouts, with what it costs."""

    name: Annotated[str, Field(max_length=16)]
    """Changes with everything that the plan says; an approval names it."""

    at: datetime
    """When it was made."""

    gpus_before: int
    """GPUs in use before it."""

    gpus_after: int
    """And after it."""

    per_hour_before: Amount
    """Price of the GPUs in use."""

    per_hour_after: Amount
    """The same after it."""

    lower_bound: Amount
    """No plan that serves the same can cost less an hour."""

    gap: Amount
    """How far the plan may be from the optimum, as a share of its cost."""

    moves: int = 0
    """Replicas that change their slice."""

    services: Annotated[tuple[Assignment, ...], Field(max_length=512)] = ()
    """Who gets what."""

    nodes: Annotated[tuple[NodeTarget, ...], Field(max_length=512)] = ()
    """All GPUs as they should be."""

    unmet: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Services, as namespace/name, that the pool cannot hold."""


class MigStatus(Wire):
    """What is planned and how far it is."""

    target: MigPlan | None = None
    """The plan that is carried out, or was."""

    proposed: MigPlan | None = None
    """A plan that waits: for its approval, or, where it only saves, for five minutes to pass."""

    units: Annotated[tuple[Unit, ...], Field(max_length=64)] = ()
    """What is being cut anew now."""

    done: int = 0
    """GPUs that are as planned."""

    total: int = 0
    """GPUs of the plan."""
