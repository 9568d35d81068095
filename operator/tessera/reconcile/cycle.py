"""One reconcile cycle: observe, decide, apply."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from tessera.domain.billing.bill import Bill, accrue, busy_since
from tessera.domain.budget.metering import merge_records
from tessera.domain.config import Config
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.plan import Plan, PlanCache, plan
from tessera.ports import Clock
from tessera.reconcile.apply import Applier
from tessera.reconcile.layout_solving import BackgroundPlanner
from tessera.reconcile.loop import PERIOD
from tessera.reconcile.observe import Observations, observe
from tessera.reconcile.prober import Prober
from tessera.reconcile.store import Store

log = logging.getLogger("tessera")

# The usual scrape interval, at which Prometheus reads the bill.
CHARGE_INTERVAL = timedelta(seconds=15)
# Changes within this interval are charged together, as between two cycles of a quiet fleet.
MIN_CHARGE_INTERVAL = timedelta(seconds=PERIOD)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileOutcome:
    """The outcome of one reconcile cycle."""

    snapshot: Snapshot
    plan: Plan
    bill: Bill
    """What the nodes have cost until now, by tenant and line."""
    problems: Mapping[Ref, str]
    writes: int


class FleetReconciler:
    """The fleet, and the steps of its reconcile cycle."""

    def __init__(  # noqa: PLR0913 - how one process is wired
        self,
        config: Config,
        store: Store,
        observations: Observations,
        applier: Applier,
        prober: Prober,
        clock: Clock,
        *,
        background_planner: BackgroundPlanner | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._observations = observations
        self._applier = applier
        self._prober = prober
        self._clock = clock
        self._background_planner = background_planner
        self._plan_cache = PlanCache()
        self._spend_restored = False
        self._pending_charge: tuple[Snapshot, Plan] | None = None

    async def reconcile(
        self, change_pending: Callable[[], bool] = lambda: False
    ) -> ReconcileOutcome:
        """Move the fleet toward the desired state; repeating it does no harm.

        Deferrable work waits while `change_pending` returns True: the next cycle then comes first.
        """
        writes_before = self._applier.writes
        await self._restore_spend()
        observations = self._observations
        snapshot = observe(self._store, observations, self._clock())
        decision = plan(self._config, snapshot, observations.memory, self._plan_cache)
        observations.memory = observations.memory.after(decision)
        _try(self._charge, snapshot, decision)
        _try(self._prober.start, snapshot, decision)
        if self._background_planner is not None:
            self._background_planner.start(decision.repartitions.layout_problem)
        problems = await self._applier.apply_plan(
            snapshot, decision, monitored=observations.monitored, change_pending=change_pending
        )
        await self._applier.spend_records.write(observations.memory.spend_records, snapshot.at)
        # The background planner may have replaced the solution while the plan was applied.
        memory = observations.memory
        observations.memory = replace(
            memory,
            job_creation_errors=dict(self._applier.batches.job_creation_errors),
            layouts=replace(
                memory.layouts,
                blocked_evictions=dict(self._applier.layouts.blocked_evictions),
                write_errors=tuple(self._applier.layouts.problems),
            ),
        )
        return ReconcileOutcome(
            snapshot=snapshot,
            plan=decision,
            bill=observations.bill,
            problems=problems,
            writes=self._applier.writes - writes_before,
        )

    async def _restore_spend(self) -> None:
        """Read once what budgets spent that were deleted or lost their status."""
        if self._spend_restored:
            return
        memory = self._observations.memory
        copy = await self._applier.spend_records.read()
        records = merge_records(copy, memory.spend_records, self._clock())
        self._observations.memory = replace(memory, spend_records=records)
        self._spend_restored = True

    def _charge(self, snapshot: Snapshot, decision: Plan) -> None:
        """Charge the time since the last charge, by the state that held until now.

        Nothing is charged while the state stays the same, nor again soon after the last charge.
        """
        bill, before = self._observations.bill, self._pending_charge
        if bill.as_of is not None and timedelta() <= snapshot.at - bill.as_of < MIN_CHARGE_INTERVAL:
            return
        due = bill.as_of is None or snapshot.at - bill.as_of >= CHARGE_INTERVAL
        if before is not None and not _is_same_charge(before, snapshot, decision):
            bill, due = accrue(bill, before[0], before[1].pools), True
        self._pending_charge = None if due else (snapshot, decision)
        self._observations.bill = accrue(bill, snapshot, decision.pools) if due else bill


def _try(work: Callable[[Snapshot, Plan], None], snapshot: Snapshot, decision: Plan) -> None:
    """Do what stands beside the plan: whatever it raises, the plan is applied."""
    try:
        work(snapshot, decision)
    except Exception:
        log.exception("%s failed, retrying in the next cycle", work.__qualname__)


def _is_same_charge(before: tuple[Snapshot, Plan], snapshot: Snapshot, decision: Plan) -> bool:
    """Return whether both states lead to the same bill."""
    previous, decided = before
    return (
        previous.pods is snapshot.pods
        and previous.nodes is snapshot.nodes
        and decided.pools is decision.pools
        and busy_since(previous).keys() == busy_since(snapshot).keys()
    )
