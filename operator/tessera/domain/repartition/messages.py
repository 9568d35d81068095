"""What is said about a rollout: what a unit waits for, and what keeps the whole from going on."""

from collections.abc import Collection, Sequence

from tessera.api.mig import Unit
from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.observed.node_layout import DOWNTIME, TAINT
from tessera.domain.repartition.capacity import SliceShortage
from tessera.domain.repartition.units import NodeRepartition

_MAX_MESSAGE = 300


def wait_message(
    unit: Unit, repartition: NodeRepartition, draining: Collection[Ref], evictions: Collection[Ref]
) -> str:
    """What a unit without a problem waits for."""
    if unit.phase == "Emptying":
        return _draining_message(repartition, draining, evictions)
    if unit.phase == "Applying":
        return f"the backend cuts, attempt {unit.attempt}"
    if unit.phase == "Verifying":
        return "waits until the node offers its new slices"
    return "holds room for the replicas of other GPUs"


def _draining_message(
    repartition: NodeRepartition, draining: Collection[Ref], evictions: Collection[Ref]
) -> str:
    pods = sorted(repartition.pods)
    if not repartition.node.tainted:
        return f"waits for the taint {TAINT}"
    for template, objects in (
        (
            "evicts {}, which a PodDisruptionBudget may delay",
            [pod for pod in pods if pod in evictions],
        ),
        ("waits for the last requests of {}", [pod for pod in pods if pod in draining]),
        ("waits for replacements of {}", pods),
        ("waits for the agent to say where {} sits", repartition.unlocated),
        ("waits for {}", repartition.other_users),
    ):
        if objects:
            return template.format(name_list(objects))
    return "waits a moment for pods that were bound before the taint"


def surge_message(repartition: NodeRepartition) -> str:
    """What a unit waits for whose replacements have room on its own node alone."""
    return (
        f"waits until replacements of {name_list(sorted(repartition.pods))} have slices of the "
        "same node, "
        "which takes pods until then"
    )


def truncate(text: str) -> str:
    """As long as a message in the status may be."""
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE - 1]}…"


def no_surge_capacity(
    repartition: NodeRepartition, shortage: SliceShortage
) -> StatusVerdict[LayoutReady]:
    """Why a unit cannot begin, with what would unblock it."""
    service = shortage.service.ref
    return StatusVerdict(
        LayoutReady.NO_SURGE_CAPACITY,
        f"{gpu_list(repartition.gpus)} of {repartition.node.name}: {name_list(shortage.pods)} "
        "would have to leave, "
        f"{shortage.missing} more free {shortage.profile} are needed for that, and "
        f"{service} would fall below its floor; add a node, lower its scaling.minReplicas, or "
        f"annotate it with {DOWNTIME}=true",
    )


def backend_failed(node: str, indices: Sequence[int], attempts: int) -> StatusVerdict[LayoutReady]:
    """No attempt is left."""
    return StatusVerdict(
        LayoutReady.BACKEND_FAILED,
        f"{gpu_list(indices)} of {node}: the backend failed {attempts} times; its log on the node "
        "says "
        "why. The node takes no pods until it is as planned",
    )


def temporary_layout_ended() -> StatusVerdict[LayoutReady]:
    """GPUs that were cut otherwise for a while follow now."""
    return StatusVerdict(LayoutReady.REPARTITIONING, "GPUs that lent room are cut as planned next")


def progress_message(units: Sequence[Unit]) -> str:
    """What is in work, by the first of the units."""
    first = next((unit for unit in units if unit.phase != "Lending"), units[0])
    more = f", and {len(units) - 1} more nodes" if len(units) > 1 else ""
    return f"{gpu_list(first.gpus)} of {first.node}{more}: {first.message}"


def gpu_list(indices: Sequence[int]) -> str:
    """By their numbers on the node."""
    return f"GPU {', '.join(map(str, indices))}"


def name_list(objects: Sequence[object]) -> str:
    """Three of them, and how many more."""
    text = ", ".join(map(str, objects[:3]))
    return text if len(objects) <= 3 else f"{text} and {len(objects) - 3} more"
