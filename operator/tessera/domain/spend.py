"""Counting what tenants spend: a replica costs from its pod's bind to its end, whoever watches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime

from tessera.api.accelerator_pool import Price
from tessera.api.tenant_budget import RunningStatus, SpendStatus
from tessera.domain.meter import Meter, Running, Settled
from tessera.domain.money import Tariff, nanos
from tessera.domain.pools import PoolView, tariff_of
from tessera.domain.snapshot import Pod
from tessera.domain.windows import Window


@dataclass(frozen=True, slots=True)
class Rate:
    """What a replica is billed, and in which pool."""

    pool: str
    tariff: Tariff


def rates(pods: Iterable[Pod], views: Sequence[PoolView]) -> Mapping[str, Rate]:
    """The rate of every pod, by uid, that is bound to a node of a pool with a price."""
    pools = {name: view for view in views for name in view.members}
    found = {}
    for pod in pods:
        view = pools.get(pod.node or "")
        tariff = tariff_of(view, pod.devices) if view is not None else None
        if view is not None and tariff is not None:
            found[pod.uid] = Rate(view.pool.name, tariff)
    return found


def settle(
    meter: Meter,
    pods: Iterable[Pod],
    priced: Mapping[str, Rate],
    windows: Sequence[Window],
    at: datetime,
    last_seen: Mapping[str, datetime],
) -> Meter:
    """The meter as of now.

    A replica that vanished since the last turn is charged until it was last seen (`last_seen`, what
    Prometheus knows of the time while no operator ran), else until now. One whose node or pool is
    gone goes on at its last price. Time that goes backwards charges nothing.
    """
    totals = {window.name: meter.spent(window) for window in windows}
    running: dict[str, Running] = {}

    def charge(one: Running, end: datetime) -> Running:
        for window in windows:
            totals[window.name] += one.tariff.cost(*window.overlap(one.through, end))
        return replace(one, through=max(one.through, end))

    for pod in pods:
        one = _running(pod, priced.get(pod.uid), meter.running.get(pod.uid))
        if one is not None:
            running[pod.uid] = charge(one, pod.ended or at)
    for uid in sorted(meter.running.keys() - running.keys()):
        gone = meter.running[uid]
        charge(gone, min(last_seen.get(gone.pod, at), at))
    return replace(
        meter,
        as_of=at,
        settled={window.name: Settled(window.start, totals[window.name]) for window in windows},
        running=running,
    )


def _running(pod: Pod, rate: Rate | None, before: Running | None) -> Running | None:
    """The replica with its present rate; None while it costs nothing that is known."""
    if pod.bound is None or rate is None:
        return before
    through = before.through if before is not None else pod.bound
    return Running(pod=str(pod.ref), pool=rate.pool, tariff=rate.tariff, through=through)


def from_record(
    spend: SpendStatus, prices: Mapping[str, tuple[Price, ...]], currency: str
) -> Meter:
    """The meter that an earlier leader wrote down; a pool that is gone has its last price."""
    return Meter(
        as_of=spend.as_of,
        settled={one.window: Settled(one.start, nanos(one.settled)) for one in spend.windows},
        running={
            one.uid: Running(
                pod=one.pod,
                pool=one.pool,
                tariff=Tariff(prices.get(one.pool) or (_last(one, currency),), one.weight),
                through=one.through,
            )
            for one in spend.running
        },
        lost={one.window: one.start for one in spend.windows if one.window in spend.lost},
    )


def _last(one: RunningStatus, currency: str) -> Price:
    return Price(from_=date.min, per_gpu_hour=one.per_gpu_hour, currency=currency)
