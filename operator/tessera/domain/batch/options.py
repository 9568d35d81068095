"""Capacity options of a batch: the best spot hardware and the best on-demand or reserved one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from tessera.api.accelerator_pool import Tier
from tessera.api.batch_inference import AttemptStatus, ProgressStatus, SpotPolicy
from tessera.api.batch_reasons import BatchRunning
from tessera.api.reasons import PlacementReason, StatusVerdict
from tessera.api.text import counted
from tessera.domain.batch import pace
from tessera.domain.batch.attempt_state import AttemptState
from tessera.domain.batch.schedule import CapacityClass, Estimate, Schedule
from tessera.domain.batch.situation import Situation
from tessera.domain.batch.spec import BatchModelSource
from tessera.domain.hardware.pools import PoolView
from tessera.domain.placement.candidates import HardwareChoice, free_replicas
from tessera.domain.placement.placement import NON_SPOT_TIERS, place

# A pod that is pending for longer shows that its hardware is unavailable.
SCHEDULING_TIMEOUT = timedelta(seconds=60)
# A full pool is avoided for so long, as long as there is another option.
FULL_POOL_BACKOFF = timedelta(minutes=10)
TIERS: Mapping[CapacityClass, frozenset[Tier]] = {
    "spot": frozenset({"Spot"}),
    "non-spot": NON_SPOT_TIERS,
}
_EXCLUDED_BY_POLICY: Mapping[SpotPolicy, CapacityClass] = {"Only": "non-spot", "Never": "spot"}
_NO_CAPACITY_REASONS = {
    PlacementReason.NO_POOL: BatchRunning.NO_POOL,
    PlacementReason.POOL_NOT_ALLOWED: BatchRunning.NO_POOL,
    PlacementReason.NO_HARDWARE: BatchRunning.NO_HARDWARE,
    PlacementReason.MIXED_CURRENCIES: BatchRunning.MIXED_CURRENCIES,
    PlacementReason.TOO_LARGE: BatchRunning.TOO_LARGE,
}


@dataclass(frozen=True, slots=True)
class CapacityOption:
    """Hardware for the batch, with its estimate."""

    choice: HardwareChoice
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityOptions:
    """Options of both capacity classes, and the progress whose pace the estimates use."""

    progress: ProgressStatus
    spot: CapacityOption | None
    non_spot: CapacityOption | None

    def of(self, capacity_class: CapacityClass) -> CapacityOption | None:
        return self.spot if capacity_class == "spot" else self.non_spot


def attempt_capacity(attempt: AttemptStatus | None) -> CapacityClass | None:
    """Return the capacity class of an attempt; None without one."""
    if attempt is None:
        return None
    return "spot" if attempt.tier == "Spot" else "non-spot"


def scheduling_timed_out(state: AttemptState, now: datetime, views: Sequence[PoolView]) -> bool:
    """Return whether the pod of the attempt has been pending for longer than 60 s.

    Where an autoscaler adds nodes to the pool, the start of one comes on top of it.
    """
    # A pod that may not be created says nothing of the capacity.
    if state.attempt is None or not state.alive or state.pod is None or state.scheduled:
        return False
    starts = (
        view.startable.expected_start
        for view in views
        if view.pool.name == state.attempt.pool and view.startable is not None
    )
    timeout = SCHEDULING_TIMEOUT + next(starts, timedelta())
    return now - state.attempt.started_at > timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityQuery:
    """Everything that the capacity options depend on."""

    situation: Situation
    source: BatchModelSource
    policy: SpotPolicy
    attempt_state: AttemptState
    progress: ProgressStatus
    schedule: Schedule

    @property
    def active_attempt(self) -> AttemptStatus | None:
        """The running attempt, unless spec.placement.pools excludes its pool by now."""
        attempt, pools = self.attempt_state.attempt, self.source.spec.placement.pools
        allowed = attempt is not None and (not pools or attempt.pool in pools)
        return attempt if allowed and self.attempt_state.alive else None

    @property
    def full_pools(self) -> frozenset[str]:
        """Pools without room for a pod, except the pool in which an attempt runs."""
        attempt = self.attempt_state.attempt
        if attempt is None:
            return frozenset()
        pools = {
            entry.pool
            for entry in attempt.unavailable_pools
            if self.schedule.at - entry.at < FULL_POOL_BACKOFF
        }
        if self.attempt_state.alive and self.attempt_state.scheduled:
            return frozenset(pools - {attempt.pool})
        if scheduling_timed_out(self.attempt_state, self.schedule.at, self.situation.views):
            pools.add(attempt.pool)
        return frozenset(pools)


def capacity_options(query: CapacityQuery) -> CapacityOptions:
    """Return the options of both capacity classes; None for a class that spec.spot excludes."""
    attempt = query.active_attempt
    choice = None if attempt is None else _best_choice(query, attempt_capacity(attempt) or "spot")
    if attempt is not None and choice is not None and choice.variant == attempt.variant:
        progress = pace.with_measured_pace(query.progress, attempt, choice, query.source)
        query = replace(query, progress=progress)
    spot = _capacity_option(query, "spot")
    non_spot = _capacity_option(query, "non-spot")
    return CapacityOptions(progress=query.progress, spot=spot, non_spot=non_spot)


def no_capacity_verdict(query: CapacityQuery) -> StatusVerdict[BatchRunning]:
    """Return why there is no capacity option."""
    excluded = _EXCLUDED_BY_POLICY.get(query.policy)
    pools = query.source.spec.placement.pools
    tiers_by_pool = {
        offer.pool: offer.tier
        for view in query.situation.views
        for offer in view.offers
        if not pools or offer.pool in pools
    }
    if excluded is not None and tiers_by_pool and set(tiers_by_pool.values()) <= TIERS[excluded]:
        listing = ", ".join(f"{name} is {tier}" for name, tier in sorted(tiers_by_pool.items()))
        return StatusVerdict(
            BatchRunning.NO_POOL,
            f"spec.spot.policy is {query.policy}, which excludes every pool that "
            f"spec.placement.pools allows ({counted(len(tiers_by_pool), 'pool')}): {listing}",
        )
    tiers = frozenset[Tier]().union(
        *(TIERS[capacity_class] for capacity_class in TIERS if capacity_class != excluded)
    )
    verdict = place(
        query.source.spec,
        query.situation.views,
        namespace=query.situation.batch.ref.namespace,
        current=None,
        min_replicas=1,
        used_devices=query.situation.used_devices,
        tiers=tiers,
    ).verdict
    reason = _NO_CAPACITY_REASONS.get(verdict.reason, BatchRunning.NO_HARDWARE)
    return StatusVerdict(reason, verdict.message)


def _capacity_option(query: CapacityQuery, capacity_class: CapacityClass) -> CapacityOption | None:
    choice = _best_choice(query, capacity_class)
    if choice is None or _EXCLUDED_BY_POLICY.get(query.policy) == capacity_class:
        return None
    active_attempt = query.active_attempt
    class_attempt = active_attempt if attempt_capacity(active_attempt) == capacity_class else None
    if (
        class_attempt is not None
        and not query.attempt_state.scheduled
        and choice.variant != class_attempt.variant
    ):
        class_attempt = None
    start_elapsed = timedelta()
    if class_attempt is not None:
        started = query.attempt_state.started
        start_elapsed = timedelta.max if started else query.schedule.at - class_attempt.started_at
    estimate = Estimate(
        rate=pace.rows_per_second(choice, query.source, query.progress, query.situation.measured),
        start=pace.start_duration(choice, query.progress),
        start_elapsed=start_elapsed,
        available=_is_available(query, capacity_class, class_attempt, choice),
    )
    return CapacityOption(choice, estimate)


def _best_choice(query: CapacityQuery, capacity_class: CapacityClass) -> HardwareChoice | None:
    """Return the current hardware of a class, else the cheapest that meets the deadline.

    Full pools come last.
    """
    full_pools, views = query.full_pools, query.situation.views
    open_views = [view for view in views if view.pool.name not in full_pools]
    choice = _placed_choice(query, capacity_class, open_views)
    if choice is None and full_pools:
        return _placed_choice(query, capacity_class, views)
    return choice


def _placed_choice(
    query: CapacityQuery, capacity_class: CapacityClass, views: Sequence[PoolView]
) -> HardwareChoice | None:
    attempt = query.active_attempt
    return place(
        query.source.spec,
        views,
        namespace=query.situation.batch.ref.namespace,
        current=attempt.variant
        if attempt is not None and attempt_capacity(attempt) == capacity_class
        else None,
        min_replicas=1,
        used_devices=query.situation.used_devices,
        tiers=TIERS[capacity_class],
        rank=partial(sorted, key=_deadline_rank(query)),
    ).choice


def _deadline_rank(
    query: CapacityQuery,
) -> Callable[[HardwareChoice], tuple[float, float, str]]:
    """Rank hardware that meets the deadline by price per token, then the rest by speed."""

    def rank(choice: HardwareChoice) -> tuple[float, float, str]:
        rate = pace.rows_per_second(choice, query.source, query.progress, query.situation.measured)
        estimate = Estimate(rate=rate, start=pace.start_duration(choice, query.progress))
        tokens_per_second = choice.fit.limits.tokens_per_second
        if query.schedule.is_met_by(estimate):
            return (0, choice.offer.comparison_price.nanos / tokens_per_second, choice.variant)
        return (1, -tokens_per_second, choice.variant)

    return rank


def _is_available(
    query: CapacityQuery,
    capacity_class: CapacityClass,
    class_attempt: AttemptStatus | None,
    choice: HardwareChoice,
) -> bool:
    """Return whether capacity of a class is expected to be available."""
    state = query.attempt_state
    if class_attempt is not None:
        return not scheduling_timed_out(state, query.schedule.at, query.situation.views)
    # A batch leaves hardware of the other class only for visible room; otherwise it just tries,
    # on demand and reserved in any pool that is not full.
    if capacity_class == "spot":
        leaves_other = attempt_capacity(state.attempt) == "non-spot"
    elif choice.offer.pool in query.full_pools:
        return False
    else:
        leaves_other = state.alive and state.scheduled
    return not leaves_other or free_replicas(choice.offer, query.situation.used_devices) > 0
