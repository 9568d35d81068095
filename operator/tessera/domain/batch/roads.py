"""The hardware that a batch could go on with now: one choice of spot, one that stays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.accelerator_pool import Tier
from tessera.api.batch_inference import AttemptStatus, ProgressStatus, SpotPolicy
from tessera.domain.batch import pace
from tessera.domain.batch.attempt import Standing
from tessera.domain.batch.reasons import BatchRunning
from tessera.domain.batch.situation import Situation
from tessera.domain.batch.spec import Source
from tessera.domain.deadline import MARGIN, Course, Lane, Way
from tessera.domain.placement import NON_SPOT_TIERS, HardwareChoice, Rank, free_replicas, place
from tessera.domain.pools import PoolView
from tessera.domain.reasons import PlacementReason, StatusVerdict

PATIENCE = timedelta(seconds=60)
"""A pod that finds no node for so long says that its hardware is not to be had."""
FULL = timedelta(minutes=10)
"""A pool that was waited for in vain is left alone for so long, if there is another way."""
TIERS: Mapping[Way, frozenset[Tier]] = {"spot": frozenset({"spot"}), "steady": NON_SPOT_TIERS}
_EXCLUDED: Mapping[SpotPolicy, Way] = {"only": "steady", "never": "spot"}
_NOWHERE = {
    PlacementReason.NO_POOL: BatchRunning.NO_POOL,
    PlacementReason.NO_HARDWARE: BatchRunning.NO_HARDWARE,
    PlacementReason.MIXED_CURRENCIES: BatchRunning.MIXED_CURRENCIES,
    PlacementReason.TOO_LARGE: BatchRunning.TOO_LARGE,
}


@dataclass(frozen=True, slots=True)
class Road:
    """Hardware, and how it would carry the batch."""

    choice: HardwareChoice
    lane: Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class Roads:
    """What there is, and the progress with the pace that it was judged by."""

    progress: ProgressStatus
    spot: Road | None
    steady: Road | None

    def of(self, way: Way) -> Road | None:
        return self.spot if way == "spot" else self.steady


def way_of(attempt: AttemptStatus | None) -> Way | None:
    """Where an attempt runs or ran."""
    if attempt is None:
        return None
    return "spot" if attempt.tier == "spot" else "steady"


def waits(standing: Standing, now: datetime) -> bool:
    """Has the attempt looked for a node for too long?"""
    if standing.attempt is None or not standing.alive or standing.bound:
        return False
    return now - standing.attempt.started_at > PATIENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Everything that the roads depend on."""

    situation: Situation
    source: Source
    policy: SpotPolicy
    standing: Standing
    progress: ProgressStatus
    course: Course

    @property
    def mine(self) -> AttemptStatus | None:
        """The attempt that lasts, unless its pool is not allowed any more."""
        attempt, pools = self.standing.attempt, self.source.spec.placement.pools
        allowed = attempt is not None and (not pools or attempt.pool in pools)
        return attempt if allowed and self.standing.alive else None

    @property
    def full(self) -> frozenset[str]:
        """Pools that were waited for in vain; never the one in which an attempt is at work."""
        attempt = self.standing.attempt
        if attempt is None:
            return frozenset()
        found = {one.pool for one in attempt.full if self.course.at - one.at < FULL}
        if self.standing.alive and self.standing.bound:
            return frozenset(found - {attempt.pool})
        waiting = {attempt.pool} if waits(self.standing, self.course.at) else set()
        return frozenset(found | waiting)


def roads(outlook: Outlook) -> Roads:
    """Look at both ways; one that the policy excludes is none."""
    mine = outlook.mine
    own = None if mine is None else _choice(outlook, way_of(mine) or "spot")
    if mine is not None and own is not None and own.variant == mine.variant:
        progress = pace.paced(outlook.progress, mine, own, outlook.source)
        outlook = replace(outlook, progress=progress)
    return Roads(
        progress=outlook.progress, spot=_road(outlook, "spot"), steady=_road(outlook, "steady")
    )


def nowhere(outlook: Outlook) -> StatusVerdict[BatchRunning]:
    """Why there is no road at all."""
    excluded = _EXCLUDED.get(outlook.policy)
    pools = outlook.source.spec.placement.pools
    seen = {
        offer.pool: offer.tier
        for view in outlook.situation.views
        for offer in view.offers
        if not pools or offer.pool in pools
    }
    if excluded is not None and seen and set(seen.values()) <= TIERS[excluded]:
        told = ", ".join(f"{name} is {tier}" for name, tier in sorted(seen.items()))
        return StatusVerdict(
            BatchRunning.NO_POOL,
            f"spec.spot.policy {outlook.policy} leaves 0 of the {len(seen)} pools that "
            f"spec.placement.pools allows: {told}",
        )
    tiers = frozenset[Tier]().union(*(TIERS[way] for way in TIERS if way != excluded))
    verdict = place(
        outlook.source.spec,
        outlook.situation.views,
        current=None,
        min_replicas=1,
        used_devices=outlook.situation.taken,
        tiers=tiers,
    ).verdict
    reason = _NOWHERE.get(verdict.reason, BatchRunning.NO_HARDWARE)
    return StatusVerdict(reason, verdict.message)


def _road(outlook: Outlook, way: Way) -> Road | None:
    choice = _choice(outlook, way)
    if choice is None or _EXCLUDED.get(outlook.policy) == way:
        return None
    mine = outlook.mine if way_of(outlook.mine) == way else None
    if mine is not None and not outlook.standing.bound and choice.variant != mine.variant:
        mine = None
    lane = Lane(
        rate=pace.rate(choice, outlook.source, outlook.progress, outlook.situation.measured),
        start=pace.start(choice, outlook.progress),
        begun=_begun(outlook, mine),
        free=_spot_free(outlook, mine, choice)
        if way == "spot"
        else _steady_free(outlook, mine, choice),
    )
    return Road(choice, lane)


def _choice(outlook: Outlook, way: Way) -> HardwareChoice | None:
    """The hardware of a way: where the batch is already, else the cheapest that is in time.

    Pools that are full come last.
    """
    full, views = outlook.full, outlook.situation.views
    others = tuple(view for view in views if view.pool.name not in full)
    found = _placed(outlook, way, others)
    return found if found is not None or not full else _placed(outlook, way, views)


def _placed(outlook: Outlook, way: Way, views: Sequence[PoolView]) -> HardwareChoice | None:
    mine = outlook.mine
    return place(
        outlook.source.spec,
        views,
        current=mine.variant if mine is not None and way_of(mine) == way else None,
        min_replicas=1,
        used_devices=outlook.situation.taken,
        tiers=TIERS[way],
        rank=_in_time(outlook),
    ).choice


def _in_time(outlook: Outlook) -> Rank:
    """Hardware that makes the deadline by the price of a token, then the rest by speed."""

    def rank(choice: HardwareChoice) -> tuple[float, float, str]:
        lane = Lane(
            rate=pace.rate(choice, outlook.source, outlook.progress, outlook.situation.measured),
            start=pace.start(choice, outlook.progress),
        )
        speed = choice.fit.limits.tokens_per_second
        if lane.need(outlook.course.undone) - MARGIN <= outlook.course.left:
            return (0, choice.offer.comparison_price.nanos / speed, choice.variant)
        return (1, -speed, choice.variant)

    return rank


def _begun(outlook: Outlook, mine: AttemptStatus | None) -> timedelta:
    """How much of its start an attempt that lasts has behind it: all of it once it is at work."""
    if mine is None:
        return timedelta()
    return timedelta.max if outlook.standing.started else outlook.course.at - mine.started_at


def _spot_free(outlook: Outlook, mine: AttemptStatus | None, choice: HardwareChoice) -> bool:
    """Who leaves steady hardware for it wants to see room; anybody else just tries."""
    if mine is not None:
        return not waits(outlook.standing, outlook.course.at)
    if way_of(outlook.standing.attempt) == "steady":
        return free_replicas(choice.offer, outlook.situation.taken) > 0
    return True


def _steady_free(outlook: Outlook, mine: AttemptStatus | None, choice: HardwareChoice) -> bool:
    """Who is at work on spot wants to see room; anybody else tries, unless that was in vain."""
    if mine is not None:
        return not waits(outlook.standing, outlook.course.at)
    if choice.offer.pool in outlook.full:
        return False
    at_work = outlook.standing.alive and outlook.standing.bound
    return not at_work or free_replicas(choice.offer, outlook.situation.taken) > 0
