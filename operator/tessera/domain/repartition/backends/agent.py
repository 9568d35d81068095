"""Tessera's own agent: the NodeLayout says every slice with its place, and what came of it.

The device plugin knows only the slices that were there when it started, so it is sent away and
called back by the labels of the GPU operator; a label of our own says for which ask that was done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tessera.api.node_layout import DesiredGpu, GpuFault, NodeLayoutSpec, PlacedSlice
from tessera.domain.mig.layouts import Layout
from tessera.domain.reasons import LayoutReady, StatusVerdict
from tessera.domain.repartition.backend import Ask, Capabilities, Heard, Layouts
from tessera.domain.repartition.devices import DISCOVERY, PAUSED, PLUGIN, offers
from tessera.domain.repartition.facts import Ground

REFRESHED = "tessera.dev/devices-refreshed"
"""On a node: generation and attempt for which its device plugin was called back."""
MANAGER = "nvidia.com/gpu.deploy.mig-manager"
"""Two that cut one GPU undo each other's work: where the agent cuts, mig-manager goes."""

_COURSE = timedelta(minutes=10)
_RETURN = timedelta(minutes=3)
"""From the ask on: it cuts in seconds, and the device plugin is back within a minute."""
_MEANS: Mapping[GpuFault, LayoutReady] = {
    "NeedsReset": LayoutReady.GPU_RESET_REQUIRED,
    "InUse": LayoutReady.GPU_IN_USE,
    "CannotCut": LayoutReady.BACKEND_FAILED,
    "Unreadable": LayoutReady.BACKEND_FAILED,
    "ProfileUnknown": LayoutReady.UNKNOWN_PROFILE,
}


@dataclass(frozen=True, slots=True)
class Agent:
    """`GeometryBackend` over the node's NodeLayout."""

    @property
    def capabilities(self) -> Capabilities:
        """Cutting itself hurts nobody; the refresh of the device plugin pauses the node."""
        return Capabilities(
            pinned_starts=True, sibling_safe=True, knows_pods=True, pauses_node=True
        )

    def ask(self, ground: Ground, wanted: Layouts, attempt: int) -> Ask:
        """GPUs that were asked for before stay as they were asked for."""
        if not ground.tells_pods or ground.layout is None:
            return Ask()
        return Ask(
            labels={**_alone(ground), **_refresh(ground, wanted, attempt)},
            layout=_spec(ground, wanted),
        )

    def heard(
        self, ground: Ground, wanted: Layouts, attempt: int, since: datetime, at: datetime
    ) -> Heard:
        del attempt
        if problem := _unable(ground) or _fault(ground, wanted):
            return Heard(problem=problem)
        waited = at - since
        if not _cut(ground, wanted):
            return Heard(problem=_stuck(ground, waited)) if waited >= _COURSE else Heard()
        if offers(ground, wanted) and ground.labels.get(PLUGIN) != PAUSED:
            return Heard(done=True)
        if waited < _RETURN:
            return Heard()
        return Heard(again=True, problem=_missing(ground, waited))


def _spec(ground: Ground, wanted: Layouts) -> NodeLayoutSpec:
    cards = {card.uuid: card.index for card in ground.cards}
    before = ground.layout.spec.gpus if ground.layout else ()
    asked = {gpu.uuid: gpu for gpu in before if gpu.uuid in cards}
    asked |= {uuid: _gpu(uuid, wanted[at]) for uuid, at in cards.items() if at in wanted}
    return NodeLayoutSpec(gpus=tuple(asked[uuid] for uuid in sorted(asked, key=cards.__getitem__)))


def _gpu(uuid: str, layout: Layout) -> DesiredGpu:
    return DesiredGpu(
        uuid=uuid,
        slices=tuple(
            PlacedSlice(profile=spot.profile, start=spot.start) for spot in sorted(layout)
        ),
    )


def _alone(ground: Ground) -> Mapping[str, str]:
    return {MANAGER: "false"} if ground.labels.get(MANAGER, "false") != "false" else {}


def _refresh(ground: Ground, wanted: Layouts, attempt: int) -> Mapping[str, str]:
    """Once for every ask, and only where pods are offered something else than there is."""
    if not _cut(ground, wanted):
        return {}
    paused = ground.labels.get(PLUGIN) == PAUSED
    token = f"{ground.layout.generation if ground.layout else 0}-{attempt}"
    if paused and not any(ground.allocatable.values()):
        return {PLUGIN: "true", DISCOVERY: "true", REFRESHED: token}
    if paused or offers(ground, wanted) or ground.labels.get(REFRESHED) == token:
        return {}
    return {PLUGIN: PAUSED, DISCOVERY: PAUSED}


def _cut(ground: Ground, wanted: Layouts) -> bool:
    """Carried out, every slice in its place."""
    there = {card.index: card.layout for card in ground.cards}
    layout = ground.layout
    return (
        layout is not None
        and layout.spec == _spec(ground, wanted)
        and all(there.get(index) == tuple(sorted(spots)) for index, spots in wanted.items())
    )


def _unable(ground: Ground) -> StatusVerdict[LayoutReady] | None:
    status = ground.layout.status if ground.layout else None
    if status is None:
        return StatusVerdict(
            LayoutReady.BACKEND_UNAVAILABLE,
            f"tessera-node does not run on {ground.name}: node.enabled of the chart, and "
            f"kubectl get nodelayouts {ground.name}",
        )
    if status.problem:
        return StatusVerdict(
            LayoutReady.BACKEND_FAILED, f"tessera-node on {ground.name}: {status.problem}"
        )
    if not status.cuts:
        return StatusVerdict(
            LayoutReady.BACKEND_UNAVAILABLE,
            f"tessera-node on {ground.name} only looks: set node.cut of the chart, or "
            "spec.mig.backend to migManager",
        )
    return None


def _fault(ground: Ground, wanted: Layouts) -> StatusVerdict[LayoutReady] | None:
    for card in ground.cards:
        for fault, reason in _MEANS.items():
            if card.index in wanted and card.fault == fault:
                message = f"GPU {card.index} of {ground.name}: {card.message or fault}"
                return StatusVerdict(reason, message)
    return None


def _stuck(ground: Ground, waited: timedelta) -> StatusVerdict[LayoutReady]:
    minutes = int(waited.total_seconds() // 60)
    return StatusVerdict(
        LayoutReady.BACKEND_TIMEOUT,
        f"tessera-node on {ground.name} did not carry out its NodeLayout for {minutes} minutes; "
        f"kubectl get nodelayouts {ground.name} -o yaml shows what it sees",
    )


def _missing(ground: Ground, waited: timedelta) -> StatusVerdict[LayoutReady]:
    minutes = int(waited.total_seconds() // 60)
    return StatusVerdict(
        LayoutReady.DEVICES_MISSING,
        f"the slices of {ground.name} are cut, and after {minutes} minutes its device plugin does "
        f"not offer them; does it follow {PLUGIN}? Restart its pod on the node",
    )
