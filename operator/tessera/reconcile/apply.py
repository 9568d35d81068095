"""Apply a plan to the cluster: write what differs, and only that."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.names import BATCH_ROLE
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.cache import LastCallCache
from tessera.domain.config import Config
from tessera.domain.hardware.pools import PoolView
from tessera.domain.health.stall import Replacement
from tessera.domain.names import prepull_namespace
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot, Workload
from tessera.domain.plan import Plan
from tessera.domain.service.removed import RemovedWorkload
from tessera.domain.service_plan import ServicePlan
from tessera.domain.status.budget import budget_status
from tessera.domain.status.service import deleting_status, pool_status, service_status
from tessera.ports import Cluster, ClusterObject
from tessera.reconcile.batches import BatchApplier
from tessera.reconcile.layouts import LayoutApplier
from tessera.reconcile.spend_records import SpendRecordStore
from tessera.reconcile.startup_resync import StartupResync, was_reconciled_before
from tessera.reconcile.store import Store
from tessera.reconcile.work import (
    KINDS,
    MAX_CONCURRENCY,
    NotLeadingError,
    ServiceInputs,
    ServiceWork,
    TenantFunding,
    WriteStep,
    by_turns,
    inputs_unchanged,
    must_write_status_first,
    obsolete_objects,
    outdated_marks,
    resizes,
    run_all,
)
from tessera.resources import api_resources, children, prepull
from tessera.resources.batch_job import RunnerImage
from tessera.resources.children import NamespaceOwners
from tessera.resources.defaults import defaults
from tessera.resources.manifest import ObjectKey, ObjectManifest, partial_manifest, wire_format
from tessera.resources.model_job import model_job_manifest

log = logging.getLogger("tessera")

_MAX_REPORTS = 4 * MAX_CONCURRENCY
# How many statuses a cycle writes, and for how many seconds, while a change waits for the next
# cycle; after that time only as many as there are connections.
_REPORT_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class _AppliedObject:
    """The body that was last applied, and the digest of the fields that Tessera then owned."""

    body: Mapping[str, object]
    owned: str | None


_NO_BATCHES: Mapping[Ref, BatchPlan] = {}


class Applier:
    """Keeps the cluster as planned.

    An object is applied when its desired state changed, or when it differs from what the last apply
    left: it was deleted, or a field was taken away. After a start everything is applied once, which
    changes nothing that is in place.
    """

    def __init__(  # noqa: PLR0913 - how one process is wired
        self,
        config: Config,
        cluster: Cluster,
        store: Store,
        *,
        operator_namespace: str,
        ingress_namespaces: tuple[str, ...],
        batch_image: RunnerImage,
        batch_role: str = BATCH_ROLE,
        mig_namespace: str | None = None,
        is_leader: Callable[[], bool],
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._store = store
        self._operator_namespace = operator_namespace
        self._prepull_namespace = prepull_namespace(operator_namespace)
        self._ingress_namespaces = ingress_namespaces
        self._batch_image = batch_image
        self.batches = BatchApplier(
            config,
            cluster,
            batch_image,
            write=self._write,
            write_status=self._attempt_status,
            remove=self._remove,
        )
        self._batch_role = batch_role
        self._model_errors: dict[Ref, list[str]] = {}
        self._pull_problems: list[str] = []
        self._pull_keys: Collection[ObjectKey] | None = None
        """The DaemonSets that pull images; None where they could not be built."""
        self._is_leader = is_leader
        self.layouts = LayoutApplier(
            cluster, store, namespace=mig_namespace, before_write=self._begin_write
        )
        self.spend_records = SpendRecordStore(cluster, operator_namespace, self._begin_write)
        self._applied: dict[ObjectKey, _AppliedObject] = {}
        self._manifest_cache: dict[Ref, tuple[tuple[object, ...], tuple[ObjectManifest, ...]]] = {}
        self._startup_resync = StartupResync()
        self._sharing = LastCallCache(children.namespace_owners)
        self._pulls = LastCallCache(prepull.prepull_daemon_sets)
        self._shared_cache: dict[str, tuple[tuple[object, ...], tuple[ObjectManifest, ...]]] = {}
        self._in_place: dict[Ref, ServiceInputs] = {}
        """The inputs of services whose objects are all in place."""
        self._up_to_date: dict[Ref, ServiceInputs] = {}
        """The inputs of services that need neither objects nor a status."""
        self._unreported: dict[Ref, int] = {}
        """The cycle since which each service waits for its status."""
        self._unrecorded = set[str]()
        """Budgets whose last status was refused or could not be built."""
        self._cycle = 0
        self.writes = 0
        """Writing requests since the start of the process."""

    async def apply_plan(
        self, snapshot: Snapshot, plan: Plan, *, monitored: bool, change_pending: Callable[[], bool]
    ) -> Mapping[Ref, str]:
        """Apply the plan; return what was refused, by service.

        An error for one object is reported on its service and stops no other. While
        `change_pending` returns True, deferrable writes wait for the next cycle.
        """
        self._cycle += 1
        for due_ref in self._startup_resync.begin_cycle():
            self._up_to_date.pop(due_ref, None)
            self._in_place.pop(due_ref, None)
        existing = self._store.children_by_service()
        refused_pools = frozenset(
            [
                view.pool.name
                for view in plan.pools
                if await self._write_pool_status(snapshot, plan, view)
            ]
        )
        await self.layouts.apply(plan.repartitions, refused_pools, snapshot.at)
        shared = {
            sharing.namespace: await self._apply_shared(sharing, monitored)
            for sharing in self._sharing(plan.service_plans, plan.active_batches or _NO_BATCHES)
        }
        budget_refusals = {  # before anything that costs money
            view.budget.name: await self._write_budget_status(view, snapshot)
            for view in plan.budgets
        }
        tenants_by_namespace = {
            name: TenantFunding(
                view, view.within_budget.reason, budget_refusals.get(view.budget.name, [])
            )
            for name, view in plan.budgets_by_namespace.items()
        }
        problems: dict[Ref, list[str]] = {}
        changed = []
        for ref, service_plan in plan.service_plans.items():
            tenant = tenants_by_namespace.get(ref.namespace)
            objects, probe_result = existing.get(ref, ()), snapshot.probe_results.get(ref)
            errors = [*shared.get(ref.namespace, ()), *(tenant.refusals if tenant else ())]
            funding = (tenant.view.budget.name, tenant.state) if tenant else None
            inputs = (service_plan, objects, probe_result, funding)
            if errors or not inputs_unchanged(inputs, self._up_to_date.get(ref)):
                problems[ref] = errors
                changed.append(
                    ServiceWork(
                        service_plan=service_plan,
                        tenant=tenant,
                        inputs=inputs,
                        problems=errors,
                        status=service_plan.service.status,
                    )
                )
        work = by_turns(changed, lambda service_work: service_work.ref.namespace)
        await run_all(
            service_work.collect(self._apply_objects(snapshot, service_work))
            for service_work in work
        )
        await run_all(
            service_work.collect(self._report_status(snapshot, service_work))
            for service_work in self._due_reports(work, change_pending)
        )
        await run_all(self._drain_removed(snapshot, removed) for removed in plan.removed_workloads)
        await run_all(
            self._report_deletion(snapshot, service) for service in snapshot.deleting_services
        )
        await self.batches.apply(snapshot, plan, tenants_by_namespace, shared)
        self._log_pull_problems(await self._apply_pulls(plan))
        for kind, key in self._unused_shared_objects(plan, existing):
            await self._attempt(self._remove(kind, key))
        self._forget(plan)
        return {ref: "; ".join(errors) for ref, errors in problems.items() if errors}

    @WriteStep
    async def _write_pool_status(self, snapshot: Snapshot, plan: Plan, view: PoolView) -> list[str]:
        """Write the status of a pool, which announces layouts before they change."""
        status = pool_status(view, plan.repartitions.actions.get(view.pool.name), snapshot.at)
        if status == view.pool.status:
            return []
        metadata = {"name": view.pool.name}
        return await self._attempt_status(api_resources.ACCELERATOR_POOLS, metadata, status)

    @WriteStep
    async def _apply_shared(self, sharing: NamespaceOwners, monitored: bool) -> list[str]:
        """Apply the shared objects of a namespace."""
        inputs, manifests = self._shared_cache.get(sharing.namespace, (None, ()))
        if inputs != (sharing, monitored):
            manifests = sharing.manifests(
                operator_namespace=self._operator_namespace,
                ingress_namespaces=self._ingress_namespaces,
                monitored=monitored,
                batch_role=self._batch_role,
            )
            self._shared_cache[sharing.namespace] = ((sharing, monitored), manifests)
        return [
            error
            for manifest in manifests
            for error in await self._attempt(self._apply_if_changed(manifest))
        ]

    @WriteStep
    async def _apply_pulls(self, plan: Plan) -> list[str]:
        """Apply the DaemonSets that pull images; where that raises, those that exist stay."""
        self._pull_keys = None
        manifests = self._pulls(
            plan.pools,
            plan.service_plans,
            self._config.platform,
            self._config.builder_version,
            self._batch_image,
            self._prepull_namespace,
        )
        self._pull_keys = {manifest.key for manifest in manifests}
        return [
            error
            for manifest in manifests
            for error in await self._attempt(self._apply_if_changed(manifest))
        ]

    def _due_reports(
        self, work: Sequence[ServiceWork], change_pending: Callable[[], bool]
    ) -> Iterator[ServiceWork]:
        """Yield the services whose status is due.

        The namespaces take turns, each with the service that has waited longest.
        """
        # Objects of changed services come before the statuses of others, so that many changes at
        # once do not delay each other.
        previous, self._unreported = self._unreported, {}
        waiting = by_turns(
            sorted(work, key=lambda item: previous.get(item.ref, self._cycle)),
            lambda item: item.ref.namespace,
        )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _REPORT_SECONDS
        for index, service_work in enumerate(waiting):
            enough = index >= (_MAX_REPORTS if loop.time() < deadline else MAX_CONCURRENCY)
            if enough and change_pending():
                remaining = waiting[index:]
                self._unreported = {
                    service_work.ref: previous.get(service_work.ref, self._cycle)
                    for service_work in remaining
                }
                return
            yield service_work

    @WriteStep
    async def _apply_objects(self, snapshot: Snapshot, work: ServiceWork) -> None:
        ref, service_plan, problems = work.ref, work.service_plan, work.problems
        self._up_to_date.pop(ref, None)
        if not problems and inputs_unchanged(work.inputs, self._in_place.get(ref)):
            return
        self._in_place.pop(ref, None)
        if must_write_status_first(service_plan) and not await self._write_status(snapshot, work):
            return
        # Of a service that was set aside nothing is known, so its replicas stay as they are.
        pods = () if work.is_set_aside else service_plan.pods
        for manifest, subresource in outdated_marks(snapshot.at, pods, service_plan.drain):
            problems += await self._attempt(self._write(manifest, subresource))
        manifests, existing = self._manifests(service_plan), work.inputs[1]
        if not work.may_add:
            others = [item for item in manifests if item.kind is not api_resources.DEPLOYMENTS]
            refusals, _ = await self._apply_all(others)
            problems += refusals
        elif not self._may_defer(service_plan, manifests, existing):
            refusals, work.in_place = await self._apply_all(manifests)
            problems += refusals
        for deployment, replicas in sorted(resizes(snapshot, work)):
            problems += await self._attempt(self._resize(deployment, replicas))
        for kind, key in obsolete_objects(service_plan, manifests, existing):
            work.in_place = False
            problems += await self._attempt(self._remove(kind, key))
        if work.in_place and not problems:
            # Not after a repair: the same field may be changed again before its event arrives.
            self._in_place[ref] = work.inputs

    @WriteStep
    async def _drain_removed(self, snapshot: Snapshot, removed: RemovedWorkload) -> None:
        """Drain a Deployment without a service; what is refused is repeated in the next cycle."""
        for manifest, subresource in outdated_marks(snapshot.at, removed.pods, removed.drain):
            await self._attempt(self._write(manifest, subresource))
        if removed.workload.replicas != removed.drain.replicas:
            await self._attempt(self._resize(removed.workload.ref, removed.drain.replicas))

    @WriteStep
    async def _report_deletion(self, snapshot: Snapshot, service: ObservedService) -> None:
        pods = [pod for pod in snapshot.pods if pod.service == service.ref]
        status = deleting_status(service, pods, snapshot.at)
        if status != service.status:
            metadata = {"name": service.ref.name, "namespace": service.ref.namespace}
            await self._attempt_status(api_resources.INFERENCE_SERVICES, metadata, status)

    @WriteStep
    async def _report_status(self, snapshot: Snapshot, work: ServiceWork) -> None:
        """Write the status of one service, then do what requires a written status."""
        ref, service_plan, problems = work.ref, work.service_plan, work.problems
        problems += self._model_errors.get(ref, [])
        if not await self._write_status(snapshot, work):
            return
        if (replacement := service_plan.stall.replacement) is not None:
            grace = defaults(service_plan.template_version.builder_version).stalled_grace_seconds
            problems += await self._attempt(self._replace(replacement, grace))
        preparation = service_plan.preparation
        self._model_errors[ref] = await self._prepare_model(service_plan, may_add=work.may_add)
        pending = preparation is not None and preparation.pending
        if work.in_place and not problems and not pending:
            self._up_to_date[ref] = work.inputs

    async def _write_status(self, snapshot: Snapshot, work: ServiceWork) -> bool:
        """Write the status if it changed; return False when that was refused."""
        view = work.tenant.view if work.tenant is not None else None
        applied_plan, problem = (
            self._with_applied_workload(work.service_plan),
            "; ".join(work.problems),
        )
        status = service_status(snapshot, applied_plan, view, problem or None)
        if status == work.status:
            return True
        ref = work.service_plan.service.ref
        metadata = {"name": ref.name, "namespace": ref.namespace}
        refusals = await self._attempt_status(api_resources.INFERENCE_SERVICES, metadata, status)
        work.problems += refusals
        if not refusals:
            work.status = status
        return not refusals

    async def _apply_all(self, manifests: Iterable[ObjectManifest]) -> tuple[list[str], bool]:
        """Apply the objects; return what was refused, and whether all were in place already."""
        problems, in_place = list[str](), True
        for manifest in manifests:
            last = self._applied.get(manifest.key)
            problems += await self._attempt(self._apply_if_changed(manifest))
            in_place &= self._applied.get(manifest.key) is last
        return problems, in_place

    async def _prepare_model(self, service_plan: ServicePlan, *, may_add: bool) -> list[str]:
        """Create and delete the Jobs of the model.

        Their results are in the status before they go.
        """
        preparation, problems = service_plan.preparation, list[str]()
        if preparation is None:
            return problems
        for ref in preparation.obsolete_jobs:
            key = ObjectKey(api_resources.JOBS.plural, ref.namespace, ref.name)
            problems += await self._attempt(self._remove(api_resources.JOBS, key))
        if preparation.job_to_create is not None and may_add:
            manifest = model_job_manifest(
                service_plan.service,
                preparation.job_to_create,
                service_plan.choice,
                self._batch_image,
                self._config.newest_template,
            )
            problems += await self._attempt(self._write(manifest))
        return problems

    def _may_defer(
        self,
        service_plan: ServicePlan,
        manifests: Sequence[ObjectManifest],
        existing: Collection[ClusterObject],
    ) -> bool:
        """Return whether the objects, applied by a previous process, may wait for a later cycle."""
        existing_keys = {observed.key for observed in existing}
        return (
            all(
                manifest.key in existing_keys and manifest.key not in self._applied
                for manifest in manifests
            )
            and was_reconciled_before(service_plan)
            and self._startup_resync.defer(service_plan.service.ref, existing)
        )

    def _with_applied_workload(self, service_plan: ServicePlan) -> ServicePlan:
        """Return the plan with the Deployment as this cycle left it.

        A changed one is not rolled out.
        """
        if service_plan.workload is None:
            return service_plan
        ref = service_plan.workload.ref
        observed = self._store.all(api_resources.DEPLOYMENTS).get(
            ObjectKey(api_resources.DEPLOYMENTS.plural, ref.namespace, ref.name)
        )
        workload = observed.plan_input if observed is not None else None
        if workload is service_plan.workload:
            return service_plan
        return replace(service_plan, workload=workload if isinstance(workload, Workload) else None)

    @WriteStep
    async def _write_budget_status(self, view: BudgetView, snapshot: Snapshot) -> list[str]:
        """Write the status if its record is due; return why there is no record of this cycle."""
        name = view.budget.name
        must_record = name in self._unrecorded
        self._unrecorded.add(name)
        status = budget_status(view, snapshot.at, must_record=must_record)
        refusals: list[str] = []
        if status != view.budget.status:
            refusals = await self._attempt_status(
                api_resources.TENANT_BUDGETS, {"name": name}, status
            )
        if not refusals:
            self._unrecorded.discard(name)
        return refusals

    @WriteStep
    async def _attempt(self, write: Awaitable[object]) -> None:
        await write

    async def _attempt_status(
        self, kind: api_resources.ApiResource, metadata: dict[str, Any], status: BaseModel
    ) -> list[str]:
        manifest = partial_manifest(kind, metadata, status=wire_format(status))
        return await self._attempt(self._write(manifest, "status"))

    async def _apply_if_changed(self, manifest: ObjectManifest) -> None:
        observed = self._store.all(manifest.kind).get(manifest.key)
        last = self._applied.get(manifest.key)
        if (
            observed is not None
            and last is not None
            and last.owned == observed.owned_fields_digest
            and last.body == manifest.body
        ):
            return
        observed = await self._write(manifest)
        self._applied[manifest.key] = _AppliedObject(manifest.body, observed.owned_fields_digest)

    def _begin_write(self) -> None:
        """Count one writing request, which only a leader may send."""
        if not self._is_leader():
            raise NotLeadingError
        self.writes += 1

    async def _write(
        self, manifest: ObjectManifest, subresource: str | None = None
    ) -> ClusterObject:
        """Apply, and store the response, so that the next cycle need not wait for the watch."""
        self._begin_write()
        observed = await self._cluster.apply(manifest, subresource=subresource)
        self._store.put(manifest.kind, observed)
        return observed

    async def _remove(self, kind: api_resources.ApiResource, key: ObjectKey) -> None:
        """Delete the object that was observed; one that replaced it under its name stays."""
        observed = self._store.all(kind).get(key)
        if observed is None:
            return
        self._begin_write()
        await self._cluster.delete(kind, key, uid=observed.uid)
        self._store.drop(kind, key)
        self._applied.pop(key, None)

    async def _resize(self, deployment: Ref, replicas: int) -> None:
        self._begin_write()
        self._store.put(api_resources.DEPLOYMENTS, await self._cluster.scale(deployment, replicas))

    async def _replace(self, replacement: Replacement, grace: int) -> None:
        """Delete a stalled replica's pod."""
        # Only after the status was written: it keeps the next leader from replacing more than
        # allowed.
        key = ObjectKey(api_resources.PODS.plural, replacement.pod.namespace, replacement.pod.name)
        self._begin_write()
        await self._cluster.delete(
            api_resources.PODS, key, uid=replacement.uid, grace_seconds=grace
        )

    def _manifests(self, service_plan: ServicePlan) -> tuple[ObjectManifest, ...]:
        """Return the manifests of a service, rebuilt only when one of their inputs changed."""
        ref, inputs = service_plan.service.ref, children.service_inputs(service_plan)
        if ref not in self._manifest_cache or self._manifest_cache[ref][0] != inputs:
            self._manifest_cache[ref] = (inputs, children.service_manifests(service_plan))
        return self._manifest_cache[ref][1]

    def _log_pull_problems(self, problems: list[str]) -> None:
        """Log new problems; a failed pre-pull delays nothing, so no condition reports it."""
        if problems and problems != self._pull_problems:
            log.warning("image pre-pull failed: %s", "; ".join(problems))
        self._pull_problems = problems

    def _unused_shared_objects(
        self,
        plan: Plan,
        existing: Mapping[Ref | None, tuple[ClusterObject, ...]],
    ) -> list[tuple[api_resources.ApiResource, ObjectKey]]:
        """Return the shared objects of namespaces and pools that no longer need them.

        Their owners may end together. While the garbage collector removes one owner from an object,
        an apply may just have set it as the only one; then only the operator removes the object.
        """
        used = {
            ref.namespace for ref in (*plan.service_plans, *plan.active_batches, *existing) if ref
        }
        used |= {job.ref.namespace for job in plan.orphaned_jobs}
        return [
            (KINDS[observed.key.plural], observed.key)
            for observed in existing.get(None, ())
            if observed.owned_fields_digest
            if (
                self._pull_keys is not None and observed.key not in self._pull_keys
                if observed.key.plural == api_resources.DAEMON_SETS.plural
                else observed.key.namespace not in used
            )
        ]

    def _forget(self, plan: Plan) -> None:
        for ref in self._manifest_cache.keys() - plan.service_plans.keys():
            _, manifests = self._manifest_cache.pop(ref)
            for manifest in manifests:
                self._applied.pop(manifest.key, None)
            self._up_to_date.pop(ref, None)
            self._in_place.pop(ref, None)
        self._startup_resync.forget(plan.service_plans.keys())
        for ref in self._model_errors.keys() - plan.service_plans.keys():
            del self._model_errors[ref]
        namespaces = {ref.namespace for ref in (*plan.service_plans, *plan.active_batches)}
        namespaces.add(self._prepull_namespace)
        for key in [key for key in self._applied if key.namespace not in namespaces]:
            del self._applied[key]
        for name in self._shared_cache.keys() - namespaces:
            del self._shared_cache[name]

    # Whatever a cycle writes for one object, in this order.
    STEPS = (
        _write_pool_status,
        _apply_shared,
        _write_budget_status,
        _apply_objects,
        _report_status,
        _drain_removed,
        _report_deletion,
        *BatchApplier.STEPS,
        _apply_pulls,
    )
