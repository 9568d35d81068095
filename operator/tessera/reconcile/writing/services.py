"""Write the objects and the status of each service, and drain Deployments whose service is gone."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import is_

from tessera.api.reasons import Accepted
from tessera.domain.config import Config
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot, Workload
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan, VariantPlan
from tessera.domain.service.removed import RemovedWorkload
from tessera.domain.status.service import (
    StatusUrgency,
    deleting_status,
    service_status,
    status_urgency,
)
from tessera.ports import ClusterObject
from tessera.reconcile.store import Store, forget_all_but
from tessera.reconcile.writing.defects import Defects
from tessera.reconcile.writing.service_work import (
    FindPrerequisites,
    ServiceInputs,
    ServiceWork,
    inputs_unchanged,
    obsolete_objects,
    outdated_marks,
    resizes,
)
from tessera.reconcile.writing.startup_resync import StartupResync, was_reconciled_before
from tessera.reconcile.writing.write_order import Stage, Work, work_key
from tessera.reconcile.writing.writer import Writer, WriteStep, attempt
from tessera.resources import children
from tessera.resources.api_resources import DEPLOYMENTS, JOBS
from tessera.resources.defaults import defaults
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tessera.resources.model_job import model_job_manifest
from tessera.resources.runner import RunnerImage


class ServiceApplier:
    """Keeps the objects and statuses of services as planned.

    It opens and closes the gates of replicas, replaces stalled ones, and prepares models.
    """

    def __init__(
        self, writer: Writer, store: Store, config: Config, image: RunnerImage, defects: Defects
    ) -> None:
        self._writer = writer
        self._store = store
        self._config = config
        self._image = image
        self._defects = defects
        self._manifest_cache: dict[Ref, tuple[tuple[object, ...], tuple[ObjectManifest, ...]]] = {}
        self._in_place: dict[Ref, ServiceInputs] = {}
        """The inputs of services whose objects are all in place."""
        self._reported = set[Ref]()
        """Those of them that need no status either."""
        self._startup_resync = StartupResync()
        self._model_errors: dict[Ref, list[str]] = {}
        self.problems: dict[Ref, str] = {}
        """What was refused when a service was written last."""

    def work(
        self,
        snapshot: Snapshot,
        plan: Plan,
        existing: Mapping[Ref | None, tuple[ClusterObject, ...]],
        find: FindPrerequisites,
    ) -> Iterator[Work]:
        """Yield the work of services that need objects or a status.

        It includes services that are being deleted, and Deployments that they left.
        """
        for ref in self._startup_resync.begin_cycle():
            self._in_place.pop(ref, None)
        namespaces = {ref.namespace for ref in plan.service_plans}
        refused = {namespace for namespace in namespaces if find(namespace).refusals}
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
                yield from self._order(work, find, is_refused=ref.namespace in refused)
            except Exception as error:  # noqa: BLE001 - it costs this service alone
                self._defects.report(work.status_key.owner, error)
                yield Work(work.status_key, partial(self._report, work))
        for removed in plan.removed_workloads:
            drain = partial(self.drain_removed, snapshot, removed)
            yield Work(work_key(DEPLOYMENTS, removed.workload.ref, Stage.CHILDREN), drain)
        for service in snapshot.deleting_services:
            report = partial(self.report_deletion, snapshot, service)
            yield Work(work_key(INFERENCE_SERVICES, service.ref, Stage.STATUS), report)

    def _order(
        self, work: ServiceWork, find: FindPrerequisites, *, is_refused: bool
    ) -> tuple[Work, ...]:
        """Return the work of a service; what it relies on may have been refused."""
        ref, are_in_place = work.ref, not is_refused and self._are_in_place(work)
        if are_in_place and ref in self._reported:
            self._in_place[ref] = work.inputs  # the next comparison is one of identity
            return ()
        self._reported.discard(ref)
        urgency = status_urgency(work.snapshot, work.service_plan)
        if is_refused and urgency is StatusUrgency.SETTLING:
            urgency = StatusUrgency.USUAL
        required = find(ref.namespace).keys
        if are_in_place:
            report = partial(self._report, work, find)
            return (Work(work.status_key, report, required, urgency),)
        were_applied = self._were_applied(work.service_plan)
        stage = Stage.GATES if were_applied else Stage.CHILDREN
        children_key = work_key(INFERENCE_SERVICES, ref, stage)
        return (
            Work(children_key, partial(self._apply_children, work, find), required),
            Work(work.status_key, partial(self._report, work), (children_key,), urgency),
        )

    async def _apply_children(self, work: ServiceWork, find: FindPrerequisites) -> None:
        self._begin(work, find)
        work.problems += await self.apply_objects(work)

    def _begin(self, work: ServiceWork, find: FindPrerequisites) -> None:
        """Start with what was refused of what the service relies on."""
        work.prerequisites = find(work.ref.namespace)
        work.problems = work.prerequisites.refusals

    async def _report(self, work: ServiceWork, find: FindPrerequisites | None = None) -> None:
        """Report on a service; with `find` it is the first that is done of the work."""
        if find is not None:
            self._begin(work, find)
        work.problems += self._defects.texts(work.status_key.owner)
        work.problems += await self.report_status(work)
        self.problems.pop(work.ref, None)
        if work.problems:
            self.problems[work.ref] = "; ".join(work.problems)

    def _are_in_place(self, work: ServiceWork) -> bool:
        """Return whether the objects of a service are as planned."""
        return inputs_unchanged(work.inputs, self._in_place.get(work.ref))

    def _were_applied(self, service_plan: ServicePlan) -> bool:
        """Return whether the objects of a service are as planned, and no replica leaves."""
        cached = self._manifest_cache.get(service_plan.service.ref)
        return (
            cached is not None
            and cached[0] == children.service_inputs(service_plan)
            and self._writer.are_in_place(cached[1])
            and not service_plan.drain.draining
            and not service_plan.previous_deployments
            and not service_plan.removable_deployments
        )

    @WriteStep
    async def apply_objects(self, work: ServiceWork) -> None:
        ref, service_plan, problems = work.ref, work.service_plan, work.problems
        if not problems and self._are_in_place(work):
            return
        self._in_place.pop(ref, None)
        # Of a service that was set aside nothing is known, so its replicas stay as they are.
        is_set_aside = service_plan.accepted.reason is Accepted.PLANNER_ERROR
        for version in () if is_set_aside else service_plan.versions:
            for marks in outdated_marks(work.snapshot.at, version.pods, version.drain):
                problems += await attempt(self._writer.apply(*marks))
        manifests, existing = self._manifests(service_plan), work.inputs[1]
        if not work.may_change_deployments:
            others = [item for item in manifests if item.kind is not DEPLOYMENTS]
            refusals, _ = await self._writer.apply_changed(others)
            problems += refusals
            work.in_place = False
        elif not self._may_defer(service_plan, manifests, existing):
            refusals, work.in_place = await self._writer.apply_changed(manifests)
            problems += refusals
        for deployment, replicas in sorted(resizes(work)):
            problems += await attempt(self._writer.scale(deployment, replicas))
        for kind, key in obsolete_objects(service_plan, manifests, existing):
            work.in_place = False
            problems += await attempt(self._writer.delete(kind, key))
        if work.in_place and not problems:
            # Not after a repair: the same field may be changed again before its event arrives.
            self._in_place[ref] = work.inputs

    @WriteStep
    async def drain_removed(self, snapshot: Snapshot, removed: RemovedWorkload) -> None:
        """Drain a Deployment without a service; what is refused is repeated in the next cycle."""
        for manifest, subresource in outdated_marks(snapshot.at, removed.pods, removed.drain):
            await attempt(self._writer.apply(manifest, subresource))
        if removed.workload.replicas != removed.drain.replicas:
            await attempt(self._writer.scale(removed.workload.ref, removed.drain.replicas))

    @WriteStep
    async def report_status(self, work: ServiceWork) -> None:
        """Write the status of one service, then do what requires a written status."""
        ref, service_plan, problems = work.ref, work.service_plan, work.problems
        problems += self._model_errors.get(ref, [])
        view = work.prerequisites.view
        applied_plan = self._with_applied_workload(service_plan)
        status = service_status(work.snapshot, applied_plan, view, "; ".join(problems) or None)
        if status != service_plan.service.status:
            refusals = await self._writer.apply_status(INFERENCE_SERVICES, ref, status)
            if refusals:
                problems += refusals
                return
        if (stalled := service_plan.stall.replacement) is not None:
            # Only after the status was written: it keeps the next leader from replacing more than
            # allowed.
            grace = defaults(service_plan.template_version.builder_version).stalled_grace_seconds
            pod = Ref(ref.namespace, stalled.pod)
            problems += await attempt(self._writer.delete_pod(pod, stalled.uid, grace))
        self._model_errors[ref] = [
            error
            for version in service_plan.versions
            for error in await self._prepare_model(version, may_add=work.prerequisites.may_add)
        ]
        preparations = (version.preparation for version in service_plan.versions)
        pending = any(each is not None and each.pending for each in preparations)
        if work.in_place and not problems and not pending:
            self._in_place[ref] = work.inputs
            self._reported.add(ref)

    @WriteStep
    async def report_deletion(self, snapshot: Snapshot, service: ObservedService) -> None:
        pods = [pod for pod in snapshot.pods if pod.service == service.ref]
        status = deleting_status(service, pods, snapshot.at)
        if status != service.status:
            await self._writer.apply_status(INFERENCE_SERVICES, service.ref, status)

    def forget(self, plan: Plan) -> set[ObjectKey]:
        """Forget services that do not exist anymore; return the keys of their objects."""
        forgotten = {
            manifest.key
            for ref in self._manifest_cache.keys() - plan.service_plans.keys()
            for manifest in self._manifest_cache[ref][1]
        }
        self._reported &= plan.service_plans.keys()
        memories = self._manifest_cache, self._in_place, self._model_errors, self.problems
        forget_all_but(plan.service_plans, *memories)
        self._startup_resync.forget(plan.service_plans.keys())
        return forgotten

    def _manifests(self, service_plan: ServicePlan) -> tuple[ObjectManifest, ...]:
        """Return the manifests of a service, rebuilt only when one of their inputs changed."""
        ref, inputs = service_plan.service.ref, children.service_inputs(service_plan)
        if ref not in self._manifest_cache or self._manifest_cache[ref][0] != inputs:
            self._manifest_cache[ref] = (inputs, children.service_manifests(service_plan))
        return self._manifest_cache[ref][1]

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
                manifest.key in existing_keys and not self._writer.has_applied(manifest.key)
                for manifest in manifests
            )
            and was_reconciled_before(service_plan)
            and self._startup_resync.defer(service_plan.service.ref, existing)
        )

    async def _prepare_model(self, service_plan: ServicePlan, *, may_add: bool) -> list[str]:
        """Create and delete the Jobs of the model.

        Their results are in the status before they go.
        """
        preparation, problems = service_plan.preparation, list[str]()
        if preparation is None:
            return problems
        for ref in preparation.obsolete_jobs:
            key = ObjectKey(JOBS.plural, ref.namespace, ref.name)
            problems += await attempt(self._writer.delete(JOBS, key))
        if preparation.job_to_create is not None and may_add:
            job = preparation.job_to_create
            namespace = service_plan.service.ref.namespace
            if ObjectKey(JOBS.plural, namespace, job.name) in self._store.all(JOBS):
                return problems  # another service that uses the files was first
            manifest = model_job_manifest(
                service_plan.service,
                job,
                service_plan.choice,
                self._image,
                self._config.newest_template,
            )
            problems += await attempt(self._writer.apply(manifest))
        return problems

    def _with_applied_workload(self, service_plan: ServicePlan) -> ServicePlan:
        """Return the plan with the Deployments as this cycle left them.

        A changed one is not rolled out.
        """
        variants = tuple([self._with_applied(variant) for variant in service_plan.variants])
        if all(map(is_, variants, service_plan.variants)):
            return service_plan
        return replace(service_plan, variants=variants)

    def _with_applied(self, variant: VariantPlan) -> VariantPlan:
        if variant.workload is None:
            return variant
        ref = variant.workload.ref
        observed = self._store.all(DEPLOYMENTS).get(
            ObjectKey(DEPLOYMENTS.plural, ref.namespace, ref.name)
        )
        workload = observed.plan_input if observed is not None else None
        if workload is variant.workload:
            return variant
        applied = workload if isinstance(workload, Workload) else None
        return replace(variant, template=replace(variant.template, workload=applied))
