"""Hand what a plan decided to the queue of writes: what differs, and only that."""

from collections.abc import Callable, Mapping
from functools import partial

from tessera.domain.budget.meter import SpendRecord
from tessera.domain.config import Config
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tessera.domain.names import SPEND_RECORDS_NAME
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.ports import Cluster, ClusterObject
from tessera.reconcile.store import Store, forget_all_but
from tessera.reconcile.writing.batches import BatchApplier
from tessera.reconcile.writing.budgets import BudgetApplier, budget_key
from tessera.reconcile.writing.gates import GateApplier
from tessera.reconcile.writing.layouts import LayoutApplier
from tessera.reconcile.writing.service_work import Prerequisites
from tessera.reconcile.writing.services import ServiceApplier
from tessera.reconcile.writing.shared_objects import (
    Installation,
    PrePullApplier,
    SharedObjectApplier,
    shared_key,
)
from tessera.reconcile.writing.spend_records import SpendRecordStore
from tessera.reconcile.writing.statuses import StatusApplier
from tessera.reconcile.writing.write_order import Stage, Work, WorkKey, work_key
from tessera.reconcile.writing.write_queue import WriteQueue
from tessera.reconcile.writing.writer import RecordEvents, Writer
from tessera.resources.api_resources import DAEMON_SETS, SPEND_RECORDS
from tessera.resources.manifest import ObjectKey

_POOLS = WorkKey(ObjectKey(ACCELERATOR_POOLS.plural, "", ""), Stage.FLEET)


class Applier:
    """Turns each plan into work for the queue; one work has all writes that need an order."""

    def __init__(  # noqa: PLR0913 - how one process is wired
        self,
        config: Config,
        cluster: Cluster,
        store: Store,
        installation: Installation,
        is_leader: Callable[[], bool],
        *,
        record_events: RecordEvents = lambda *_: None,
        wake: Callable[[], None] = lambda: None,
        end_burst: Callable[[], None] = lambda: None,
    ) -> None:
        """Create an applier; see WriteQueue for what it calls."""
        self.queue = WriteQueue(wake, end_burst)
        self._store = store
        self._writer = writer = Writer(
            cluster,
            store,
            is_leader,
            is_superseded=self.queue.is_superseded,
            record_events=record_events,
        )
        image = installation.batch_image
        self.services = ServiceApplier(writer, store, config, image, self.queue.defects)
        self._budgets = BudgetApplier(writer)
        self._shared = SharedObjectApplier(writer, installation)
        self._pulls = PrePullApplier(writer, config, installation)
        self.gates = GateApplier(writer, config, installation)
        self._statuses = StatusApplier(writer, config)
        self.batches = BatchApplier(config, cluster, image, writer, self.queue.defects)
        self.layouts = LayoutApplier(writer, store, namespace=installation.mig_namespace)
        self.spend_records = SpendRecordStore(cluster, installation.namespace, writer)
        self._namespace = installation.namespace
        self._known = set[Ref]()
        """The services and batches of the last plan."""

    @property
    def writes(self) -> int:
        """Writing requests since the start of the process."""
        return self._writer.requests

    def hand_over(
        self,
        snapshot: Snapshot,
        plan: Plan,
        spend_records: Mapping[str, SpendRecord],
        *,
        monitored: bool,
    ) -> None:
        """Replace the work that an earlier plan left undone.

        An error for one object is reported on its service and stops no other.
        """
        self._forget(plan)
        existing, find = self._store.children_by_service(), partial(self._prerequisites, plan)
        self.queue.replace(
            (
                Work(_POOLS, partial(self.layouts.apply, snapshot, plan)),
                *self._budgets.work(snapshot, plan),
                *self._shared.work(plan, existing.get(None, ()), monitored=monitored),
                *self.services.work(snapshot, plan, existing, find),
                *self.batches.work(snapshot, plan, find),
                *self.gates.work(snapshot, plan),
                *self._statuses.work(snapshot, plan),
                Work(
                    work_key(DAEMON_SETS, Ref(self._pulls.namespace, ""), Stage.STATUS),
                    partial(self._pull_and_prune, plan, existing),
                ),
                Work(
                    work_key(SPEND_RECORDS, Ref(self._namespace, SPEND_RECORDS_NAME), Stage.STATUS),
                    partial(self.spend_records.write, spend_records, snapshot.at),
                ),
            )
        )

    async def _pull_and_prune(
        self, plan: Plan, existing: Mapping[Ref | None, tuple[ClusterObject, ...]]
    ) -> None:
        await self._pulls.apply(plan)
        await self._shared.prune(plan, existing, self._pulls.keys)

    def _prerequisites(self, plan: Plan, namespace: str) -> Prerequisites:
        """Return what the services and batches of a namespace rely on."""
        of_shared, shared = self._shared.refusals.get(namespace, ()), shared_key(namespace)
        view = plan.budgets_by_namespace.get(namespace)
        if view is None:
            return Prerequisites(of_shared=of_shared, keys=(shared,))
        return Prerequisites(
            view=view,
            of_budget=self._budgets.refusals.get(view.budget.name, ()),
            of_shared=of_shared,
            keys=(shared, budget_key(view.budget.name)),
        )

    def _forget(self, plan: Plan) -> None:
        forget_all_but({view.budget.name for view in plan.budgets}, self._budgets.refusals)
        known = {*plan.service_plans, *plan.active_batches}
        if known == self._known:
            return
        self._known = known
        forgotten = self.services.forget(plan)
        namespaces = {ref.namespace for ref in known}
        self._shared.forget(namespaces)
        namespaces.add(self._pulls.namespace)
        self._writer.forget(lambda key: key in forgotten or key.namespace not in namespaces)
