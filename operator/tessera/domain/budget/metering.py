"""Metering of tenants' spend: a replica costs from the binding of its pod until the pod ends."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import chain

from tessera.api.accelerator_pool import AcceleratorPoolSpec, Price
from tessera.api.ref import Ref
from tessera.api.tenant_budget import (
    LimitKey,
    OutsideStatus,
    RunningGroupStatus,
    RunningStatus,
    SpendStatus,
)
from tessera.domain.budget.meter import (
    WEIGHT_QUANTUM,
    MeteredGroup,
    MeteredReplica,
    OutsideLoan,
    SpendMeter,
    SpendRecord,
    WindowSpend,
)
from tessera.domain.budget.namespaces import group_by_namespace
from tessera.domain.budget.periods import CalendarPeriod, limit_key
from tessera.domain.hardware.pools import PoolView, pools_by_node, tariff_of
from tessera.domain.incremental import reused
from tessera.domain.money import Tariff, to_nanos
from tessera.domain.observed.snapshot import Pod

# Clocks that differ by more than this do not agree.
MAX_CLOCK_ERROR = timedelta(minutes=2)
# The clocks of two leaders may differ so much, in opposite directions.
_MAX_RECORD_LEAD = 2 * MAX_CLOCK_ERROR
# A pod may be observed so much later than it was bound.
_MAX_OBSERVATION_DELAY = timedelta(minutes=2)
# How long a meter may stand while nothing runs. A pod that comes from another tenant, or gets its
# first price, is charged from that moment at the earliest.
IDLE_INTERVAL = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteringInputs:
    """What the spend of all tenants is metered from."""

    pods: Mapping[str, Sequence[Pod]]
    """Pods with devices, by namespace."""
    pools: Mapping[str, PoolView]
    """The pool by whose prices the pods of each node are billed."""
    specs: Mapping[str, AcceleratorPoolSpec]
    """The specs of pools, by name."""


@reused
def metering_inputs(pods: Iterable[Pod], views: Sequence[PoolView]) -> MeteringInputs:
    return MeteringInputs(
        pods=group_by_namespace((pod.ref, pod) for pod in pods if pod.devices),
        pools=_pools_by_node(views),
        specs=_pool_specs(views),
    )


_pools_by_node = reused(pools_by_node)


@reused
def _pool_specs(views: Sequence[PoolView]) -> Mapping[str, AcceleratorPoolSpec]:
    return {view.pool.name: view.pool.spec for view in views if view.pool.spec is not None}


@dataclass(frozen=True, slots=True)
class Rate:
    """The pool of a replica and the tariff that it is billed by."""

    pool: str
    tariff: Tariff


def rates(pods: Iterable[Pod], pools: Mapping[str, PoolView], currency: str) -> Mapping[str, Rate]:
    """Return the rates by uid of the pods on nodes of `pools` that are priced in the currency."""
    rates_by_uid = {}
    for pod in pods:
        view = pools.get(pod.node or "")
        service = pod.service if pod.service.name else None
        tariff = tariff_of(view, pod.devices, service) if view is not None else None
        if view is not None and tariff is not None and tariff.currency == currency:
            rates_by_uid[pod.uid] = Rate(view.pool.name, tariff)
    return rates_by_uid


def is_charge_due(
    meter: SpendMeter,
    pods: Sequence[Pod],
    pod_rates: Mapping[str, Rate],
    periods: Sequence[CalendarPeriod],
    at: datetime,
) -> bool:
    """Return whether a meter goes on; while nothing runs and nothing changes it stands a while."""
    as_of, known = meter.as_of, meter.spend_by_window
    return (
        as_of is None
        or at - as_of >= IDLE_INTERVAL
        or bool(meter.running)
        or bool(meter.groups)
        or not meter.names_replicas
        or [(key, spend.start) for key, spend in known.items()]
        != [(period.key, period.start) for period in periods]
        or any(
            pod.ended > as_of
            if pod.ended is not None
            else _metered_replica(pod, pod_rates.get(pod.uid), meter) is not None
            for pod in pods
        )
    )


def accrue_spend(
    meter: SpendMeter,
    pods: Sequence[Pod],
    pod_rates: Mapping[str, Rate],
    periods: Sequence[CalendarPeriod],
    at: datetime,
    last_seen: Mapping[str, datetime],
) -> SpendMeter:
    """Return the meter as of `at`.

    A replica that vanished since the last cycle is charged until `last_seen`, from Prometheus for
    the time when no operator ran, else until now. A replica whose node or pool was deleted is
    charged at its last price. A clock that was set back charges nothing.
    """
    meter = _with_named_groups(meter, pods, pod_rates)
    totals = {period.key: meter.spent(period) for period in periods}
    by_service = defaultdict[Ref | None, list[tuple[LimitKey, CalendarPeriod]]](list)
    for period in periods:
        by_service[period.service].append((period.key, period))
    running: dict[str, MeteredReplica] = {}

    def charge(replica: MeteredReplica, end: datetime) -> MeteredReplica:
        service = replica.tariff.service
        alone = by_service.get(service, ()) if service is not None else ()
        for key, period in (*by_service.get(None, ()), *alone):
            totals[key] += period.cost(replica.tariff, replica.charged_until, end)
        return replace(replica, charged_until=max(replica.charged_until, end))

    existing_uids = set()
    for pod in pods:
        existing_uids.add(pod.uid)
        current = _metered_replica(pod, pod_rates.get(pod.uid), meter)
        if current is not None:
            charged = charge(current, min(pod.ended or at, at))
            if pod.ended is None:
                running[pod.uid] = charged
            elif pod.ended > at:
                # The clock of its node is ahead: it is not charged again until that moment.
                running[pod.uid] = replace(charged, charged_until=pod.ended)
    for uid in sorted(meter.running.keys() - existing_uids):
        vanished = meter.running[uid]
        # One that is charged beyond the last cycle had ended by the clock of its node.
        if meter.as_of is None or vanished.charged_until <= meter.as_of:
            charge(vanished, min(last_seen.get(vanished.pod, at), at))
    spend_by_window = {
        period.key: WindowSpend(period.start, totals[period.key], _since(meter, period))
        for period in periods
    }
    return replace(
        meter, as_of=at, spend_by_window=spend_by_window, running=running, names_replicas=True
    )


def _metered_replica(pod: Pod, rate: Rate | None, meter: SpendMeter) -> MeteredReplica | None:
    """Return the replica with its present rate; None while it has no known cost."""
    previous = meter.running.get(pod.uid)
    if pod.bound is None or rate is None:
        return previous
    if previous is not None:
        return replace(previous, pool=rate.pool, tariff=rate.tariff, bound=pod.bound)
    charged_until, metered_until = pod.bound, meter.as_of
    if metered_until is not None:
        # A pod that ended before the last cycle was charged then.
        if pod.ended is not None and pod.ended <= metered_until:
            return None
        # A pod that was bound long ago without being metered belonged to another tenant until now.
        delay = _MAX_OBSERVATION_DELAY if meter.names_replicas else timedelta()
        charged_until = metered_until if pod.bound < metered_until - delay else charged_until
    return MeteredReplica(
        pod=str(pod.ref),
        pool=rate.pool,
        tariff=rate.tariff,
        charged_until=charged_until,
        bound=pod.bound,
    )


def _with_named_groups(
    meter: SpendMeter, pods: Sequence[Pod], pod_rates: Mapping[str, Rate]
) -> SpendMeter:
    """Return the meter with the replicas of its groups by uid, as far as their pods exist.

    The pods that were bound before the record, the oldest first, are those that it counted. What
    remains of a group vanished: when is not known, so it is charged until now.
    """
    if meter.as_of is None or not meter.groups:
        return meter
    as_of, running = meter.as_of, dict(meter.running)
    counted_pods = sorted(
        (pod.bound, pod.uid, pod)
        for pod in pods
        if pod.uid not in running and pod.bound is not None and pod.bound <= as_of
        if pod.ended is None or pod.ended > as_of
    )
    unnamed = Counter[tuple[str, Tariff]]()
    for group in meter.groups:
        unnamed[group.pool, group.tariff] += group.replicas
    tariffs = {(group.pool, group.tariff.weight): group.tariff for group in meter.groups}

    def name_replica(uid: str, pod: str, pool: str, tariff: Tariff) -> None:
        unnamed[pool, tariff] -= 1
        running[uid] = MeteredReplica(
            pod=pod, pool=pool, tariff=tariff, charged_until=as_of, bound=as_of
        )

    for _, uid, pod in counted_pods:
        if (rate := pod_rates.get(uid)) is not None:
            tariff = tariffs.get((rate.pool, rate.tariff.weight.quantize(WEIGHT_QUANTUM)))
            if tariff is not None and unnamed[rate.pool, tariff]:
                name_replica(uid, str(pod.ref), rate.pool, tariff)
    # Where the node or the pool is gone, a pod has no rate of its own.
    leftover = sorted(unnamed.elements(), key=lambda item: (item[0], item[1].weight))
    unrated = [(uid, str(pod.ref)) for _, uid, pod in counted_pods if uid not in pod_rates]
    vanished = ((f"vanished-{index}", "") for index in range(len(leftover)))
    for (pool, tariff), (uid, pod_name) in zip(leftover, chain(unrated, vanished), strict=False):
        name_replica(uid, pod_name, pool, tariff)
    return replace(meter, running=running, groups=())


def _since(meter: SpendMeter, period: CalendarPeriod) -> datetime:
    """Return the time since when a window is metered."""
    window_spend = meter.spend_by_window.get(period.key)
    if window_spend is not None and window_spend.start == period.start:
        return window_spend.since
    # A limit that was added within its window is metered from then on.
    return period.start if meter.as_of is None else max(period.start, meter.as_of)


def recorded_meter(recorded: SpendMeter, outside: SpendMeter, at: datetime) -> SpendMeter:
    """Return the record to go on from, of those of a window of now; an empty one if none is.

    The status says more than the record outside, which counts only where the status is missing,
    is of a later moment than now, or is older by more than the interval at which both are written.
    """
    if not is_current(recorded, at):
        return outside if is_current(outside, at) else SpendMeter()
    if _is_ahead(recorded, at) and is_current(outside, at) and not _is_ahead(outside, at):
        return outside
    restored = recorded.as_of is None or (
        outside.as_of is not None and min(outside.as_of, at) - recorded.as_of > MAX_CLOCK_ERROR
    )
    return outside if restored and is_current(outside, at) else recorded


def merge_records(
    first: Mapping[str, SpendRecord], second: Mapping[str, SpendRecord], at: datetime
) -> Mapping[str, SpendRecord]:
    """Return the records of both; of two for one budget, the one that `recorded_meter` prefers."""
    merged = {**second, **first}
    for name in first.keys() & second.keys():
        if recorded_meter(first[name].meter, second[name].meter, at) is second[name].meter:
            merged[name] = second[name]
    return merged


def is_current(meter: SpendMeter, at: datetime) -> bool:
    """Return whether a meter has spend of a window of now, whatever the clock was since."""
    if meter.as_of is None:
        return False
    windows = meter.spend_by_window.values()
    return not _is_ahead(meter, at) or any(window.start <= at for window in windows)


def _is_ahead(meter: SpendMeter, at: datetime) -> bool:
    return meter.as_of is not None and meter.as_of - at > _MAX_RECORD_LEAD


def after_setback(meter: SpendMeter, at: datetime) -> SpendMeter:
    """Return a meter as of now where the clock was set back since.

    A window that goes on keeps its spend, and the time that runs twice is charged once. Where one
    began that has not begun now, its spend is forgotten, so that the time is charged again.
    """
    if not _is_ahead(meter, at):
        return meter
    is_forgotten = any(window.start > at for window in meter.spend_by_window.values())
    running = meter.running
    if is_forgotten:
        running = {
            uid: replace(replica, charged_until=min(replica.charged_until, at))
            for uid, replica in running.items()
        }
    return replace(meter, as_of=at, running=running)


def restore_meter(
    spend: SpendStatus,
    loans: Iterable[OutsideStatus],
    specs: Mapping[str, AcceleratorPoolSpec],
    currency: str,
) -> SpendMeter:
    """Return the meter that an earlier leader recorded in the status."""

    def recorded_tariff(
        replica: RunningStatus | RunningGroupStatus, service: str | None = None
    ) -> Tariff:
        ref = Ref.parse(service) if service is not None else None
        if (spec := specs.get(replica.pool)) is not None:
            return Tariff(spec.prices, replica.weight, spec.tier, ref)
        # A deleted pool has no prices: the last one is in the record.
        last_price = Price(from_=date.min, per_gpu_hour=replica.per_gpu_hour, currency=currency)
        return Tariff((last_price,), replica.weight, replica.tier, ref)

    alone = {
        limit_key(each.window, each.tier, Ref.parse(each.service)): each
        for each in spend.services or ()
    }
    unknown = [key for key, each in alone.items() if each.incomplete]
    spends = {
        limit_key(window.window, window.tier): WindowSpend(
            window.start,
            to_nanos(window.spent - (window.outside or 0)),
            window.counted_from or window.start,
        )
        for window in spend.windows
    } | {
        key: WindowSpend(each.start, to_nanos(each.spent), each.start)
        for key, each in alone.items()
    }
    return SpendMeter(
        as_of=spend.as_of,
        spend_by_window=spends,
        running={
            replica.uid: MeteredReplica(
                pod=replica.pod,
                pool=replica.pool,
                tariff=recorded_tariff(replica, replica.service),
                charged_until=replica.charged_until,
                bound=replica.charged_until,
            )
            for replica in spend.running
        },
        groups=tuple(
            MeteredGroup(pool=group.pool, tariff=recorded_tariff(group), replicas=group.replicas)
            for group in spend.running_groups
        ),
        incomplete_windows={
            key: spends[key].start for key in (*spend.incomplete_windows, *unknown) if key in spends
        },
        loans={
            each.window: OutsideLoan(
                each.start,
                to_nanos(each.amount),
                to_nanos(each.used),
                each.generation,
                to_nanos(each.previous_amount) if each.previous_amount else 0,
            )
            for each in loans
        },
    )
