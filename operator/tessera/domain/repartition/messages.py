"""Messages about a rollout: what a unit waits for, and why no unit can begin."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from tessera.api.meta import format_duration
from tessera.api.mig import Unit
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.api.text import counted, first_names
from tessera.domain.observed.node_layout import DOWNTIME, TAINT
from tessera.domain.repartition.capacity import SliceShortage
from tessera.domain.repartition.units import NodeRepartition

# The CRD allows 300 characters for the message of a unit.
_MAX_MESSAGE_LENGTH = 300


def wait_message(
    unit: Unit, repartition: NodeRepartition, draining: Collection[Ref], evictions: Collection[Ref]
) -> str:
    """Return what a unit without a problem waits for."""
    if unit.phase == "Draining":
        return _draining_message(repartition, draining, evictions)
    if unit.phase == "Partitioning":
        return f"partitioning, attempt {unit.attempt}"
    if unit.phase == "Verifying":
        return "waiting for the node to offer its new slices"
    return "temporary layout with free slices for replicas of other GPUs"


def _draining_message(
    repartition: NodeRepartition, draining: Collection[Ref], evictions: Collection[Ref]
) -> str:
    pods = sorted(repartition.pods)
    if not repartition.node.tainted:
        return f"waiting for the taint {TAINT}"
    # The pods closest to their end come first: the rest follows by itself.
    for template, objects in (
        (
            "evicting {}, which a PodDisruptionBudget may delay",
            [pod for pod in pods if pod in evictions],
        ),
        ("waiting for the last requests of {}", [pod for pod in pods if pod in draining]),
        ("waiting for replacements of {} to become Ready", pods),
        ("waiting for the agent to report the slices of {}", repartition.unlocated),
        ("waiting for {} to end", repartition.other_users),
    ):
        if objects:
            return template.format(first_names(objects))
    return "waiting a few seconds for pods that were bound before the taint"


def surge_message(repartition: NodeRepartition) -> str:
    """Return what a unit waits for whose replacements fit on its own node alone."""
    return (
        f"waiting for replacements of {first_names(sorted(repartition.pods))} to get slices of the "
        "same node, which accepts pods until then"
    )


def truncate(text: str) -> str:
    """Return the text, cut with an ellipsis to the length that the status allows."""
    return text if len(text) <= _MAX_MESSAGE_LENGTH else f"{text[: _MAX_MESSAGE_LENGTH - 1]}…"


def no_surge_capacity(
    repartition: NodeRepartition, shortage: SliceShortage
) -> StatusVerdict[LayoutReady]:
    """Return why a unit cannot begin, with what would unblock it."""
    slices = counted(shortage.missing, f"more free {shortage.profile} slice")
    ref = shortage.service.ref
    way_out = (
        f"spec.mig.layout has none and {ref} fits nowhere else, so its GPUs stay: change the "
        "layout, or its spec.placement.pools"
        if shortage.service.keeps_slices
        else f"add a node, lower its spec.scaling.minReplicas, or annotate it with {DOWNTIME}=true"
    )
    return StatusVerdict(
        LayoutReady.NO_SURGE_CAPACITY,
        f"{gpu_list(repartition.gpus)} of Node/{repartition.node.name}: draining "
        f"{first_names(shortage.pods)} needs {slices}, or {ref} falls below minReplicas; {way_out}",
    )


def repeated_replacement(unit: Unit, repartition: NodeRepartition) -> StatusVerdict[LayoutReady]:
    """Return that other replicas started on the slices that a unit empties."""
    return StatusVerdict(
        LayoutReady.NO_SURGE_CAPACITY,
        f"{gpu_list(unit.gpus)} of Node/{unit.node}: {counted(unit.replacements, 'replica')} left "
        f"its {counted(repartition.slices, 'slice')} and others started there, so replacements "
        f"start on other nodes only; add a node, or let no pod tolerate {TAINT}",
    )


def unplaced_replacements(
    repartition: NodeRepartition, pods: Sequence[str]
) -> StatusVerdict[LayoutReady]:
    """Return that the scheduler finds no slice for the replacements that a unit waits for."""
    return StatusVerdict(
        LayoutReady.NO_SURGE_CAPACITY,
        f"{gpu_list(repartition.gpus)} of Node/{repartition.node.name}: no free slice for "
        f"{first_names(pods)}, so {first_names(sorted(repartition.pods))} cannot leave; add a "
        f"node, lower spec.scaling.minReplicas, or annotate the service with {DOWNTIME}=true",
    )


def canceled_message(unit: Unit, deadline: timedelta, at: datetime) -> str:
    """Return why a unit is canceled, and when it begins again."""
    limit = format_duration(deadline)
    return truncate(f"canceled after {limit} until {at + deadline:%H:%M} UTC: {unit.message}")


def drain_deadline_exceeded(unit: Unit) -> StatusVerdict[LayoutReady]:
    """Return that a unit was not free in time, and what it waited for."""
    return StatusVerdict(
        LayoutReady.DRAIN_DEADLINE_EXCEEDED,
        f"{gpu_list(unit.gpus)} of Node/{unit.node}: {unit.message}; free the slices, raise "
        "spec.mig.drainDeadline, or set spec.mig.onDeadline to Evict",
    )


def backend_failed(node: str, indices: Sequence[int], attempts: int) -> StatusVerdict[LayoutReady]:
    """Return that no attempt is left."""
    return StatusVerdict(
        LayoutReady.BACKEND_FAILED,
        f"{gpu_list(indices)} of Node/{node}: the backend failed {counted(attempts, 'time')}; see "
        "its log on the node. The node stays tainted until it has the planned layout",
    )


def temporary_layout_ended() -> StatusVerdict[LayoutReady]:
    """Return that GPUs with a temporary layout get the planned one."""
    return StatusVerdict(
        LayoutReady.REPARTITIONING, "GPUs with a temporary layout get the planned layout next"
    )


def progress_message(units: Sequence[Unit]) -> str:
    """Return what the first unit waits for, with the number of the other nodes."""
    first = next((unit for unit in units if unit.phase != "Temporary"), units[0])
    more = f", and {counted(len(units) - 1, 'more node')}" if len(units) > 1 else ""
    return f"{gpu_list(first.gpus)} of Node/{first.node}{more}: {first.message}"


def gpu_list(indices: Sequence[int]) -> str:
    """Return GPUs by index, such as `GPUs 0, 3`."""
    return f"{'GPU' if len(indices) == 1 else 'GPUs'} {', '.join(map(str, indices))}"
