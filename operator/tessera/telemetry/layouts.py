"""Metrics about the MIG layouts of pools and their repartitions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.api.mig import MigStatus, Phase, Unit
from tessera.domain.hardware.pools import PoolView
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.mig_backends.usage import pool_usage, slice_usages
from tessera.domain.observed.snapshot import Pod
from tessera.domain.repartition.actions import PoolActions
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayoutSnapshot:
    """The state that scrapes read; replaced as a whole, since they run in another thread."""

    pools: tuple[PoolLayoutState, ...] = ()
    pods: tuple[Pod, ...] = ()
    outcome_counts: Mapping[tuple[str, str, RepartitionOutcome], int]


class LayoutsCollector(Collector):
    """Collects the layouts as of the last cycle; of deleted pools only the counters remain."""

    def __init__(self) -> None:
        self._snapshot = _LayoutSnapshot(outcome_counts={})

    def take(self, pools: Sequence[PoolLayoutState], pods: tuple[Pod, ...]) -> None:
        """Take over the state after a cycle.

        A repartition that began in another process is counted when it ends in this one.
        """
        before = {pool.view.pool.name: pool.status.units for pool in self._snapshot.pools}
        outcome_counts = dict(self._snapshot.outcome_counts)
        for pool in pools:
            name = pool.view.pool.name
            for outcome, count in repartition_outcomes(
                before.get(name, ()), pool.status.units
            ).items():
                key = name, pool.backend, outcome
                outcome_counts[key] = outcome_counts.get(key, 0) + count
        self._snapshot = _LayoutSnapshot(
            pools=tuple(pools), pods=pods, outcome_counts=outcome_counts
        )

    @override
    def collect(self) -> Iterator[Metric]:
        snapshot, families = self._snapshot, _LayoutFamilies()
        for pool in snapshot.pools:
            add_layouts(families, pool, snapshot.pods)
        for (name, backend, outcome), count in sorted(snapshot.outcome_counts.items()):
            families.repartitions.add_metric([name, backend, outcome], count)
        yield from families.families


class _LayoutFamilies:
    """The metric families of one scrape."""

    def __init__(self) -> None:
        self._slices = GaugeMetricFamily(
            "tessera_slices",
            "MIG slices by state: used, idle, or displaced (its pod will be evicted).",
            labels=["pool", "profile", "state"],
        )
        self._stranded = GaugeMetricFamily(
            "tessera_stranded_cost_per_hour",
            "Price per hour of the share of GPUs in MIG mode that no slice covers.",
            labels=["pool", "currency"],
        )
        self._idle = GaugeMetricFamily(
            "tessera_idle_slices_cost_per_hour",
            "Price per hour of the slices that no pod holds.",
            labels=["pool", "currency"],
        )
        self._gap = GaugeMetricFamily(
            "tessera_layout_gap_ratio",
            "Maximum distance of the layout plan from the optimum, as a ratio of its cost.",
            labels=["pool"],
        )
        self._units = GaugeMetricFamily(
            "tessera_repartition_units",
            "Units (GPUs of one node) that are being repartitioned.",
            labels=["pool", "phase"],
        )
        self._layout_ready = GaugeMetricFamily(
            "tessera_pool_layout_ready",
            "1 if all GPUs of the pool have the planned layout, else 0; with the reason.",
            labels=["pool", "reason"],
        )
        self.repartitions = CounterMetricFamily(
            "tessera_repartitions",
            "Repartitions of units (GPUs of one node), by outcome.",
            labels=["pool", "backend", "outcome"],
        )

    @property
    def families(self) -> tuple[Metric, ...]:
        return (
            *(self._slices, self._stranded, self._idle, self._gap),
            *(self._units, self._layout_ready, self.repartitions),
        )

    def add(self, pool: PoolLayoutState, pods: Sequence[Pod]) -> None:
        name, verdict, status = pool.view.pool.name, pool.actions.verdict, pool.status
        self._layout_ready.add_metric([name, verdict.reason], float(verdict.reason.is_true))
        if status.target is not None:
            self._gap.add_metric([name], float(status.target.gap))
        phases = Counter(unit.phase for unit in status.units)
        for phase in PHASES:
            self._units.add_metric([name, phase], phases[phase])
        usage = pool_usage(pool.nodes, slice_usages(pool.nodes, pods, pool.actions.displaced))
        for (profile, state), count in sorted(usage.slices.items()):
            self._slices.add_metric([name, profile, state], count)
        price = pool.view.price
        if price is not None:
            labels = [name, price.currency]
            self._stranded.add_metric(labels, float(usage.stranded * price.per_gpu_hour))
            self._idle.add_metric(labels, float(usage.idle * price.per_gpu_hour))


add_layouts = Step(_LayoutFamilies.add, lambda *_: None)
