"""Counting what tenants spend: a replica costs from its pod's bind to its end, whoever watches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from tessera.api.accelerator_pool import Price
from tessera.api.tenant_budget import RunningStatus, SpendStatus
from tessera.domain.budget.meter import MeteredReplica, SpendMeter, WindowSpend
from tessera.domain.budget.periods import CalendarPeriod
from tessera.domain.hardware.pools import PoolView, tariff_of
from tessera.domain.money import Tariff, to_nanos
from tessera.domain.observed.snapshot import Pod

# A pod may be seen so much after it was bound.
_MAX_OBSERVATION_DELAY = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Rate:
    """What a replica is billed, and in which pool."""

    pool: str
    tariff: Tariff


def rates(pods: Iterable[Pod], views: Sequence[PoolView], currency: str) -> Mapping[str, Rate]:
    """The rate of every pod, by uid, that is bound to a node of a pool priced in the currency."""
    pools_by_node = {name: view for view in views for name in view.node_names}
    rates_by_uid = {}
    for pod in pods:
        view = pools_by_node.get(pod.node or "")
        tariff = tariff_of(view, pod.devices) if view is not None else None
        if view is not None and tariff is not None and tariff.currency == currency:
            rates_by_uid[pod.uid] = Rate(view.pool.name, tariff)
    return rates_by_uid


def accrue_spend(
    meter: SpendMeter,
    pods: Iterable[Pod],
    pod_rates: Mapping[str, Rate],
    periods: Sequence[CalendarPeriod],
    at: datetime,
    last_seen: Mapping[str, datetime],
) -> SpendMeter:
    """The meter as of now.

    A replica that vanished since the last turn is charged until it was last seen (`last_seen`, what
    Prometheus knows of the time while no operator ran), else until now. One whose node or pool is
    gone goes on at its last price. Time that goes backwards charges nothing.
    """
    totals = {period.name: meter.spent(period) for period in periods}
    running: dict[str, MeteredReplica] = {}

    def charge(replica: MeteredReplica, end: datetime) -> MeteredReplica:
        for period in periods:
            totals[period.name] += replica.tariff.cost(*period.overlap(replica.charged_until, end))
        return replace(replica, charged_until=max(replica.charged_until, end))

    existing_uids = set()
    for pod in pods:
        existing_uids.add(pod.uid)
        current = _metered_replica(pod, pod_rates.get(pod.uid), meter)
        if current is not None:
            charged = charge(current, pod.ended or at)
            if pod.ended is None:
                running[pod.uid] = charged
    for uid in sorted(meter.running.keys() - existing_uids):
        vanished = meter.running[uid]
        charge(vanished, min(last_seen.get(vanished.pod, at), at))
    return replace(
        meter,
        as_of=at,
        spend_by_window={
            period.name: WindowSpend(period.start, totals[period.name], _since(meter, period))
            for period in periods
        },
        running=running,
    )


def _metered_replica(pod: Pod, rate: Rate | None, meter: SpendMeter) -> MeteredReplica | None:
    """The replica with its present rate; None while it costs nothing that is known, or no more.

    One that ended before the meter stood was charged then. One that was bound long before, and was
    not counted, belonged to somebody else until now.
    """
    previous = meter.running.get(pod.uid)
    if pod.bound is None or rate is None:
        return previous
    if previous is not None:
        return replace(previous, pool=rate.pool, tariff=rate.tariff)
    charged_until, metered_until = pod.bound, meter.as_of
    if metered_until is not None:
        if pod.ended is not None and pod.ended <= metered_until:
            return None
        charged_until = (
            metered_until if pod.bound < metered_until - _MAX_OBSERVATION_DELAY else charged_until
        )
    return MeteredReplica(
        pod=str(pod.ref), pool=rate.pool, tariff=rate.tariff, charged_until=charged_until
    )


def _since(meter: SpendMeter, period: CalendarPeriod) -> datetime:
    """From when on a window is counted: one that was not there before begins with its limit."""
    window_spend = meter.spend_by_window.get(period.name)
    if window_spend is not None and window_spend.start == period.start:
        return window_spend.since
    return period.start if meter.as_of is None else max(period.start, meter.as_of)


def restore_meter(
    spend: SpendStatus, prices: Mapping[str, tuple[Price, ...]], currency: str
) -> SpendMeter:
    """The meter that an earlier leader wrote down; a pool that is gone has its last price."""
    return SpendMeter(
        as_of=spend.as_of,
        spend_by_window={
            window.window: WindowSpend(
                window.start, to_nanos(window.settled), window.counted_from or window.start
            )
            for window in spend.windows
        },
        running={
            replica.uid: MeteredReplica(
                pod=replica.pod,
                pool=replica.pool,
                tariff=Tariff(
                    prices.get(replica.pool) or (_recorded_price(replica, currency),),
                    replica.weight,
                ),
                charged_until=replica.through,
            )
            for replica in spend.running
        },
        incomplete_windows={
            window.window: window.start for window in spend.windows if window.window in spend.lost
        },
    )


def _recorded_price(replica: RunningStatus, currency: str) -> Price:
    return Price(from_=date.min, per_gpu_hour=replica.per_gpu_hour, currency=currency)
