"""What is said about a rollout: what a unit waits for, and what keeps the whole from going on."""

from collections.abc import Collection, Sequence

from tessera.api.mig import Unit
from tessera.domain.reasons import LayoutReady, StatusVerdict
from tessera.domain.ref import Ref
from tessera.domain.repartition.facts import DOWNTIME, TAINT
from tessera.domain.repartition.room import Shortage
from tessera.domain.repartition.units import Work

_LONGEST = 300


def waits(unit: Unit, work: Work, leaving: Collection[Ref], evict: Collection[Ref]) -> str:
    """What a unit without a problem waits for."""
    if unit.phase == "Emptying":
        return _emptying(work, leaving, evict)
    if unit.phase == "Applying":
        return f"the backend cuts, attempt {unit.attempt}"
    if unit.phase == "Verifying":
        return "waits until the node offers its new slices"
    return "holds room for the replicas of other GPUs"


def _emptying(work: Work, leaving: Collection[Ref], evict: Collection[Ref]) -> str:
    pods = sorted(work.pods)
    if not work.ground.tainted:
        return f"waits for the taint {TAINT}"
    for word, some in (
        ("evicts {}, which a PodDisruptionBudget may delay", [one for one in pods if one in evict]),
        ("waits for the last requests of {}", [one for one in pods if one in leaving]),
        ("waits for replacements of {}", pods),
        ("waits for the agent to say where {} sits", work.unseen),
        ("waits for {}", work.held),
    ):
        if some:
            return word.format(names(some))
    return "waits a moment for pods that were bound before the taint"


def placing(work: Work) -> str:
    """What a unit waits for whose replacements have room on its own node alone."""
    return (
        f"waits until replacements of {names(sorted(work.pods))} have slices of the same node, "
        "which takes pods until then"
    )


def cut_short(text: str) -> str:
    """As long as a message in the status may be."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def no_room(work: Work, shortage: Shortage) -> StatusVerdict[LayoutReady]:
    """Why a unit cannot begin, with what would unblock it."""
    service = shortage.tenant.service
    return StatusVerdict(
        LayoutReady.NO_SURGE_CAPACITY,
        f"{gpus(work.gpus)} of {work.ground.name}: {names(shortage.pods)} would have to leave, "
        f"{shortage.missing} more free {shortage.profile} are needed for that, and "
        f"{service} would fall below its floor; add a node, lower its scaling.minReplicas, or "
        f"annotate it with {DOWNTIME}=true",
    )


def failed(node: str, indices: Sequence[int], attempts: int) -> StatusVerdict[LayoutReady]:
    """No attempt is left."""
    return StatusVerdict(
        LayoutReady.BACKEND_FAILED,
        f"{gpus(indices)} of {node}: the backend failed {attempts} times; its log on the node says "
        "why. The node takes no pods until it is as planned",
    )


def taken_back() -> StatusVerdict[LayoutReady]:
    """GPUs that were cut otherwise for a while follow now."""
    return StatusVerdict(LayoutReady.REPARTITIONING, "GPUs that lent room are cut as planned next")


def working(units: Sequence[Unit]) -> str:
    """What is in work, by the first of the units."""
    first = next((one for one in units if one.phase != "Lending"), units[0])
    more = f", and {len(units) - 1} more nodes" if len(units) > 1 else ""
    return f"{gpus(first.gpus)} of {first.node}{more}: {first.message}"


def gpus(indices: Sequence[int]) -> str:
    """By their numbers on the node."""
    return f"GPU {', '.join(map(str, indices))}"


def names(some: Sequence[object]) -> str:
    """Three of them, and how many more."""
    named = ", ".join(map(str, some[:3]))
    return named if len(some) <= 3 else f"{named} and {len(some) - 3} more"
