"""Write what the plan decided for batches: statuses, Jobs to delete, Jobs to create."""

from collections.abc import Iterator, Sequence
from functools import partial

from tessera.api.batch_inference import TERMINAL_STATES, BatchInferenceSpec
from tessera.domain.batch.batch_plan import BatchJobRequest, BatchPlan
from tessera.domain.config import Config
from tessera.domain.kinds.kinds import BATCH_INFERENCES
from tessera.domain.observed.batches import Batch, BatchJob
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.service.preparation.jobs import ModelJob
from tessera.domain.status.batch import batch_status
from tessera.ports import Cluster
from tessera.reconcile.store import forget_all_but
from tessera.reconcile.writing.defects import Defects
from tessera.reconcile.writing.service_work import FindPrerequisites
from tessera.reconcile.writing.write_order import Stage, Work, work_key
from tessera.reconcile.writing.writer import Writer, WriteStep, attempt
from tessera.resources.api_resources import JOBS
from tessera.resources.batch_job import batch_job_manifest
from tessera.resources.manifest import ObjectKey
from tessera.resources.model_job import model_claim_manifest, model_job_manifest
from tessera.resources.runner import RunnerImage


class BatchApplier:
    """Carries out the plans of batches."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        image: RunnerImage,
        writer: Writer,
        defects: Defects,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._image = image
        self._writer = writer
        self._defects = defects
        self._errors: dict[Ref, str] = {}
        self._settled: dict[Ref, BatchPlan] = {}
        """Plans that left nothing to write; there may be thousands of ended batches."""
        self.job_creation_errors: dict[str, str] = {}
        """Why the Jobs of attempts were refused last, by the batches' UIDs."""

    def work(self, snapshot: Snapshot, plan: Plan, find: FindPrerequisites) -> Iterator[Work]:
        """Yield the work of batches that may leave something to write, and forget all others."""
        settled, batches = self._settled, plan.batches
        self._settled = {ref: batch for ref, batch in batches.items() if settled.get(ref) is batch}
        forget_all_but(batches, self._errors)
        uids = {batch_plan.batch.uid for batch_plan in batches.values()}
        forget_all_but(uids, self.job_creation_errors)
        outdated = {batch.ref for batch in plan.outdated_batches}
        for ref, batch_plan in batches.items():
            if ref in self._settled or ref in outdated:
                continue  # what is outdated is deleted below
            has_jobs = batch_plan.create or batch_plan.model_job or batch_plan.delete
            yield Work(
                work_key(BATCH_INFERENCES, ref, Stage.CHILDREN if has_jobs else Stage.STATUS),
                partial(self.apply, snapshot, batch_plan, find),
                find(ref.namespace).keys,
            )
        for batch in plan.outdated_batches:
            delete = partial(self.delete_outdated, batch)
            yield Work(work_key(BATCH_INFERENCES, batch.ref, Stage.STATUS), delete)
        for job in plan.orphaned_jobs:
            yield Work(work_key(JOBS, job.ref, Stage.STATUS), partial(self.delete_orphan, job))

    async def apply(
        self, snapshot: Snapshot, batch_plan: BatchPlan, find: FindPrerequisites
    ) -> None:
        """Apply the plan of a batch; an error stops no other."""
        ref = batch_plan.batch.ref
        prerequisites = find(ref.namespace)
        defects = self._defects.texts(work_key(BATCH_INFERENCES, ref, Stage.STATUS).owner)
        refusals = [*prerequisites.of_shared, *defects, *prerequisites.of_budget]
        problems = await self.write_batch(snapshot, batch_plan, refusals)
        self._errors.pop(ref, None)
        if problems:
            self._errors[ref] = "; ".join(problems)
        elif batch_plan.state in TERMINAL_STATES and not batch_plan.delete:
            self._settled[ref] = batch_plan

    @WriteStep
    async def write_batch(
        self, snapshot: Snapshot, batch_plan: BatchPlan, refusals: Sequence[str]
    ) -> list[str]:
        """Write the status of a batch, then its other objects; after refusals no Job is created."""
        # The attempt in the status is the fence of the runners: without it nothing else is written.
        batch, spec = batch_plan.batch, batch_plan.batch.spec
        status = batch_status(batch_plan, snapshot.at, self._errors.get(batch.ref))
        problems, creation_error = list[str](), ""
        if status != batch.status:
            problems += await self._writer.apply_status(
                BATCH_INFERENCES, batch.ref, status, batch.uid
            )
        # An attempt in the status without a Job would be taken for one whose Job was deleted.
        with self._writer.completing():
            if not problems:
                for ref in batch_plan.delete:
                    problems += await attempt(self._writer.delete(JOBS, _job_key(ref)))
            if not problems and batch_plan.model_job is not None:
                problems += refusals or await self._create_model_job(batch, batch_plan.model_job)
            if not problems and batch_plan.create is not None and spec is not None:
                refusals = refusals or await self._create(batch, spec, batch_plan.create)
                if refusals and batch_plan.create.attempt is not None:
                    creation_error = "; ".join(refusals)
                else:
                    problems += refusals
        self.job_creation_errors.pop(batch.uid, None)
        if creation_error:
            self.job_creation_errors[batch.uid] = creation_error
        return problems

    async def _create_model_job(self, batch: Batch, model_job: ModelJob) -> list[str]:
        template = self._config.newest_template
        manifest = model_job_manifest(batch, model_job, None, self._image, template)
        return await attempt(self._writer.apply(manifest))

    async def _create(
        self, batch: Batch, spec: BatchInferenceSpec, request: BatchJobRequest
    ) -> list[str]:
        """Create a Job after the claims that its pod mounts; return what was refused."""
        manifests = [model_claim_manifest(claim) for claim in request.claims]
        template = self._config.newest_template
        manifests.append(batch_job_manifest(batch, spec, request, self._image, template))
        for manifest in manifests:
            if refusals := await attempt(self._writer.apply(manifest)):
                return refusals
        return []

    @WriteStep
    async def delete_orphan(self, job: BatchJob) -> None:
        """Delete a Job whose batch does not exist: its runner could publish nothing."""
        # The known batches may be older than the Job, or lack a namespace.
        if await self._cluster.read_uid(BATCH_INFERENCES, job.batch) != job.batch_uid:
            await self._writer.delete(JOBS, _job_key(job.ref))

    @WriteStep
    async def delete_outdated(self, batch: Batch) -> None:
        """Delete a batch that ended longer ago than its `spec.ttlAfterFinished`."""
        key = ObjectKey(BATCH_INFERENCES.plural, batch.ref.namespace, batch.ref.name)
        await self._writer.delete(BATCH_INFERENCES, key)


def _job_key(job: Ref) -> ObjectKey:
    return ObjectKey(JOBS.plural, job.namespace, job.name)
