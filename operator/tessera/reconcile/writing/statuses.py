"""Write the statuses of services, and do what requires a written status."""

from dataclasses import replace

from tessera.domain.config import Config
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot, Workload
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.status.service import deleting_status, service_status
from tessera.reconcile.store import Store, forget_all_but
from tessera.reconcile.writing.service_work import ServiceInputs, ServiceWork, inputs_unchanged
from tessera.reconcile.writing.writer import Writer, WriteStep, attempt
from tessera.resources.api_resources import DEPLOYMENTS, INFERENCE_SERVICES, JOBS
from tessera.resources.batch_job import RunnerImage
from tessera.resources.defaults import defaults
from tessera.resources.manifest import ObjectKey
from tessera.resources.model_job import model_job_manifest


class ServiceStatusApplier:
    """Writes statuses, replaces stalled replicas, and prepares models."""

    def __init__(self, writer: Writer, store: Store, config: Config, image: RunnerImage) -> None:
        self._writer = writer
        self._store = store
        self._config = config
        self._image = image
        self._model_errors: dict[Ref, list[str]] = {}
        self._up_to_date: dict[Ref, ServiceInputs] = {}
        """The inputs of services that need neither objects nor a status."""

    def is_up_to_date(self, ref: Ref, inputs: ServiceInputs) -> bool:
        """Return whether a service needs neither objects nor a status."""
        if not inputs_unchanged(inputs, self._up_to_date.get(ref)):
            return False
        self._up_to_date[ref] = inputs  # the next comparison is one of identity
        return True

    def invalidate(self, ref: Ref) -> None:
        """Note that a service may need objects or a status."""
        self._up_to_date.pop(ref, None)

    @WriteStep
    async def report_status(self, work: ServiceWork) -> None:
        """Write the status of one service, then do what requires a written status."""
        ref, service_plan, problems = work.ref, work.service_plan, work.problems
        problems += self._model_errors.get(ref, [])
        view = work.tenant.view if work.tenant is not None else None
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
        preparation = service_plan.preparation
        self._model_errors[ref] = await self._prepare_model(service_plan, may_add=work.may_add)
        pending = preparation is not None and preparation.pending
        if work.in_place and not problems and not pending:
            self._up_to_date[ref] = work.inputs

    @WriteStep
    async def report_deletion(self, snapshot: Snapshot, service: ObservedService) -> None:
        pods = [pod for pod in snapshot.pods if pod.service == service.ref]
        status = deleting_status(service, pods, snapshot.at)
        if status != service.status:
            await self._writer.apply_status(INFERENCE_SERVICES, service.ref, status)

    def forget(self, plan: Plan) -> None:
        """Forget services that do not exist anymore."""
        forget_all_but(plan.service_plans, self._up_to_date, self._model_errors)

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
            manifest = model_job_manifest(
                service_plan.service,
                preparation.job_to_create,
                service_plan.choice,
                self._image,
                self._config.newest_template,
            )
            problems += await attempt(self._writer.apply(manifest))
        return problems

    def _with_applied_workload(self, service_plan: ServicePlan) -> ServicePlan:
        """Return the plan with the Deployment as this cycle left it.

        A changed one is not rolled out.
        """
        if service_plan.workload is None:
            return service_plan
        ref = service_plan.workload.ref
        observed = self._store.all(DEPLOYMENTS).get(
            ObjectKey(DEPLOYMENTS.plural, ref.namespace, ref.name)
        )
        workload = observed.plan_input if observed is not None else None
        if workload is service_plan.workload:
            return service_plan
        return replace(service_plan, workload=workload if isinstance(workload, Workload) else None)
