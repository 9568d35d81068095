"""Metrics about the MIG layouts of pools and their repartitions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import get_args

from tessera.api.mig import MigStatus, Phase, Unit
from tessera.domain.hardware.pools import PoolView
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.mig_backends.usage import PoolUsage, pool_usage, slice_usages
from tessera.domain.observed.snapshot import Pod
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.reporting.series import Sample, Series
from tessera.domain.steps import Step

PHASES: tuple[Phase, ...] = get_args(Phase)


class RepartitionOutcome(StrEnum):
    """How the repartition of a unit ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """An attempt of the backend failed and is followed by another."""
    CANCELED = "canceled"
    """The unit ended before its GPUs were partitioned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLayoutState:
    """State of one pool after a reconcile cycle."""

    view: PoolView
    nodes: tuple[MigNode, ...]
    actions: PoolActions

    @property
    def status(self) -> MigStatus:
        return self.actions.status or MigStatus()

    @property
    def backend(self) -> str:
        spec = self.view.pool.spec
        return spec.mig.backend if spec is not None and spec.mig is not None else ""


def repartition_outcomes(
    before: Sequence[Unit], after: Sequence[Unit]
) -> Counter[RepartitionOutcome]:
    """Return what ended between two statuses of a pool."""
    current = {(unit.node, unit.gpus): unit for unit in after}
    outcomes: Counter[RepartitionOutcome] = Counter()
    for unit in before:
        if unit.phase == "Canceled":
            continue  # counted when it was canceled
        later = current.get((unit.node, unit.gpus))
        if later is None or later.phase == "Canceled":
            # A unit that was still draining has not touched a GPU.
            outcomes[
                RepartitionOutcome.CANCELED
                if unit.phase == "Draining"
                else RepartitionOutcome.SUCCEEDED
            ] += 1
        elif later.attempt > unit.attempt:
            outcomes[RepartitionOutcome.FAILED] += later.attempt - unit.attempt
    return outcomes


_SLICES = Series(
    "tessera_slices",
    "MIG slices by state: used, idle, or displaced (its pod will be evicted).",
    *("pool", "profile", "state"),
)
_STRANDED = Series(
    "tessera_stranded_cost_per_hour",
    "Price per hour of the share of GPUs in MIG mode that no slice covers.",
    *("pool", "currency"),
)
_IDLE = Series(
    "tessera_idle_slices_cost_per_hour",
    "Price per hour of the slices that no pod holds.",
    *("pool", "currency"),
)
_GAP = Series(
    "tessera_layout_gap_ratio",
    "Maximum distance of the layout plan from the optimum, as a ratio of its cost.",
    "pool",
)
_UNITS = Series(
    "tessera_repartition_units",
    "Units (GPUs of one node) that are being repartitioned.",
    *("pool", "phase"),
)
_LAYOUT_READY = Series(
    "tessera_pool_layout_ready",
    "1 if all GPUs of the pool have the planned layout, else 0; with the reason.",
    *("pool", "reason"),
)
_REPARTITIONS = Series(
    "tessera_repartitions",
    "Repartitions of units (GPUs of one node), by outcome.",
    *("pool", "backend", "outcome"),
    kind="counter",
)
LAYOUT_SERIES = _SLICES, _STRANDED, _IDLE, _GAP, _UNITS, _LAYOUT_READY, _REPARTITIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedLayouts:
    """The layouts as of the last cycle; of deleted pools only the counters remain.

    One immutable value, since scrapes read it from another thread.
    """

    pools: tuple[PoolLayoutState, ...] = ()
    pods: tuple[Pod, ...] = ()
    outcome_counts: Mapping[tuple[str, str, RepartitionOutcome], int] = field(default_factory=dict)

    def after(self, pools: Sequence[PoolLayoutState], pods: tuple[Pod, ...]) -> "ObservedLayouts":
        """Return the layouts after a cycle.

        A repartition that began in another process is counted when it ends in this one.
        """
        before = {pool.view.pool.name: pool.status.units for pool in self.pools}
        outcome_counts = Counter(self.outcome_counts)
        for pool in pools:
            name = pool.view.pool.name
            for outcome, count in repartition_outcomes(
                before.get(name, ()), pool.status.units
            ).items():
                outcome_counts[name, pool.backend, outcome] += count
        return ObservedLayouts(pools=tuple(pools), pods=pods, outcome_counts=outcome_counts)


def layout_samples(layouts: ObservedLayouts) -> Iterator[Sample]:
    """Yield the state of each pool, and how many repartitions ended."""
    for pool in layouts.pools:
        yield from _pool_samples(pool, layouts.pods)
    for labels, count in sorted(layouts.outcome_counts.items()):
        yield _REPARTITIONS, labels, count


def _pool_samples(pool: PoolLayoutState, pods: Sequence[Pod]) -> Iterator[Sample]:
    name, verdict, status = pool.view.pool.name, pool.actions.verdict, pool.status
    yield _LAYOUT_READY, (name, verdict.reason), verdict.reason.is_true
    if status.target is not None:
        yield _GAP, (name,), float(status.target.gap)
    phases = Counter(unit.phase for unit in status.units)
    for phase in PHASES:
        yield _UNITS, (name, phase), phases[phase]
    if (usage := layout_usage(pool, pods)) is None:
        return
    for labels, count in sorted(usage.slices.items()):
        yield _SLICES, (name, *labels), count
    if (price := pool.view.price) is not None:
        for series, share in ((_STRANDED, usage.stranded), (_IDLE, usage.idle)):
            yield series, (name, price.currency), float(share * price.per_gpu_hour)


def _layout_usage(pool: PoolLayoutState, pods: Sequence[Pod]) -> PoolUsage | None:
    return pool_usage(pool.nodes, slice_usages(pool.nodes, pods, pool.actions.displaced))


layout_usage = Step(_layout_usage, lambda *_: None)
