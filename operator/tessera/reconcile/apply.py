"""Hand what a plan decided to the queue of writes: what differs, and only that."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.budget.meter import SpendRecord
from tessera.domain.config import Config
from tessera.domain.incremental import Incremental
from tessera.domain.names import SPEND_RECORDS_NAME
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.status.service import StatusUrgency, status_urgency
from tessera.ports import Cluster, ClusterObject
from tessera.reconcile.store import Store, forget_all_but
from tessera.reconcile.writing.batches import BatchApplier
from tessera.reconcile.writing.budgets import BudgetApplier
from tessera.reconcile.writing.children import ChildrenApplier
from tessera.reconcile.writing.layouts import LayoutApplier
from tessera.reconcile.writing.service_work import ServiceWork, TenantFunding
from tessera.reconcile.writing.shared_objects import (
    Installation,
    PrePullApplier,
    SharedInputs,
    SharedObjectApplier,
)
from tessera.reconcile.writing.spend_records import SpendRecordStore
from tessera.reconcile.writing.statuses import ServiceStatusApplier
from tessera.reconcile.writing.write_order import Stage, Work, WorkKey
from tessera.reconcile.writing.write_queue import WriteQueue
from tessera.reconcile.writing.writer import RecordEvents, Writer
from tessera.resources import children
from tessera.resources.api_resources import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    DAEMON_SETS,
    DEPLOYMENTS,
    INFERENCE_SERVICES,
    JOBS,
    SPEND_RECORDS,
    TENANT_BUDGETS,
    ApiResource,
)
from tessera.resources.manifest import ObjectKey

_NO_BATCHES: Mapping[Ref, BatchPlan] = {}
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
        self._statuses = ServiceStatusApplier(writer, store, config, image)
        self._children = ChildrenApplier(writer)
        self._budgets = BudgetApplier(writer)
        self._shared = SharedObjectApplier(writer, installation)
        self._pulls = PrePullApplier(writer, config, installation)
        self.batches = BatchApplier(config, cluster, image, writer)
        self.layouts = LayoutApplier(writer, store, namespace=installation.mig_namespace)
        self.spend_records = SpendRecordStore(cluster, installation.namespace, writer)
        self._namespace = installation.namespace
        self._sharing = Incremental()
        self._known = set[Ref]()
        """The services and batches of the last plan."""
        self.problems: dict[Ref, str] = {}
        """What was refused when a service was written last."""

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
        existing = self._store.children_by_service()
        self.queue.replace(
            (
                Work(_POOLS, partial(self.layouts.apply, snapshot, plan)),
                *self._budget_work(snapshot, plan),
                *self._shared_work(plan, existing.get(None, ()), monitored=monitored),
                *self._service_work(snapshot, plan, existing),
                *self._removal_work(snapshot, plan),
                *self._batch_work(snapshot, plan),
                Work(
                    _key(DAEMON_SETS, Ref(self._pulls.namespace, ""), Stage.STATUS),
                    partial(self._pull_and_prune, plan, existing),
                ),
                Work(
                    _key(SPEND_RECORDS, Ref(self._namespace, SPEND_RECORDS_NAME), Stage.STATUS),
                    partial(self.spend_records.write, spend_records, snapshot.at),
                ),
            )
        )

    def _budget_work(self, snapshot: Snapshot, plan: Plan) -> Iterator[Work]:
        for view in plan.budgets:
            yield Work(_budget_key(view.budget.name), partial(self._budgets.apply, view, snapshot))

    def _shared_work(
        self, plan: Plan, existing: tuple[ClusterObject, ...], *, monitored: bool
    ) -> Iterator[Work]:
        """Yield the work of namespaces whose shared objects may not be in place."""
        of_namespace = defaultdict[str, list[ClusterObject]](list)
        for observed in existing:
            of_namespace[observed.key.namespace].append(observed)
        for sharing in self._sharing.run(
            children.namespace_owners, plan.service_plans, plan.active_batches or _NO_BATCHES
        ):
            inputs = SharedInputs(sharing, monitored, tuple(of_namespace[sharing.namespace]))
            if not self._shared.are_in_place(inputs):
                yield Work(_shared_key(sharing.namespace), partial(self._shared.apply, inputs))

    def _service_work(
        self,
        snapshot: Snapshot,
        plan: Plan,
        existing: Mapping[Ref | None, tuple[ClusterObject, ...]],
    ) -> Iterator[Work]:
        """Yield the work of services that need objects or a status."""
        for ref in self._children.begin_cycle():
            self._statuses.invalidate(ref)
        tenants = {name: self._tenant(plan, name) for name in plan.budgets_by_namespace}
        namespaces = {ref.namespace for ref in plan.service_plans}
        refused = {name for name in namespaces if self._refusals(name, tenants.get(name))}
        for ref, service_plan in plan.service_plans.items():
            view = plan.budgets_by_namespace.get(ref.namespace)
            funding = (view.budget.name, view.within_budget.reason) if view else None
            objects, probe_result = existing.get(ref, ()), snapshot.probe_results.get(ref)
            work = ServiceWork(
                snapshot=snapshot,
                service_plan=service_plan,
                inputs=(service_plan, objects, probe_result, funding),
            )
            try:
                yield from self._order(plan, work, is_refused=ref.namespace in refused)
            except Exception as error:  # noqa: BLE001 - it costs this service alone
                status_key = _key(INFERENCE_SERVICES, ref, Stage.STATUS)
                self.queue.defects.report(status_key.owner, error)
                yield Work(status_key, partial(self._report_status, work))

    def _order(self, plan: Plan, work: ServiceWork, *, is_refused: bool) -> tuple[Work, ...]:
        """Return the work of a service; what it relies on may have been refused."""
        ref = work.ref
        if not is_refused and self._statuses.is_up_to_date(ref, work.inputs):
            return ()
        self._statuses.invalidate(ref)
        urgency = status_urgency(work.snapshot, work.service_plan)
        if is_refused and urgency is StatusUrgency.SETTLING:
            urgency = StatusUrgency.USUAL
        required = _requirements(plan, ref.namespace)
        status_key = _key(INFERENCE_SERVICES, ref, Stage.STATUS)
        if not is_refused and self._children.are_in_place(ref, work.inputs):
            return (Work(status_key, partial(self._report_alone, plan, work), required, urgency),)
        were_applied = self._children.were_applied(work.service_plan)
        stage = Stage.GATES if were_applied else Stage.CHILDREN
        children_key = _key(INFERENCE_SERVICES, ref, stage)
        return (
            Work(children_key, partial(self._apply_children, plan, work), required),
            Work(status_key, partial(self._report_status, work), (children_key,), urgency),
        )

    def _removal_work(self, snapshot: Snapshot, plan: Plan) -> Iterator[Work]:
        """Yield the work of services that are deleted, and of Deployments that they left."""
        for removed in plan.removed_workloads:
            drain = partial(self._children.drain_removed, snapshot, removed)
            yield Work(_key(DEPLOYMENTS, removed.workload.ref, Stage.CHILDREN), drain)
        for service in snapshot.deleting_services:
            report = partial(self._statuses.report_deletion, snapshot, service)
            yield Work(_key(INFERENCE_SERVICES, service.ref, Stage.STATUS), report)

    def _batch_work(self, snapshot: Snapshot, plan: Plan) -> Iterator[Work]:
        outdated = {batch.ref for batch in plan.outdated_batches}
        for batch_plan in self.batches.unsettled(plan):
            ref = batch_plan.batch.ref
            if ref in outdated:
                continue  # deleted below
            has_jobs = batch_plan.create is not None or batch_plan.delete
            yield Work(
                _key(BATCH_INFERENCES, ref, Stage.CHILDREN if has_jobs else Stage.STATUS),
                partial(self._apply_batch, snapshot, plan, batch_plan),
                _requirements(plan, ref.namespace),
            )
        for batch in plan.outdated_batches:
            delete = partial(self.batches.delete_outdated, batch)
            yield Work(_key(BATCH_INFERENCES, batch.ref, Stage.STATUS), delete)
        for job in plan.orphaned_jobs:
            yield Work(_key(JOBS, job.ref, Stage.STATUS), partial(self.batches.delete_orphan, job))

    async def _apply_children(self, plan: Plan, work: ServiceWork) -> None:
        self._begin(plan, work)
        work.problems += await self._children.apply_objects(work)

    async def _report_alone(self, plan: Plan, work: ServiceWork) -> None:
        """Report on a service whose children are in place."""
        self._begin(plan, work)
        await self._report_status(work)

    def _begin(self, plan: Plan, work: ServiceWork) -> None:
        """Start with what was refused of what the service relies on."""
        work.tenant = self._tenant(plan, work.ref.namespace)
        work.problems = self._refusals(work.ref.namespace, work.tenant)

    async def _report_status(self, work: ServiceWork) -> None:
        work.problems += self.queue.defects.texts(
            _key(INFERENCE_SERVICES, work.ref, Stage.STATUS).owner
        )
        work.problems += await self._statuses.report_status(work)
        self.problems.pop(work.ref, None)
        if work.problems:
            self.problems[work.ref] = "; ".join(work.problems)

    async def _apply_batch(self, snapshot: Snapshot, plan: Plan, batch_plan: BatchPlan) -> None:
        ref = batch_plan.batch.ref
        owner = _key(BATCH_INFERENCES, ref, Stage.STATUS).owner
        shared = self._shared.refusals.get(ref.namespace, ())
        tenant = self._tenant(plan, ref.namespace)
        of_budget = tenant.refusals if tenant is not None else ()
        refusals = [*shared, *self.queue.defects.texts(owner), *of_budget]
        await self.batches.apply(snapshot, batch_plan, refusals)

    async def _pull_and_prune(
        self, plan: Plan, existing: Mapping[Ref | None, tuple[ClusterObject, ...]]
    ) -> None:
        await self._pulls.apply(plan)
        await self._shared.prune(plan, existing, self._pulls.keys)

    def _tenant(self, plan: Plan, namespace: str) -> TenantFunding | None:
        """Return the budget of a namespace, and what was refused when it was written last."""
        view = plan.budgets_by_namespace.get(namespace)
        if view is None:
            return None
        refusals = self._budgets.refusals.get(view.budget.name, [])
        return TenantFunding(view, refusals)

    def _refusals(self, namespace: str, tenant: TenantFunding | None) -> list[str]:
        """Return what was refused of what the services of a namespace rely on."""
        return [*self._shared.refusals.get(namespace, ()), *(tenant.refusals if tenant else ())]

    def _forget(self, plan: Plan) -> None:
        forget_all_but({view.budget.name for view in plan.budgets}, self._budgets.refusals)
        known = {*plan.service_plans, *plan.active_batches}
        if known == self._known:
            return
        self._known = known
        forgotten = self._children.forget(plan)
        self._statuses.forget(plan)
        forget_all_but(plan.service_plans, self.problems)
        namespaces = {ref.namespace for ref in known}
        self._shared.forget(namespaces)
        namespaces.add(self._pulls.namespace)
        self._writer.forget(lambda key: key in forgotten or key.namespace not in namespaces)


def _key(kind: ApiResource, ref: Ref, stage: Stage) -> WorkKey:
    return WorkKey(ObjectKey(kind.plural, ref.namespace, ref.name), stage)


def _budget_key(name: str) -> WorkKey:
    return _key(TENANT_BUDGETS, Ref("", name), Stage.FLEET)


def _shared_key(namespace: str) -> WorkKey:
    return WorkKey(ObjectKey("namespaces", namespace, ""), Stage.CHILDREN)


def _requirements(plan: Plan, namespace: str) -> tuple[WorkKey, ...]:
    """Return the work before anything that costs money or needs shared objects."""
    view = plan.budgets_by_namespace.get(namespace)
    shared = _shared_key(namespace)
    return (shared,) if view is None else (shared, _budget_key(view.budget.name))
