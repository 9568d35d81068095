"""A turn: observe, decide, apply."""

from collections.abc import Mapping
from dataclasses import dataclass

from tessera.domain.bill import Bill, accrue
from tessera.domain.plan import Plan, plan
from tessera.domain.snapshot import Ref, Snapshot
from tessera.ports import Clock
from tessera.reconcile.apply import Applier
from tessera.reconcile.asking import Asker
from tessera.reconcile.observe import Senses, observe
from tessera.reconcile.store import Store


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
        self, store: Store, senses: Senses, applier: Applier, asker: Asker, clock: Clock
    ) -> None:
        self._store = store
        self._senses = senses
        self._applier = applier
        self._asker = asker
        self._clock = clock

    async def turn(self) -> Outcome:
        """Bring the fleet closer to what is wanted; repeating it does no harm."""
        before = self._applier.writes
        snapshot = observe(self._store, self._senses, self._clock())
        decision = plan(snapshot)
        self._senses.memory = dict(decision.memory)
        self._senses.watches = dict(decision.watches)
        self._senses.meters = dict(decision.meters)
        self._senses.last_seen.clear()
        self._senses.bill = accrue(self._senses.bill, snapshot, decision.pools)
        self._asker.start(snapshot, decision)
        problems = await self._applier.carry_out(
            snapshot, decision, monitored=self._senses.monitored
        )
        self._senses.refused = dict(self._applier.refused_jobs)
        return Outcome(
            snapshot=snapshot,
            plan=decision,
            bill=self._senses.bill,
            problems=problems,
            writes=self._applier.writes - before,
        )
