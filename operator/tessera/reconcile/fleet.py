"""A turn: observe, decide, apply."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from tessera.domain.bill import Bill, accrue, busy
from tessera.domain.plan import Plan, PlanCache, plan
from tessera.domain.snapshot import Ref, Snapshot
from tessera.ports import Clock
from tessera.reconcile.apply import Applier
from tessera.reconcile.asking import Asker
from tessera.reconcile.loop import PERIOD
from tessera.reconcile.observe import Senses, observe
from tessera.reconcile.planning import Planning
from tessera.reconcile.store import Store

CHARGED_AFTER = timedelta(seconds=15)
"""As often as Prometheus usually looks at the bill."""
UNCHARGED = timedelta(seconds=PERIOD)
"""Changes closer upon each other are charged together, as between two turns of a quiet fleet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a turn did."""

    snapshot: Snapshot
    plan: Plan
    bill: Bill
    """What the nodes cost until now, and for what."""
    problems: Mapping[Ref, str]
    writes: int


class Fleet:
    """The fleet and the steps of its turn."""

    def __init__(
        self,
        store: Store,
        senses: Senses,
        applier: Applier,
        asker: Asker,
        clock: Clock,
        planning: Planning | None = None,
    ) -> None:
        self._store = store
        self._senses = senses
        self._applier = applier
        self._asker = asker
        self._clock = clock
        self._planning = planning
        self._kept = PlanCache()
        self._uncharged: tuple[Snapshot, Plan] | None = None

    async def turn(self, hurried: Callable[[], bool] = lambda: False) -> Outcome:
        """Bring the fleet closer to what is wanted; repeating it does no harm.

        What can wait waits while `hurried` says that something new is there for the next turn.
        """
        before = self._applier.writes
        snapshot = observe(self._store, self._senses, self._clock())
        decision = plan(snapshot, self._kept)
        self._senses.memory = dict(decision.scaling_history)
        self._senses.watches = dict(decision.engine_progress)
        self._senses.meters = dict(decision.meters)
        self._senses.last_seen.clear()
        self._charge(snapshot, decision)
        self._asker.start(snapshot, decision)
        if self._planning is not None:
            self._planning.start(decision.repartitions.question)
        problems = await self._applier.carry_out(
            snapshot, decision, monitored=self._senses.monitored, hurried=hurried
        )
        self._senses.refused = dict(self._applier.refused_jobs)
        self._senses.held = dict(self._applier.layouts.held)
        self._senses.unwritten = tuple(self._applier.layouts.problems)
        return Outcome(
            snapshot=snapshot,
            plan=decision,
            bill=self._senses.bill,
            problems=problems,
            writes=self._applier.writes - before,
        )

    def _charge(self, snapshot: Snapshot, decision: Plan) -> None:
        """Nothing is charged while all stays as it was; then it is charged as it was, but not again
        so soon after the last time."""
        bill, before = self._senses.bill, self._uncharged
        if bill.as_of is not None and timedelta() <= snapshot.at - bill.as_of < UNCHARGED:
            return
        due = bill.as_of is None or snapshot.at - bill.as_of >= CHARGED_AFTER
        if before is not None and not _same(before, snapshot, decision):
            bill, due = accrue(bill, before[0], before[1].pools), True
        self._uncharged = None if due else (snapshot, decision)
        self._senses.bill = accrue(bill, snapshot, decision.pools) if due else bill


def _same(before: tuple[Snapshot, Plan], snapshot: Snapshot, decision: Plan) -> bool:
    """What the bill is made of."""
    old, decided = before
    return (
        old.pods is snapshot.pods
        and old.nodes is snapshot.nodes
        and decided.pools is decision.pools
        and busy(old).keys() == busy(snapshot).keys()
    )
