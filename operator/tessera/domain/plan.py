"""The decision for the whole fleet: one snapshot in, one plan out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime

from tessera.domain.allotment import (
    Allotment,
    MadeOf,
    finished,
    is_timeless,
    still_made_of,
    timely,
    with_speed,
)
from tessera.domain.autoscale import Memory
from tessera.domain.batch import batches
from tessera.domain.batch.allotment import BatchAllotment
from tessera.domain.batch.names import payer
from tessera.domain.budget.budgets import BudgetView, by_namespace, open_budgets
from tessera.domain.budget.meter import Meter
from tessera.domain.budget.purse import Funding
from tessera.domain.draft import Draft, Taken, floor_of, of_variant
from tessera.domain.drafts import KeptDrafts, drafts
from tessera.domain.drain import NOBODY
from tessera.domain.grants import granted
from tessera.domain.kept import Last
from tessera.domain.model.prepare import claim_of
from tessera.domain.pools import PoolView, discover
from tessera.domain.readiness import asked_again, must_ask
from tessera.domain.repartition.displaced import displaced
from tessera.domain.repartition.turn import KeptLayouts, Repartitions, repartition
from tessera.domain.snapshot import Answer, Pod, Ref, Service, Snapshot, SpeedReading, Watch
from tessera.domain.stall import Inspection, Suspect, inspect

_UNSEEN = Inspection()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the fleet should be."""

    pools: tuple[PoolView, ...] = ()
    budgets: tuple[BudgetView, ...] = ()
    allotments: Mapping[Ref, Allotment] = field(default_factory=dict)
    batches: Mapping[Ref, BatchAllotment] = field(default_factory=dict)
    repartitions: Repartitions = field(default_factory=Repartitions)
    """What is done about layouts."""
    watches: Mapping[Ref, Watch] = field(default_factory=dict)
    """What is known of the engines, for the next snapshot."""
    asks: frozenset[Ref] = frozenset()
    """Services to be asked for a token."""
    suspects: tuple[Suspect, ...] = ()
    """Replicas to be asked how many requests they hold."""

    @property
    def memory(self) -> Mapping[Ref, Memory]:
        """What the next snapshot has to carry."""
        return {ref: allotment.scale.memory for ref, allotment in self.allotments.items()}

    @property
    def living(self) -> Mapping[Ref, BatchAllotment]:
        """The batches that still need anything: those that are not over, and last pods."""
        return {ref: one for ref, one in self.batches.items() if one.living}

    @property
    def meters(self) -> Mapping[str, Meter]:
        """What was spent, likewise."""
        return {view.budget.name: view.meter for view in self.budgets}

    @property
    def tenants(self) -> Mapping[str, BudgetView]:
        """The budget that holds in each namespace."""
        return by_namespace(self.budgets)


@dataclass(frozen=True, slots=True)
class _Quiet:
    """A service that need not be asked for a token, what that follows from, and until when."""

    service: Service
    pods: tuple[Pod, ...]
    answer: Answer | None
    until: datetime


class Kept:
    """What earlier plans found, kept by the identity of what it was made of.

    With it a turn costs what changed and not what there is. A plan comes out the same without it,
    but for moments in the autoscaler's memory, which are brought up to date when they matter.
    """

    def __init__(self) -> None:
        self.views = Last(discover)
        self.drafts = KeptDrafts()
        self.layouts = KeptLayouts()
        self.allotments: Mapping[Ref, Allotment] = {}
        self.made_of: dict[Ref, MadeOf] = {}
        self.quiet: dict[Ref, _Quiet] = {}
        self.taken: Mapping[tuple[str, str], int] = {}
        self.speeds: Mapping[Ref, tuple[SpeedReading, ...]] | None = None
        self._day = date.min

    def day(self, at: datetime) -> date:
        """The date of a moment, the same object for a whole day."""
        if at.date() != self._day:
            self._day = at.date()
        return self._day


def plan(snapshot: Snapshot, kept: Kept | None = None) -> Plan:
    """Decide for every service; the order of the input does not matter.

    Services that run keep their hardware before new ones choose; beyond that names decide. A
    service whose planning raises is set aside, and the rest is planned.
    """
    kept = kept or Kept()
    snapshot = replace(snapshot, services=kept.drafts.recalled(snapshot.services))
    views = kept.views(snapshot.pools, snapshot.nodes, kept.day(snapshot.at))
    budgets = open_budgets(snapshot, views)
    taken: Taken = Counter()
    drafted = drafts(snapshot, views, taken, kept.drafts)
    runs = batches.drafted(snapshot, views, taken)
    grants = granted(snapshot, drafted, runs, budgets)
    layouts = repartition(snapshot, views, drafted, kept.layouts)
    kept.allotments, inspections = _allotments(snapshot, drafted, grants, taken, layouts, kept)
    kept.drafts.at = snapshot.at
    asks = (ref for ref, one in kept.allotments.items() if _asks(snapshot, one, kept))
    return Plan(
        pools=views,
        budgets=budgets,
        allotments=kept.allotments,
        repartitions=layouts,
        asks=frozenset(asks),
        watches={pod: watch for one in inspections for pod, watch in one.watches.items()},
        suspects=tuple(suspect for one in inspections for suspect in one.suspects),
        batches={ref: batches.finished(runs[ref], grants.get(payer(ref))) for ref in sorted(runs)},
    )


def _allotments(
    snapshot: Snapshot,
    drafts: Mapping[Ref, Draft],
    grants: Mapping[Ref, Funding],
    taken: Mapping[tuple[str, str], int],
    layouts: Repartitions,
    kept: Kept,
) -> tuple[Mapping[Ref, Allotment], Sequence[Inspection]]:
    """The same mapping as before when nothing in it changed; and what was found of the engines."""
    found, made_of, inspections = {}, {}, []
    resolutions, watched = snapshot.resolutions or {}, _is_watched(snapshot)
    same_room, kept.taken = kept.taken == taken, dict(taken)
    readings = snapshot.readings
    speeds = readings.speeds if readings is not None and readings.speeds_at is not None else None
    same_speeds, kept.speeds = kept.speeds is speeds, speeds
    for ref, draft in drafts.items():
        claim = snapshot.claims.get(claim_of(ref)) if snapshot.claims else None
        mine = displaced(layouts.orders.values(), draft.holding.pods) if layouts.orders else NOBODY
        choice = draft.placement.choice
        tenant = choice is not None and ref in layouts.tenants.get(choice.offer.pool, ())
        surge = sum(one.surges.get(ref, 0) for one in layouts.orders.values())
        made = MadeOf(draft, grants.get(ref), claim, mine, tenant, surge)
        old = kept.allotments.get(ref)
        still = old is not None and old.pin.question not in resolutions
        if old is None or not still or not still_made_of(old, made, kept.made_of[ref]):
            old, still = finished(snapshot, made), False
        inspection = _UNSEEN
        if watched:
            inspection = _inspected(snapshot, old)
            inspections.append(inspection)
        if not (still and same_room and is_timeless(old, inspection.stall)):
            old = timely(snapshot, old, draft, taken, inspection.stall)
        if not (still and same_speeds):
            old = with_speed(readings, old)
        found[ref], made_of[ref] = old, made
    kept.made_of = made_of
    for ref in kept.quiet.keys() - drafts.keys():
        del kept.quiet[ref]
    old_ones = kept.allotments
    if len(found) == len(old_ones) and all(old_ones.get(ref) is one for ref, one in found.items()):
        return old_ones, inspections
    return found, inspections


def _asks(snapshot: Snapshot, one: Allotment, kept: Kept) -> bool:
    """Is a service that is placed to be asked for a token?"""
    if one.choice is None:
        return False
    service, answer = one.service, snapshot.answers.get(one.service.ref)
    known = kept.quiet.get(service.ref)
    if (
        known is not None
        and known.service is service
        and known.pods is one.pods
        and known.answer is answer
        and snapshot.at < known.until
    ):
        return False
    if must_ask(snapshot, service, one.pods):
        kept.quiet.pop(service.ref, None)
        return True
    until = asked_again(snapshot, service)
    kept.quiet[service.ref] = _Quiet(service, one.pods, answer, until)
    return False


def _is_watched(snapshot: Snapshot) -> bool:
    """Something was read of any engine, now or before."""
    return bool(snapshot.watches or (snapshot.readings and snapshot.readings.engines))


def _inspected(snapshot: Snapshot, one: Allotment) -> Inspection:
    """The engines of a service that is placed; elsewhere nothing is touched."""
    choice, spec = one.choice, one.service.spec
    if choice is None or spec is None:
        return _UNSEEN
    return inspect(
        snapshot,
        one.service,
        choice.fit,
        of_variant(one.pods, choice),
        leaving=one.drain.leaving,
        floor=min(floor_of(spec), one.scale.replicas),
    )
