"""Write what the plan decided for batches: statuses, Jobs to delete, Jobs to create."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel

from tessera.api.batch_inference import TERMINAL_STATES
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.config import Config
from tessera.domain.observed.batches import BatchJob
from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.plan import Plan
from tessera.domain.status.batch import batch_status
from tessera.ports import Cluster
from tessera.reconcile.work import TenantFunding, WriteStep, by_turns, run_all
from tessera.resources.api_resources import BATCH_INFERENCES, JOBS, ApiResource
from tessera.resources.batch_job import RunnerImage, batch_job_manifest
from tessera.resources.manifest import ObjectKey, ObjectManifest


class _WriteStatus(Protocol):
    def __call__(
        self, kind: ApiResource, metadata: dict[str, Any], status: BaseModel
    ) -> Awaitable[list[str]]: ...


class BatchApplier:
    """Carries out the plans of batches; an error of one stops no other."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        image: RunnerImage,
        *,
        write: Callable[[ObjectManifest], Awaitable[object]],
        write_status: _WriteStatus,
        remove: Callable[[ApiResource, ObjectKey], Awaitable[None]],
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._image = image
        self._write = write
        self._write_status = write_status
        self._remove = remove
        self._errors: dict[Ref, str] = {}
        self._settled: dict[Ref, BatchPlan] = {}
        """Plans that left nothing to write; there may be thousands of ended batches."""
        self.job_creation_errors: dict[str, str] = {}
        """Errors of the last cycle when creating Jobs of attempts, by the batches' UIDs."""

    async def apply(
        self,
        snapshot: Snapshot,
        plan: Plan,
        tenants: Mapping[str, TenantFunding],
        shared_refusals: Mapping[str, list[str]],
    ) -> None:
        """Apply all batches; tenants and refusals of shared objects are by namespace."""
        self.job_creation_errors.clear()
        settled, batches = self._settled, plan.batches
        self._settled = {ref: batch for ref, batch in batches.items() if settled.get(ref) is batch}
        unsettled = (ref for ref in batches if ref not in self._settled)
        await run_all(
            self._apply_batch(
                snapshot,
                batches[ref],
                tenants.get(ref.namespace),
                shared_refusals.get(ref.namespace, ()),
            )
            for ref in by_turns(unsettled, lambda ref: ref.namespace)
        )
        await run_all(self._delete_orphan(job) for job in plan.orphaned_jobs)
        self._errors = {ref: error for ref, error in self._errors.items() if ref in batches}

    async def _apply_batch(
        self,
        snapshot: Snapshot,
        batch_plan: BatchPlan,
        tenant: TenantFunding | None,
        shared_refusals: Sequence[str],
    ) -> None:
        ref = batch_plan.batch.ref
        problems = await self._write_batch(snapshot, batch_plan, tenant, shared_refusals)
        self._errors.pop(ref, None)
        if problems:
            self._errors[ref] = "; ".join(problems)
        elif batch_plan.state in TERMINAL_STATES and not batch_plan.delete:
            self._settled[ref] = batch_plan

    @WriteStep
    async def _write_batch(
        self,
        snapshot: Snapshot,
        batch_plan: BatchPlan,
        tenant: TenantFunding | None,
        shared_refusals: Sequence[str],
    ) -> list[str]:
        """Write the status of a batch, then its other objects.

        No Job is created while a shared object of its namespace is refused.
        """
        # The attempt in the status is the fence of the runners: without it nothing else is written.
        batch, spec = batch_plan.batch, batch_plan.batch.spec
        status = batch_status(batch_plan, snapshot.at, self._errors.get(batch.ref))
        problems: list[str] = []
        if status != batch.status:
            # The uid keeps the status off a new batch of the same name.
            metadata = {"name": batch.ref.name, "namespace": batch.ref.namespace, "uid": batch.uid}
            problems += await self._write_status(BATCH_INFERENCES, metadata, status)
        if not problems:
            for ref in batch_plan.delete:
                problems += await self._attempt(self._remove(JOBS, _job_key(ref)))
        if not problems and batch_plan.create is not None and spec is not None:
            refusals = [*shared_refusals, *(() if tenant is None else tenant.refusals)]
            if not refusals:
                manifest = batch_job_manifest(
                    batch, spec, batch_plan.create, self._image, self._config.newest_template
                )
                refusals = await self._attempt(self._write(manifest))
            if refusals and batch_plan.create.attempt is not None:
                self.job_creation_errors[batch.uid] = "; ".join(refusals)
            else:
                problems += refusals
        return problems

    @WriteStep
    async def _delete_orphan(self, job: BatchJob) -> None:
        """Delete a Job whose batch does not exist: its runner could publish nothing."""
        # The known batches may be older than the Job, or lack a namespace.
        if await self._cluster.read_uid(BATCH_INFERENCES, job.batch) != job.batch_uid:
            await self._remove(JOBS, _job_key(job.ref))

    @WriteStep
    async def _attempt(self, write: Awaitable[object]) -> None:
        await write

    STEPS = (_write_batch, _delete_orphan)


def _job_key(job: Ref) -> ObjectKey:
    return ObjectKey(JOBS.plural, job.namespace, job.name)
