"""One reconcile cycle: observe, decide, hand over what is to be written."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tessera.domain.budget.metering import MAX_CLOCK_ERROR, merge_records
from tessera.domain.config import Config
from tessera.domain.cost.bill import Bill, accrue
from tessera.domain.cost.device_use import busy_since
from tessera.domain.cost.energy import EnergyMeter, meter_energy, restored_meter
from tessera.domain.incremental import Incremental
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import Plan, PlanMemory, plan
from tessera.ports import Clock
from tessera.reconcile.apply import Applier
from tessera.reconcile.layout_solving import BackgroundPlanner
from tessera.reconcile.loop import PERIOD, Backlog
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
    energy: EnergyMeter = field(default_factory=EnergyMeter)
    """What the GPUs have used until now."""
    problems: Mapping[Ref, str]
    """What was refused when a service was written last."""
    defects: tuple[Exception, ...] = ()
    """What writing raised since the last cycle; each cost the object that it was raised for."""
    writes: int
    """Writing requests since the last cycle."""
    cpu_seconds: float
    """What observing and deciding took."""
    backlog: Backlog = Backlog.NONE


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
        self._incremental = Incremental()
        self._restored = False
        self._last_at: datetime | None = None
        self.memory = PlanMemory()
        """What the next plan needs to know of earlier ones."""
        self.bill = Bill()
        """What the nodes have cost until now."""
        self.energy = EnergyMeter()
        """What the GPUs have used until now."""
        self._writes = 0
        self._pending_charge: tuple[Snapshot, Plan] | None = None

    async def reconcile(self) -> ReconcileOutcome:
        """Decide what moves the fleet toward the desired state, and hand it to the queue of writes.

        Repeating it does no harm.
        """
        async with self._applier.queue.paused():
            await self._restore()
            started = time.thread_time()
            observations = self._observations
            snapshot = observe(self._store, observations, self._read_clock())
            memory = self._memory_with_results()
            decision = self._incremental.run(plan, self._config, snapshot, memory)
            self.memory = memory = memory.after(decision)
            self._applier.hand_over(
                snapshot, decision, memory.spend_records, monitored=observations.monitored
            )
        _try(self._charge, snapshot, decision)
        _try(self._meter, snapshot, decision)
        _try(self._prober.start, snapshot, decision)
        if self._background_planner is not None:
            self._background_planner.start(decision.repartitions.layout_problem)
        writes_before, self._writes = self._writes, self._applier.writes
        return ReconcileOutcome(
            snapshot=snapshot,
            plan=decision,
            bill=self.bill,
            energy=self.energy,
            problems=dict(self._applier.services.problems),
            defects=tuple(self._applier.queue.defects.take()),
            writes=self._writes - writes_before,
            cpu_seconds=time.thread_time() - started,
            backlog=self._applier.queue.backlog,
        )

    def _read_clock(self) -> datetime:
        """Return the time; if it was set back, forget what was dated before, as a restart does."""
        at, observations = self._clock(), self._observations
        if self._last_at is None:
            observations.set_back_at = at  # a new process does not know what the clock was
        elif self._last_at - at > MAX_CLOCK_ERROR:
            log.warning("the clock was set back by %s", self._last_at - at)
            observations.set_back_at = at
            observations.answers.forget_measurements()
            self.memory = self.memory.without_moments()
        self._last_at = at
        return at

    async def write(self) -> None:
        """Write forever what the cycles decide."""
        await self._applier.queue.run()

    def _memory_with_results(self) -> PlanMemory:
        """Return the memory with what was refused, and with the layouts solved since."""
        applier, solved = self._applier, self._observations.layouts
        return replace(
            self.memory,
            job_creation_errors=dict(applier.batches.job_creation_errors),
            layouts=replace(
                self.memory.layouts,
                solution=solved.solution,
                solver_error=solved.error,
                blocked_evictions=dict(applier.layouts.blocked_evictions),
                write_errors=tuple(applier.layouts.problems),
            ),
        )

    async def _restore(self) -> None:
        """Continue once from what Prometheus and the copy of the spend know of the time before."""
        if self._restored:
            return
        copy, history = await self._applier.spend_records.read(), self._observations.history
        self.memory = replace(
            self.memory,
            scaling_history=history.scaling,
            spend_records=merge_records(copy, history.spend_records, self._clock()),
            last_seen=history.last_seen,
        )
        self.bill = Bill(as_of=history.billed_until)
        self.energy = restored_meter(history.energy)
        self._restored = True

    def _charge(self, snapshot: Snapshot, decision: Plan) -> None:
        """Charge the time since the last charge, by the state that held until now.

        Nothing is charged while the state stays the same, nor again soon after the last charge.
        """
        bill, before = self.bill, self._pending_charge
        if bill.as_of is not None and timedelta() <= snapshot.at - bill.as_of < MIN_CHARGE_INTERVAL:
            return
        due = bill.as_of is None or snapshot.at - bill.as_of >= CHARGE_INTERVAL
        if before is not None and not _is_same_charge(before, snapshot, decision):
            bill, due = accrue(bill, before[0], before[1].pools), True
        self._pending_charge = None if due else (snapshot, decision)
        self.bill = accrue(bill, snapshot, decision.pools) if due else bill

    def _meter(self, snapshot: Snapshot, decision: Plan) -> None:
        """Charge the energy up to the newest samples of GPUs."""
        self.energy = meter_energy(self.energy, snapshot, decision.pools)


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
