"""Counting what tenants spend: a replica costs from its pod's bind to its end, whoever watches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from tessera.api.accelerator_pool import Price
from tessera.api.tenant_budget import RunningStatus, SpendStatus
from tessera.domain.budget.meter import Meter, Running, Settled
from tessera.domain.budget.windows import Window
from tessera.domain.money import Tariff, nanos
from tessera.domain.pools import PoolView, tariff_of
from tessera.domain.snapshot import Pod

_LATE = timedelta(minutes=2)
"""A pod may be seen so much after it was bound."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a replica is billed, and in which pool."""

    pool: str
    tariff: Tariff


def rates(pods: Iterable[Pod], views: Sequence[PoolView], currency: str) -> Mapping[str, Rate]:
    """The rate of every pod, by uid, that is bound to a node of a pool priced in the currency."""
    pools = {name: view for view in views for name in view.node_names}
    found = {}
    for pod in pods:
        view = pools.get(pod.node or "")
        tariff = tariff_of(view, pod.devices) if view is not None else None
        if view is not None and tariff is not None and tariff.currency == currency:
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

    here = set()
    for pod in pods:
        here.add(pod.uid)
        one = _running(pod, priced.get(pod.uid), meter)
        if one is not None:
            charged = charge(one, pod.ended or at)
            if pod.ended is None:
                running[pod.uid] = charged
    for uid in sorted(meter.running.keys() - here):
        gone = meter.running[uid]
        charge(gone, min(last_seen.get(gone.pod, at), at))
    return replace(
        meter,
        as_of=at,
        settled={
            window.name: Settled(window.start, totals[window.name], _since(meter, window))
            for window in windows
        },
        running=running,
    )


def _running(pod: Pod, rate: Rate | None, meter: Meter) -> Running | None:
    """The replica with its present rate; None while it costs nothing that is known, or no more.

    One that ended before the meter stood was charged then. One that was bound long before, and was
    not counted, belonged to somebody else until now.
    """
    before = meter.running.get(pod.uid)
    if pod.bound is None or rate is None:
        return before
    if before is not None:
        return replace(before, pool=rate.pool, tariff=rate.tariff)
    through, stood = pod.bound, meter.as_of
    if stood is not None:
        if pod.ended is not None and pod.ended <= stood:
            return None
        through = stood if pod.bound < stood - _LATE else through
    return Running(pod=str(pod.ref), pool=rate.pool, tariff=rate.tariff, through=through)


def _since(meter: Meter, window: Window) -> datetime:
    """From when on a window is counted: one that was not there before begins with its limit."""
    known = meter.settled.get(window.name)
    if known is not None and known.start == window.start:
        return known.since
    return window.start if meter.as_of is None else max(window.start, meter.as_of)


def from_record(
    spend: SpendStatus, prices: Mapping[str, tuple[Price, ...]], currency: str
) -> Meter:
    """The meter that an earlier leader wrote down; a pool that is gone has its last price."""
    return Meter(
        as_of=spend.as_of,
        settled={
            one.window: Settled(one.start, nanos(one.settled), one.counted_from or one.start)
            for one in spend.windows
        },
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
