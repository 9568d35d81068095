"""How the GPUs of the pools are cut, as metrics."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from tessera.api.mig import MigStatus, Phase, Unit
from tessera.domain.pools import PoolView
from tessera.domain.repartition.facts import Ground
from tessera.domain.repartition.orders import Orders
from tessera.domain.repartition.usage import seats, usage
from tessera.domain.snapshot import Pod

PHASES: tuple[Phase, ...] = get_args(Phase)


class Ending(StrEnum):
    """What became of GPUs that were to be cut anew."""

    DONE = "done"
    FAILED = "failed"
    """An attempt of the backend; another one follows."""
    DROPPED = "dropped"
    """They were not cut: the plan changed before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaidPool:
    """One pool after a turn."""

    view: PoolView
    grounds: tuple[Ground, ...]
    orders: Orders

    @property
    def status(self) -> MigStatus:
        return self.orders.status or MigStatus()

    @property
    def backend(self) -> str:
        spec = self.view.pool.spec
        return spec.mig.backend if spec is not None and spec.mig is not None else ""


def endings(before: Sequence[Unit], now: Sequence[Unit]) -> Counter[Ending]:
    """What came to its end between two statuses of a pool."""
    going = {(unit.node, unit.gpus): unit for unit in now}
    found: Counter[Ending] = Counter()
    for unit in before:
        later = going.get((unit.node, unit.gpus))
        if later is None:
            found[Ending.DROPPED if unit.phase == "Emptying" else Ending.DONE] += 1
        elif later.attempt > unit.attempt:
            found[Ending.FAILED] += later.attempt - unit.attempt
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """One value, since scrapes read it from another thread."""

    pools: tuple[LaidPool, ...] = ()
    pods: tuple[Pod, ...] = ()
    ended: Mapping[tuple[str, str, Ending], int]


class LayoutsCollector(Collector):
    """The layouts as of the last turn; pools that are gone leave no series but their counts."""

    def __init__(self) -> None:
        self._seen = _Seen(ended={})

    def take(self, pools: Sequence[LaidPool], pods: tuple[Pod, ...]) -> None:
        """After a turn. What was begun in another process is counted when it ends in this one."""
        before = {pool.view.pool.name: pool.status.units for pool in self._seen.pools}
        ended = dict(self._seen.ended)
        for pool in pools:
            name = pool.view.pool.name
            for ending, count in endings(before.get(name, ()), pool.status.units).items():
                key = name, pool.backend, ending
                ended[key] = ended.get(key, 0) + count
        self._seen = _Seen(pools=tuple(pools), pods=pods, ended=ended)

    @override
    def collect(self) -> Iterator[Metric]:
        seen, told = self._seen, _Families()
        for pool in seen.pools:
            told.add(pool, seen.pods)
        for (name, backend, ending), count in sorted(seen.ended.items()):
            told.ended.add_metric([name, backend, ending], count)
        yield from told.families


class _Families:
    """Every metric of a layout, with its series so far."""

    def __init__(self) -> None:
        self._slices = GaugeMetricFamily(
            "tessera_slices",
            "MIG slices that are cut: used, idle, or doomed, which a new layout takes away.",
            labels=["pool", "profile", "state"],
        )
        self._stranded = GaugeMetricFamily(
            "tessera_stranded_cost_per_hour",
            "Price of an hour of what no slice covers of the GPUs in MIG mode.",
            labels=["pool", "currency"],
        )
        self._idle = GaugeMetricFamily(
            "tessera_idle_slices_cost_per_hour",
            "Price of an hour of the slices that nobody holds.",
            labels=["pool", "currency"],
        )
        self._gap = GaugeMetricFamily(
            "tessera_layout_gap_ratio",
            "How far the plan of layouts may be from the optimum, as a share of its cost.",
            labels=["pool"],
        )
        self._units = GaugeMetricFamily(
            "tessera_repartition_units",
            "Nodes, or some GPUs of them, that are being cut anew.",
            labels=["pool", "phase"],
        )
        self._laid_out = GaugeMetricFamily(
            "tessera_pool_laid_out",
            "1 if the GPUs of the pool are cut as planned, else 0; with the reason.",
            labels=["pool", "reason"],
        )
        self.ended = CounterMetricFamily(
            "tessera_repartitions",
            "Nodes, or some GPUs of them, by what became of cutting them anew.",
            labels=["pool", "backend", "outcome"],
        )

    @property
    def families(self) -> tuple[Metric, ...]:
        return (
            *(self._slices, self._stranded, self._idle, self._gap),
            *(self._units, self._laid_out, self.ended),
        )

    def add(self, pool: LaidPool, pods: Sequence[Pod]) -> None:
        name, verdict, status = pool.view.pool.name, pool.orders.verdict, pool.status
        self._laid_out.add_metric([name, verdict.reason], float(verdict.reason.is_true))
        if status.target is not None:
            self._gap.add_metric([name], float(status.target.gap))
        phases = Counter(unit.phase for unit in status.units)
        for phase in PHASES:
            self._units.add_metric([name, phase], phases[phase])
        found = usage(pool.grounds, seats(pool.grounds, pods, pool.orders.doomed))
        for (profile, state), count in sorted(found.slices.items()):
            self._slices.add_metric([name, profile, state], count)
        price = pool.view.price
        if price is not None:
            where = [name, price.currency]
            self._stranded.add_metric(where, float(found.stranded * price.per_gpu_hour))
            self._idle.add_metric(where, float(found.idle * price.per_gpu_hour))
