"""The hardware that a batch could go on with now: one choice of spot, one that stays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.accelerator_pool import Tier
from tessera.api.batch_inference import AttemptStatus, ProgressStatus, SpotPolicy
from tessera.api.batch_reasons import BatchRunning
from tessera.api.reasons import PlacementReason, StatusVerdict
from tessera.domain.batch import pace
from tessera.domain.batch.attempt_state import AttemptState
from tessera.domain.batch.schedule import SAFETY_MARGIN, CapacityClass, Estimate, Schedule
from tessera.domain.batch.situation import Situation
from tessera.domain.batch.spec import BatchModelSource
from tessera.domain.hardware.pools import PoolView
from tessera.domain.placement.placement import (
    NON_SPOT_TIERS,
    HardwareChoice,
    Rank,
    free_replicas,
    place,
)

# A pod that finds no node for so long says that its hardware is not to be had.
SCHEDULING_TIMEOUT = timedelta(seconds=60)
# A pool that was waited for in vain is left alone for so long, if there is another way.
FULL_POOL_BACKOFF = timedelta(minutes=10)
TIERS: Mapping[CapacityClass, frozenset[Tier]] = {
    "spot": frozenset({"spot"}),
    "steady": NON_SPOT_TIERS,
}
_EXCLUDED_BY_POLICY: Mapping[SpotPolicy, CapacityClass] = {"only": "steady", "never": "spot"}
_NO_CAPACITY_REASONS = {
    PlacementReason.NO_POOL: BatchRunning.NO_POOL,
    PlacementReason.NO_HARDWARE: BatchRunning.NO_HARDWARE,
    PlacementReason.MIXED_CURRENCIES: BatchRunning.MIXED_CURRENCIES,
    PlacementReason.TOO_LARGE: BatchRunning.TOO_LARGE,
}


@dataclass(frozen=True, slots=True)
class CapacityOption:
    """Hardware, and how it would carry the batch."""

    choice: HardwareChoice
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityOptions:
    """What there is, and the progress with the pace that it was judged by."""

    progress: ProgressStatus
    spot: CapacityOption | None
    steady: CapacityOption | None

    def of(self, capacity_class: CapacityClass) -> CapacityOption | None:
        return self.spot if capacity_class == "spot" else self.steady


def attempt_capacity(attempt: AttemptStatus | None) -> CapacityClass | None:
    """Where an attempt runs or ran."""
    if attempt is None:
        return None
    return "spot" if attempt.tier == "spot" else "steady"


def scheduling_timed_out(state: AttemptState, now: datetime) -> bool:
    """Has the attempt looked for a node for too long?"""
    if state.attempt is None or not state.alive or state.scheduled:
        return False
    return now - state.attempt.started_at > SCHEDULING_TIMEOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityQuery:
    """Everything that the roads depend on."""

    situation: Situation
    source: BatchModelSource
    policy: SpotPolicy
    attempt_state: AttemptState
    progress: ProgressStatus
    schedule: Schedule

    @property
    def active_attempt(self) -> AttemptStatus | None:
        """The attempt that lasts, unless its pool is not allowed any more."""
        attempt, pools = self.attempt_state.attempt, self.source.spec.placement.pools
        allowed = attempt is not None and (not pools or attempt.pool in pools)
        return attempt if allowed and self.attempt_state.alive else None

    @property
    def full_pools(self) -> frozenset[str]:
        """Pools that were waited for in vain; never the one in which an attempt is at work."""
        attempt = self.attempt_state.attempt
        if attempt is None:
            return frozenset()
        pools = {
            entry.pool for entry in attempt.full if self.schedule.at - entry.at < FULL_POOL_BACKOFF
        }
        if self.attempt_state.alive and self.attempt_state.scheduled:
            return frozenset(pools - {attempt.pool})
        unschedulable = (
            {attempt.pool} if scheduling_timed_out(self.attempt_state, self.schedule.at) else set()
        )
        return frozenset(pools | unschedulable)


def capacity_options(query: CapacityQuery) -> CapacityOptions:
    """Look at both ways; one that the policy excludes is none."""
    attempt = query.active_attempt
    choice = None if attempt is None else _best_choice(query, attempt_capacity(attempt) or "spot")
    if attempt is not None and choice is not None and choice.variant == attempt.variant:
        progress = pace.with_measured_pace(query.progress, attempt, choice, query.source)
        query = replace(query, progress=progress)
    return CapacityOptions(
        progress=query.progress,
        spot=_capacity_option(query, "spot"),
        steady=_capacity_option(query, "steady"),
    )


def no_capacity_verdict(query: CapacityQuery) -> StatusVerdict[BatchRunning]:
    """Why there is no road at all."""
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
            f"spec.spot.policy {query.policy} leaves 0 of the {len(tiers_by_pool)} pools that "
            f"spec.placement.pools allows: {listing}",
        )
    tiers = frozenset[Tier]().union(
        *(TIERS[capacity_class] for capacity_class in TIERS if capacity_class != excluded)
    )
    verdict = place(
        query.source.spec,
        query.situation.views,
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
    attempt = (
        query.active_attempt if attempt_capacity(query.active_attempt) == capacity_class else None
    )
    if (
        attempt is not None
        and not query.attempt_state.scheduled
        and choice.variant != attempt.variant
    ):
        attempt = None
    estimate = Estimate(
        rate=pace.rows_per_second(choice, query.source, query.progress, query.situation.measured),
        start=pace.start_duration(choice, query.progress),
        start_elapsed=_start_elapsed(query, attempt),
        available=_spot_available(query, attempt, choice)
        if capacity_class == "spot"
        else _steady_available(query, attempt, choice),
    )
    return CapacityOption(choice, estimate)


def _best_choice(query: CapacityQuery, capacity_class: CapacityClass) -> HardwareChoice | None:
    """The hardware of a way: where the batch is already, else the cheapest that is in time.

    Pools that are full come last.
    """
    full_pools, views = query.full_pools, query.situation.views
    open_views = tuple(view for view in views if view.pool.name not in full_pools)
    choice = _placed_choice(query, capacity_class, open_views)
    return (
        choice
        if choice is not None or not full_pools
        else _placed_choice(query, capacity_class, views)
    )


def _placed_choice(
    query: CapacityQuery, capacity_class: CapacityClass, views: Sequence[PoolView]
) -> HardwareChoice | None:
    attempt = query.active_attempt
    return place(
        query.source.spec,
        views,
        current=attempt.variant
        if attempt is not None and attempt_capacity(attempt) == capacity_class
        else None,
        min_replicas=1,
        used_devices=query.situation.used_devices,
        tiers=TIERS[capacity_class],
        rank=_deadline_rank(query),
    ).choice


def _deadline_rank(query: CapacityQuery) -> Rank:
    """Hardware that makes the deadline by the price of a token, then the rest by speed."""

    def rank(choice: HardwareChoice) -> tuple[float, float, str]:
        estimate = Estimate(
            rate=pace.rows_per_second(
                choice, query.source, query.progress, query.situation.measured
            ),
            start=pace.start_duration(choice, query.progress),
        )
        speed = choice.fit.limits.tokens_per_second
        if (
            estimate.time_needed(query.schedule.remaining_rows) - SAFETY_MARGIN
            <= query.schedule.time_left
        ):
            return (0, choice.offer.comparison_price.nanos / speed, choice.variant)
        return (1, -speed, choice.variant)

    return rank


def _start_elapsed(query: CapacityQuery, attempt: AttemptStatus | None) -> timedelta:
    """How much of its start an attempt that lasts has behind it: all of it once it is at work."""
    if attempt is None:
        return timedelta()
    return timedelta.max if query.attempt_state.started else query.schedule.at - attempt.started_at


def _spot_available(
    query: CapacityQuery, attempt: AttemptStatus | None, choice: HardwareChoice
) -> bool:
    """Who leaves steady hardware for it wants to see room; anybody else just tries."""
    if attempt is not None:
        return not scheduling_timed_out(query.attempt_state, query.schedule.at)
    if attempt_capacity(query.attempt_state.attempt) == "steady":
        return free_replicas(choice.offer, query.situation.used_devices) > 0
    return True


def _steady_available(
    query: CapacityQuery, attempt: AttemptStatus | None, choice: HardwareChoice
) -> bool:
    """Who is at work on spot wants to see room; anybody else tries, unless that was in vain."""
    if attempt is not None:
        return not scheduling_timed_out(query.attempt_state, query.schedule.at)
    if choice.offer.pool in query.full_pools:
        return False
    running = query.attempt_state.alive and query.attempt_state.scheduled
    return not running or free_replicas(choice.offer, query.situation.used_devices) > 0
