"""Plan -> cluster: apply what differs, and only that."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace

from tessera.domain.allotment import ServicePlan
from tessera.domain.batch.allotment import BatchAllotment
from tessera.domain.batch.names import BATCH_ROLE
from tessera.domain.batch.status import batch_status
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.budget.status import budget_status
from tessera.domain.kept import LastCallCache
from tessera.domain.plan import Plan
from tessera.domain.snapshot import Ref, Snapshot, Workload
from tessera.domain.stall import Replacement
from tessera.domain.status import pool_status, service_status
from tessera.ports import Cluster, ClusterError, ClusterObject, NotFoundError
from tessera.reconcile.inheritance import Inheritance, is_inherited
from tessera.reconcile.layouts import Layouts
from tessera.reconcile.store import Store
from tessera.reconcile.work import (
    AT_ONCE,
    KINDS,
    MadeOf,
    Tenant,
    Work,
    all_of,
    comes_first,
    same,
    superfluous,
    unmarked,
)
from tessera.resources import children, prepull, statuses
from tessera.resources.defaults import defaults
from tessera.resources.errand import errand
from tessera.resources.job import Image, job
from tessera.resources.kinds import DAEMON_SETS, DEPLOYMENTS, JOBS, PODS, Kind
from tessera.resources.manifest import Key, Manifest

log = logging.getLogger("tessera")

_LONGEST = 500
_REPORTS = 4 * AT_ONCE
_REPORT_SECONDS = 0.25
"""So many services are reported on in a turn, and for so long, while something new waits for the
next one; for longer only as many as there are connections."""


class NotLeadingError(Exception):
    """Another process may lead by now; nothing more is written."""


@dataclass(frozen=True, slots=True)
class _Applied:
    """What was applied last, and the digest of the fields that were then ours."""

    body: Mapping[str, object]
    owned: str | None


_NO_BATCHES: Mapping[Ref, BatchAllotment] = {}


class Applier:
    """Keeps the cluster as planned.

    An object is applied when it is wanted differently than before, or when it differs from what the
    last apply left: it is gone, or a field was taken away. After a start everything is applied
    once, which changes nothing that is in place.
    """

    def __init__(  # noqa: PLR0913 - how one process is wired
        self,
        cluster: Cluster,
        store: Store,
        *,
        visitors: tuple[str, ...],
        batch_image: Image,
        batch_role: str = BATCH_ROLE,
        mig_namespace: str | None = None,
        leading: Callable[[], bool],
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._visitors = visitors
        self._batch_image = batch_image
        self._batch_role = batch_role
        self._refused: dict[Ref, str | None] = {}
        self._unprepared: dict[Ref, list[str]] = {}
        self._pull_problems: list[str] = []
        self.refused_jobs: dict[str, str] = {}
        """What was said in the last turn to Jobs of attempts, by the batches' uids."""
        self._leading = leading
        self.layouts = Layouts(cluster, store, namespace=mig_namespace, begin=self._begin_write)
        self._applied: dict[Key, _Applied] = {}
        self._built: dict[Ref, tuple[tuple[object, ...], tuple[Manifest, ...]]] = {}
        self._inheritance = Inheritance()
        self._sharing = LastCallCache(children.sharing)
        self._pulls = LastCallCache(prepull.of_pools)
        self._shared_of: dict[str, tuple[tuple[object, ...], tuple[Manifest, ...]]] = {}
        self._placed: dict[Ref, MadeOf] = {}
        """What services were made of whose objects are all in place."""
        self._settled: dict[Ref, MadeOf] = {}
        """Likewise, of those that needed nothing more."""
        self._unreported: dict[Ref, int] = {}
        """Since which turn services wait for their status."""
        self._turn = 0
        self.writes = 0
        """Writing requests since the start."""

    async def carry_out(
        self, snapshot: Snapshot, plan: Plan, *, monitored: bool, hurried: Callable[[], bool]
    ) -> Mapping[Ref, str]:
        """Make the cluster as planned; what was refused, by service.

        One object's refusal is written on its service and stops no other. `hurried` says that
        something new waits for the next turn.
        """
        self.refused_jobs.clear()
        self._turn += 1
        for due in self._inheritance.turn():
            self._settled.pop(due, None)
            self._placed.pop(due, None)
        existing = self._store.belongings()
        await self.layouts.carry_out(plan.repartitions, await self._pools(snapshot, plan))
        shared = await self._shared(plan, monitored=monitored)
        tenants = {}
        for one in plan.budgets:  # before anything that costs
            refused = await self._budget(one, snapshot)
            tenants[one.budget.name] = Tenant(one, one.funded.reason, refused)
        whose = {
            name: tenants[view.budget.name] for name, view in plan.budgets_by_namespace.items()
        }
        problems: dict[Ref, list[str]] = {}
        work = []
        for ref, allotment in plan.service_plans.items():
            tenant = whose.get(ref.namespace)
            theirs, answer = existing.get(ref, ()), snapshot.probe_results.get(ref)
            told = [*shared.get(ref.namespace, ()), *(tenant.refused if tenant else ())]
            paid = (tenant.view.budget.name, tenant.state) if tenant else None
            made_of = (allotment, theirs, answer, paid)
            if told or not same(made_of, self._settled.get(ref)):
                problems[ref] = told
                work.append(
                    Work(
                        allotment=allotment,
                        tenant=tenant,
                        made_of=made_of,
                        problems=told,
                        status=allotment.service.status,
                    )
                )
        await all_of(self._objects(snapshot, one) for one in work)
        await all_of(self._report(snapshot, one) for one in self._reportable(work, hurried))
        await all_of(self._batch(snapshot, one) for one in plan.batches.values())
        pulls = self._pulls(
            plan.pools,
            plan.service_plans,
            snapshot.platform,
            snapshot.builder_version,
            self._visitors[0],
        )
        self._told_pulls([told for one in pulls for told in await self._attempt(self._keep(one))])
        for kind, key in self._left_over(plan, existing, {one.key for one in pulls}):
            await self._attempt(self._remove(kind, key))
        self._forget(plan)
        return {ref: "; ".join(told) for ref, told in problems.items() if told}

    async def _pools(self, snapshot: Snapshot, plan: Plan) -> frozenset[str]:
        """Their statuses, which say what is done about layouts before it is; those refused."""
        refused = set[str]()
        for view in plan.pools:
            status = pool_status(view, plan.repartitions.orders.get(view.pool.name), snapshot.at)
            if status != view.pool.status:
                written = self._write(statuses.of_pool(view.pool, status), "status")
                if await self._attempt(written):
                    refused.add(view.pool.name)
        return frozenset(refused)

    async def _shared(self, plan: Plan, *, monitored: bool) -> Mapping[str, list[str]]:
        """The objects of the namespaces; what was refused, by namespace."""
        problems: dict[str, list[str]] = defaultdict(list)
        for sharing in self._sharing(plan.service_plans, plan.active_batches or _NO_BATCHES):
            made_of, manifests = self._shared_of.get(sharing.namespace, (None, ()))
            if made_of != (sharing, monitored):
                manifests = sharing.manifests(
                    visitors=self._visitors, monitored=monitored, batch_role=self._batch_role
                )
                self._shared_of[sharing.namespace] = ((sharing, monitored), manifests)
            for manifest in manifests:
                problems[sharing.namespace] += await self._attempt(self._keep(manifest))
        return problems

    def _reportable(self, work: Sequence[Work], hurried: Callable[[], bool]) -> Iterator[Work]:
        """Those that waited longest first. What is new comes before the status of what is old, so
        that many changes at once do not hold up each other."""
        before, self._unreported = self._unreported, {}
        waiting = sorted(work, key=lambda one: before.get(one.ref, self._turn))
        loop = asyncio.get_running_loop()
        late = loop.time() + _REPORT_SECONDS
        for index, one in enumerate(waiting):
            enough = index >= (_REPORTS if loop.time() < late else AT_ONCE)
            if enough and hurried():
                left = waiting[index:]
                self._unreported = {one.ref: before.get(one.ref, self._turn) for one in left}
                return
            yield one

    async def _objects(self, snapshot: Snapshot, work: Work) -> None:
        """The objects of one service."""
        ref, allotment, problems = work.ref, work.allotment, work.problems
        self._settled.pop(ref, None)
        if not problems and same(work.made_of, self._placed.get(ref)):
            return
        self._placed.pop(ref, None)
        if comes_first(allotment) and not await self._tell(snapshot, work):
            return
        for manifest, subresource in unmarked(snapshot, allotment):
            problems += await self._attempt(self._write(manifest, subresource))
        wanted, existing = self._manifests(allotment), work.made_of[1]
        if not self._may_wait(allotment, wanted, existing):
            refusals, work.in_place = await self._kept(wanted)
            problems += refusals
        for deployment, replicas in sorted(allotment.previous_deployments.items()):
            problems += await self._attempt(self._resize(deployment, replicas))
        for kind, key in superfluous(allotment, wanted, existing):
            work.in_place = False
            problems += await self._attempt(self._remove(kind, key))
        if work.in_place and not problems:
            # What was repaired may be spoiled again in the same way before anybody looks.
            self._placed[ref] = work.made_of

    async def _report(self, snapshot: Snapshot, work: Work) -> None:
        """The status of one service, and what may only be done once it is written."""
        ref, allotment, problems = work.ref, work.allotment, work.problems
        problems += self._unprepared.get(ref, [])
        if not await self._tell(snapshot, work):
            return
        if (stuck := allotment.stall.replacement) is not None:
            grace = defaults(allotment.template_version.builder).stalled_grace_seconds
            problems += await self._attempt(self._replace(stuck, grace))
        preparation = allotment.preparation
        self._unprepared[ref] = await self._prepare(snapshot, allotment)
        pending = preparation is not None and preparation.pending
        if work.in_place and not problems and not pending:
            self._settled[ref] = work.made_of

    async def _tell(self, snapshot: Snapshot, work: Work) -> bool:
        """Write the status if it changed; False when that was refused."""
        view = work.tenant.view if work.tenant is not None else None
        applied, problem = self._as_applied(work.allotment), "; ".join(work.problems)
        status = service_status(snapshot, applied, view, problem or None)
        if status == work.status:
            return True
        told = statuses.of_service(work.allotment.service, status)
        refused = await self._attempt(self._write(told, "status"))
        work.problems += refused
        if not refused:
            work.status = status
        return not refused

    async def _kept(self, wanted: Iterable[Manifest]) -> tuple[list[str], bool]:
        """What was refused; and whether all objects were in place already."""
        problems, in_place = list[str](), True
        for manifest in wanted:
            last = self._applied.get(manifest.key)
            problems += await self._attempt(self._keep(manifest))
            in_place &= self._applied.get(manifest.key) is last
        return problems, in_place

    async def _prepare(self, snapshot: Snapshot, allotment: ServicePlan) -> list[str]:
        """Jobs for the model. What they found is in the status before they go."""
        preparation, problems = allotment.preparation, list[str]()
        if preparation is None:
            return problems
        for ref in preparation.obsolete_jobs:
            key = Key(JOBS.plural, ref.namespace, ref.name)
            problems += await self._attempt(self._remove(JOBS, key))
        if preparation.job_to_create is not None:
            wanted = errand(
                allotment.service,
                preparation.job_to_create,
                allotment.choice,
                self._batch_image,
                snapshot.newest_template,
            )
            problems += await self._attempt(self._write(wanted))
        return problems

    def _may_wait(
        self,
        allotment: ServicePlan,
        wanted: Sequence[Manifest],
        existing: Collection[ClusterObject],
    ) -> bool:
        """All objects are there as a former process left them, and others come first."""
        there = {seen.key for seen in existing}
        return (
            all(one.key in there and one.key not in self._applied for one in wanted)
            and is_inherited(allotment)
            and self._inheritance.take(allotment.service.ref, existing)
        )

    def _as_applied(self, allotment: ServicePlan) -> ServicePlan:
        """With the Deployment as this turn left it: one that was just changed is not settled."""
        if allotment.workload is None:
            return allotment
        ref = allotment.workload.ref
        seen = self._store.all(DEPLOYMENTS).get(Key(DEPLOYMENTS.plural, ref.namespace, ref.name))
        found = seen.value if seen is not None else None
        if found is allotment.workload:
            return allotment
        return replace(allotment, workload=found if isinstance(found, Workload) else None)

    async def _budget(self, tenant: BudgetView, snapshot: Snapshot) -> list[str]:
        try:
            record = budget_status(tenant, snapshot.at)
        except ValueError as error:  # more replicas than a status can list
            return [f"tenantbudgets {tenant.budget.name}: {error}"[:_LONGEST]]
        if record == tenant.budget.status:
            return []
        applied = statuses.of_budget(tenant.budget, record)
        return await self._attempt(self._write(applied, "status"))

    async def _batch(self, snapshot: Snapshot, allotment: BatchAllotment) -> None:
        """The status comes first: its attempt is the fence. Without it nothing else is written."""
        batch, spec = allotment.batch, allotment.batch.spec
        status = batch_status(allotment, snapshot.at, self._refused.get(batch.ref))
        problems: list[str] = []
        if status != batch.status:
            applied = statuses.of_batch(batch, status)
            problems += await self._attempt(self._write(applied, "status"))
        if not problems:
            for ref in allotment.delete:
                key = Key(JOBS.plural, ref.namespace, ref.name)
                problems += await self._attempt(self._remove(JOBS, key))
        if not problems and allotment.create is not None and spec is not None:
            wanted = job(batch, spec, allotment.create, self._batch_image, snapshot.newest_template)
            refused = await self._attempt(self._write(wanted))
            if refused and allotment.create.attempt is not None:
                self.refused_jobs[batch.uid] = "; ".join(refused)
            else:
                problems += refused
        self._refused[batch.ref] = "; ".join(problems) or None

    async def _attempt(self, write: Awaitable[object]) -> list[str]:
        """The problem, if any; an object that is gone needs nothing more."""
        try:
            await write
        except NotFoundError:
            return []
        except ClusterError as error:
            return [str(error)]
        return []

    async def _keep(self, manifest: Manifest) -> None:
        seen = self._store.all(manifest.kind).get(manifest.key)
        last = self._applied.get(manifest.key)
        if (
            seen is not None
            and last is not None
            and last.owned == seen.owned_fields_digest
            and last.body == manifest.body
        ):
            return
        seen = await self._write(manifest)
        self._applied[manifest.key] = _Applied(manifest.body, seen.owned_fields_digest)

    def _begin_write(self) -> None:
        """One writing request more, which only a leader may send."""
        if not self._leading():
            raise NotLeadingError
        self.writes += 1

    async def _write(self, manifest: Manifest, subresource: str | None = None) -> ClusterObject:
        """Apply, and remember the answer, so that the next turn need not wait for the watch."""
        self._begin_write()
        seen = await self._cluster.apply(manifest, subresource=subresource)
        self._store.put(manifest.kind, seen)
        return seen

    async def _remove(self, kind: Kind, key: Key) -> None:
        self._begin_write()
        await self._cluster.delete(kind, key)
        self._store.drop(kind, key)
        self._applied.pop(key, None)

    async def _resize(self, deployment: Ref, replicas: int) -> None:
        self._begin_write()
        self._store.put(DEPLOYMENTS, await self._cluster.scale(deployment, replicas))

    async def _replace(self, stuck: Replacement, grace: int) -> None:
        """Only once the status says so: it is what keeps a successor from replacing more."""
        key = Key(PODS.plural, stuck.pod.namespace, stuck.pod.name)
        self._begin_write()
        await self._cluster.delete(PODS, key, uid=stuck.uid, grace_seconds=grace)

    def _manifests(self, allotment: ServicePlan) -> tuple[Manifest, ...]:
        """Built anew only when something that they are made of changed."""
        ref, made_of = allotment.service.ref, children.made_of(allotment)
        if ref not in self._built or self._built[ref][0] != made_of:
            self._built[ref] = (made_of, children.of_service(allotment))
        return self._built[ref][1]

    def _told_pulls(self, problems: list[str]) -> None:
        """Images that are not pulled ahead hold nothing up, so the log is where it is said."""
        if problems and problems != self._pull_problems:
            log.warning("images are not pulled ahead: %s", "; ".join(problems))
        self._pull_problems = problems

    def _left_over(
        self,
        plan: Plan,
        existing: Mapping[Ref | None, tuple[ClusterObject, ...]],
        pulls: Collection[Key],
    ) -> list[tuple[Kind, Key]]:
        """Shared objects of namespaces in which nothing of ours is left, and of pools likewise.

        Their owners end together, and while the garbage collector takes one owner off an object, an
        apply may just have put it there as the only one; then nobody but us would remove it.
        """
        used = {
            ref.namespace for ref in (*plan.service_plans, *plan.active_batches, *existing) if ref
        }
        return [
            (KINDS[seen.key.plural], seen.key)
            for seen in existing.get(None, ())
            if seen.owned_fields_digest and seen.key not in pulls
            if seen.key.plural == DAEMON_SETS.plural or seen.key.namespace not in used
        ]

    def _forget(self, plan: Plan) -> None:
        for ref in self._built.keys() - plan.service_plans.keys():
            _, manifests = self._built.pop(ref)
            for manifest in manifests:
                self._applied.pop(manifest.key, None)
            self._settled.pop(ref, None)
            self._placed.pop(ref, None)
        self._inheritance.forget(plan.service_plans.keys())
        for ref in self._refused.keys() - plan.batches.keys():
            del self._refused[ref]
        for ref in self._unprepared.keys() - plan.service_plans.keys():
            del self._unprepared[ref]
        namespaces = {ref.namespace for ref in (*plan.service_plans, *plan.active_batches)}
        namespaces.add(self._visitors[0])
        for key in [key for key in self._applied if key.namespace not in namespaces]:
            del self._applied[key]
        for name in self._shared_of.keys() - namespaces:
            del self._shared_of[name]
