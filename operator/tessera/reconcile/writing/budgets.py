"""Write the statuses of TenantBudgets, with the record of what was spent."""

from collections.abc import Iterator, Sequence, Set
from datetime import datetime
from functools import partial

from tessera.domain.budget.budgets import BudgetView
from tessera.domain.incremental import Incremental, reused_per_object
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.status.budget import budget_status
from tessera.domain.steps import Step
from tessera.reconcile.writing.write_order import Stage, Work, WorkKey, work_key
from tessera.reconcile.writing.writer import Writer, WriteStep


class BudgetApplier:
    """Writes the status of each budget whose record is due."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._incremental = Incremental()
        self._unrecorded = set[str]()
        """Budgets whose last status was refused or could not be built."""
        self.refusals: dict[str, list[str]] = {}
        """Why there is no record of the last cycle, by budget."""

    def work(self, snapshot: Snapshot, plan: Plan) -> Iterator[Work]:
        """Yield the work of budgets whose status is not as it is in the cluster."""
        settled = self._incremental.run(_settled, plan.budgets, snapshot.at)
        for view in plan.budgets:
            name = view.budget.name
            if name not in settled or name in self._unrecorded:
                yield Work(budget_key(name), partial(self.apply, view, snapshot))
            else:
                self.refusals.pop(name, None)

    async def apply(self, view: BudgetView, snapshot: Snapshot) -> None:
        """Write the status if its record is due, before anything that costs money."""
        self.refusals[view.budget.name] = await self.write_budget_status(view, snapshot)

    @WriteStep
    async def write_budget_status(self, view: BudgetView, snapshot: Snapshot) -> list[str]:
        """Write the status; return why there is no record of this cycle."""
        name = view.budget.name
        must_record = name in self._unrecorded
        self._unrecorded.add(name)
        status = budget_status(view, snapshot.at, must_record=must_record)
        refusals: list[str] = []
        if status != view.budget.status:
            refusals = await self._writer.apply_status(TENANT_BUDGETS, Ref("", name), status)
        if not refusals:
            self._unrecorded.discard(name)
        return refusals


def _settled(views: Sequence[BudgetView], at: datetime) -> Set[str]:
    """Return the budgets whose status is the last one."""
    return {view.budget.name for view in views if is_settled(view.budget.name, view, at=at)}


@reused_per_object
def _is_settled(_name: str, view: BudgetView, *, at: datetime) -> bool:
    return budget_status(view, at) == view.budget.status


# One whose status cannot be built says so when it is written.
is_settled = Step(_is_settled, lambda *_, **_n: False)


def budget_key(name: str) -> WorkKey:
    """Return the key of the work of a budget."""
    return work_key(TENANT_BUDGETS, Ref("", name), Stage.FLEET)
