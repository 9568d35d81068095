"""Write what the plan decided for batches: statuses, Jobs to delete, Jobs to create."""

from collections.abc import Sequence

from tessera.api.batch_inference import TERMINAL_STATES
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.config import Config
from tessera.domain.observed.batches import Batch, BatchJob
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.status.batch import batch_status
from tessera.ports import Cluster
from tessera.reconcile.store import forget_all_but
from tessera.reconcile.writing.writer import Writer, WriteStep, attempt
from tessera.resources.api_resources import BATCH_INFERENCES, JOBS
from tessera.resources.batch_job import RunnerImage, batch_job_manifest
from tessera.resources.manifest import ObjectKey


class BatchApplier:
    """Carries out the plans of batches."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        image: RunnerImage,
        writer: Writer,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._image = image
        self._writer = writer
        self._errors: dict[Ref, str] = {}
        self._settled: dict[Ref, BatchPlan] = {}
        """Plans that left nothing to write; there may be thousands of ended batches."""
        self.job_creation_errors: dict[str, str] = {}
        """Why the Jobs of attempts were refused last, by the batches' UIDs."""

    def unsettled(self, plan: Plan) -> list[BatchPlan]:
        """Return the plans that may leave something to write, and forget all other batches."""
        settled, batches = self._settled, plan.batches
        self._settled = {ref: batch for ref, batch in batches.items() if settled.get(ref) is batch}
        forget_all_but(batches, self._errors)
        uids = {batch_plan.batch.uid for batch_plan in batches.values()}
        forget_all_but(uids, self.job_creation_errors)
        return [batch_plan for ref, batch_plan in batches.items() if ref not in self._settled]

    async def apply(
        self, snapshot: Snapshot, batch_plan: BatchPlan, refusals: Sequence[str]
    ) -> None:
        """Apply the plan of a batch; an error stops no other.

        `refusals` say what was refused of what its Job relies on.
        """
        ref = batch_plan.batch.ref
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
            if not problems and batch_plan.create is not None and spec is not None:
                if not refusals:
                    manifest = batch_job_manifest(
                        batch, spec, batch_plan.create, self._image, self._config.newest_template
                    )
                    refusals = await attempt(self._writer.apply(manifest))
                if refusals and batch_plan.create.attempt is not None:
                    creation_error = "; ".join(refusals)
                else:
                    problems += refusals
        self.job_creation_errors.pop(batch.uid, None)
        if creation_error:
            self.job_creation_errors[batch.uid] = creation_error
        return problems

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
