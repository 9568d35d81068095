"""All batches of a plan: the situation of each, its plan and its claim on the budget."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.tenant_budget import BudgetRaise, TenantBudgetSpec
from tessera.domain.batch import decide
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.names import billing_ref, errors_path
from tessera.domain.batch.situation import Situation
from tessera.domain.budget.budgets import namespace_claims
from tessera.domain.budget.forecast import GrantForecast
from tessera.domain.budget.meter import SpendMeter
from tessera.domain.budget.state import BudgetState, Grant, GrantRequest
from tessera.domain.charge.price_book import content_digest
from tessera.domain.hardware.pools import PoolView, discover
from tessera.domain.incremental import reused_per_object
from tessera.domain.model.names import model_job_name
from tessera.domain.observed.batches import Batch, BatchJob, NodeHealth
from tessera.domain.observed.snapshot import BatchPod, Ref, Snapshot
from tessera.domain.placement.checks import shape_of
from tessera.domain.service.pinned_revision import PinnedRevision, pinned_spec, recorded_for_spec
from tessera.domain.service.preparation.claims import ClaimUsers, ModelClaim
from tessera.domain.service.preparation.jobs import (
    ModelJob,
    ModelJobs,
    ModelJobStatus,
    assess_job_of_files,
)
from tessera.domain.service.preparation.shape import with_known_files
from tessera.domain.speed.measurements import measured_speeds, speeds_for
from tessera.domain.steps import Step


@dataclass(frozen=True, slots=True)
class ProposedBatch:
    """A batch with its situation and its plan, before the budget decides."""

    situation: Situation
    plan: BatchPlan

    @property
    def claims(self) -> tuple[GrantRequest, ...]:
        """The grants that the batch needs, under its billing name."""
        claim, batch = self.plan.claim, self.situation.batch
        return () if claim is None else (replace(claim, ref=billing_ref(batch.ref)),)

    def charge_live_pods(self, meter: SpendMeter, budget_state: BudgetState) -> None:
        """Reserve the budget of live pods for which the plan claims no grant."""
        live_uids = {pod.uid for pod in self.situation.pods if pod.ended is None}
        if self.plan.claim is not None or not live_uids:
            return
        for uid, running in meter.running.items():
            if uid in live_uids:
                owner = billing_ref(self.situation.batch.ref)
                budget_state.reserve_min_replicas(running.tariff, 1, owner)


def propose_batches(
    snapshot: Snapshot,
    views: Sequence[PoolView],
    used_devices: Counter[tuple[str, str]],
    forecast: GrantForecast,
    job_creation_errors: Mapping[str, str],
    users: ClaimUsers,
) -> Mapping[Ref, ProposedBatch]:
    """Propose a plan for every batch regardless of budgets.

    Batches that hold hardware come first. `used_devices` counts the devices in use and is
    increased by those of proposals that run or would be granted.
    """
    if not snapshot.batches:
        return {}
    index = _SnapshotIndex(snapshot, views, job_creation_errors, users)
    proposals = {}
    for batch in sorted(
        snapshot.batches,
        key=lambda candidate: (not index.pods[candidate.ref], candidate.created, candidate.ref),
    ):
        proposed = proposed_batch(index, batch, used_devices)
        proposals[batch.ref] = proposed
        allocate(used_devices, proposed, forecast)
    return proposals


def outdated_batches(snapshot: Snapshot) -> tuple[Batch, ...]:
    """Return the batches that ended longer ago than their `spec.ttlAfterFinished`."""
    return tuple(batch for batch in snapshot.batches if is_outdated(batch, snapshot.at))


is_outdated = Step(Batch.is_outdated, lambda *_: False)


def orphaned_jobs(snapshot: Snapshot) -> tuple[BatchJob, ...]:
    """Return the Jobs of batches that are not known, without those whose pod has ended."""
    uids = {batch.uid for batch in snapshot.batches}
    orphans = [job for job in snapshot.batch_jobs if job.batch_uid not in uids]
    if not orphans:
        return ()
    ended = {
        pod.owner for pod in snapshot.pods if isinstance(pod, BatchPod) and pod.ended is not None
    }
    return tuple(job for job in orphans if job.uid not in ended)


def _allocate(
    used_devices: Counter[tuple[str, str]], proposed: ProposedBatch, forecast: GrantForecast
) -> None:
    """Count the devices of a batch that runs or would be granted."""
    choice, claim = proposed.plan.choice, proposed.plan.claim
    runs = any(pod.ended is None for pod in proposed.situation.pods)
    if choice is not None and (runs or claim is None or forecast.count(claim)):
        hardware = choice.offer.hardware
        used_devices[choice.offer.pool, hardware.resource] += hardware.devices


allocate = Step(_allocate, lambda *_: None)


def _propose(
    index: "_SnapshotIndex", batch: Batch, used_devices: Counter[tuple[str, str]]
) -> ProposedBatch:
    if batch.has_ended(index.at):
        situation = index.terminal_situation(batch)
        return _ended_batch(batch.ref, batch, situation.pods, situation.jobs, situation=situation)
    situation = index.situation(batch.ref, used_devices)
    return ProposedBatch(situation, decide.propose_batch(situation))


@reused_per_object  # there may be thousands
def _ended_batch(
    _ref: Ref,
    _batch: Batch,
    _pods: Sequence[BatchPod],
    _jobs: Sequence[BatchJob],
    *,
    situation: Situation,
) -> ProposedBatch:
    return ProposedBatch(situation, decide.propose_batch(situation))


def _set_aside_proposal(
    error: Exception, index: "_SnapshotIndex", batch: Batch, *_: object
) -> ProposedBatch:
    situation = index.terminal_situation(batch)
    return ProposedBatch(situation, decide.planner_error_plan(situation, error))


proposed_batch = Step(_propose, _set_aside_proposal)


def situation_of(snapshot: Snapshot, ref: Ref) -> Situation:
    """Return the situation of one batch, as far as the checks of its spec need it."""
    views = discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
    return _SnapshotIndex(snapshot, views, {}, ClaimUsers()).situation(ref, {})


def _final_plan(
    proposed: ProposedBatch,
    funding: Grant | Exception | None,
    refuse_claim: Callable[[ModelClaim], str | None],
    refuse_jobs: Callable[[Batch], str | None],
) -> BatchPlan:
    """Return the plan of one batch after the decision of the budget."""
    if isinstance(funding, Exception):
        raise funding
    shortage, request = funding.shortage if funding is not None else None, proposed.plan.create
    for claim in request.claims if request is not None else ():
        shortage = shortage or refuse_claim(claim)
    funded = decide.apply_funding(proposed.plan, shortage)
    return decide.without_unpaid_jobs(funded, refuse_jobs(proposed.situation.batch))


final_plan = Step(
    _final_plan,
    lambda error, proposed, *_: decide.planner_error_plan(proposed.situation, error),
)


class _SnapshotIndex:
    """Objects of the snapshot, by batch and by namespace."""

    def __init__(
        self,
        snapshot: Snapshot,
        views: Sequence[PoolView],
        job_creation_errors: Mapping[str, str],
        users: ClaimUsers,
    ) -> None:
        self.at = snapshot.at
        self._users = users
        self._job_creation_errors = job_creation_errors
        self._snapshot = snapshot
        self._model_jobs = ModelJobs(snapshot.at, snapshot.model_jobs, snapshot.pods)
        self._views = tuple(views)
        self._measured = measured_speeds(snapshot.services)
        self._batches = {batch.ref: batch for batch in snapshot.batches}
        # Objects with another uid belong to a deleted batch of the same name.
        uids = {batch.ref: batch.uid for batch in snapshot.batches}
        self.pods: dict[Ref, list[BatchPod]] = defaultdict(list)
        for pod in snapshot.pods:
            if isinstance(pod, BatchPod) and uids.get(pod.batch) == pod.batch_uid:
                self.pods[pod.batch].append(pod)
        self._jobs: dict[Ref, list[BatchJob]] = defaultdict(list)
        for job in snapshot.batch_jobs:
            if uids.get(job.batch) == job.batch_uid:
                self._jobs[job.batch].append(job)
        self._services: dict[str, dict[str, InferenceServiceSpec | None]] = defaultdict(dict)
        namespaces = {batch.ref.namespace for batch in snapshot.batches}
        self._budgets = {
            name: _limits_digest(claim.budget.name, claim.spec, claim.budget.raises)
            for claim in namespace_claims(snapshot.budgets)
            for name in namespaces.intersection(claim.namespaces)
        }
        for service in snapshot.services:
            namespace = service.ref.namespace
            if namespace in namespaces:
                spec = with_known_files(service).spec
                if spec is not None:
                    recorded = recorded_for_spec(spec, service.status.model)
                    spec = pinned_spec(spec, PinnedRevision(recorded))
                self._services[namespace][service.ref.name] = spec
        self._writers: dict[tuple[Ref, str], Ref] = {}
        """The first unfinished batch that writes a file, by claim and path."""
        unfinished = (batch for batch in snapshot.batches if batch.unfinished)
        # Where links lead is known after the check: by then a younger batch may have begun.
        for batch in sorted(
            unfinished, key=lambda batch: (batch.status.attempt is None, batch.created, batch.ref)
        ):
            for file in written_files(batch):
                self._writers.setdefault(file, batch.ref)
        self._nodes = {
            node.name: NodeHealth(ready=node.kubelet_ready, taints=node.taints, labels=node.labels)
            for node in snapshot.nodes
        }

    def _shape_job(self, batch: Batch) -> ModelJobStatus | None:
        """Return the Job that reads a batch's own model, whose shape nothing else has."""
        model = batch.spec.model if batch.spec is not None else None
        if model is None or shape_of(spec := InferenceServiceSpec(model=model)) is not None:
            return None
        name = model_job_name(batch.ref.name, batch.uid, "shape", model)
        model_job = ModelJob(task="shape", name=name, spec=spec)
        return assess_job_of_files(self._model_jobs, batch.ref.namespace, model_job)

    def terminal_situation(self, batch: Batch) -> Situation:
        """Return the pods and Jobs of a finished batch, without the facts of a decision."""
        # There may be many of these, and nothing is decided for them.
        pods, jobs = tuple(self.pods[batch.ref]), tuple(self._jobs[batch.ref])
        return Situation(at=self.at, batch=batch, pods=pods, jobs=jobs)

    def situation(self, ref: Ref, used_devices: Mapping[tuple[str, str], int]) -> Situation:
        batch = self._batches[ref]
        name = batch.spec.claim_name if batch.spec is not None else ""
        return Situation(
            at=self.at,
            batch=batch,
            pods=tuple(self.pods[ref]),
            jobs=tuple(self._jobs[ref]),
            nodes=self._nodes,
            claim=self._snapshot.claims.get(Ref(ref.namespace, name)),
            volumes=self._snapshot.claims,
            claim_users=self._users,
            shape_job=self._shape_job(batch),
            conflict=next(
                (
                    (path, writer)
                    for claim, path in written_files(batch)
                    if (writer := self._writers.get((claim, path), ref)) != ref
                ),
                None,
            ),
            services=self._services[ref.namespace],
            views=self._views,
            used_devices=dict(used_devices),
            measured=speeds_for(ref.namespace, self._measured),
            progress_sample=self._snapshot.runner_answers.get(batch.uid),
            unanswered_since=self._snapshot.silent_runners.get(batch.uid),
            pod_refusals=self._snapshot.pod_refusals,
            job_refusal=self._job_creation_errors.get(batch.uid),
            budget=self._budgets.get(ref.namespace, _NO_BUDGET),
        )


@reused_per_object
def _limits_digest(
    name: str, spec: TenantBudgetSpec | None, raises: tuple[BudgetRaise, ...]
) -> str:
    """Return what tells the limits and raises of a budget apart from others."""
    limits = () if spec is None else spec.limits
    return content_digest(
        "\n".join((name, *(each.model_dump_json() for each in (*limits, *raises))))
    )


_NO_BUDGET = content_digest("")


def _written_files(batch: Batch) -> Sequence[tuple[Ref, str]]:
    """Return the files that a batch writes, by claim and path."""
    if batch.spec is None:
        return ()
    claim, check = Ref(batch.ref.namespace, batch.spec.claim_name), batch.status.check
    resolved = () if check is None else check.files
    paths = dict.fromkeys((batch.spec.output, errors_path(batch.spec), *resolved))
    return tuple((claim, path) for path in paths)


written_files = Step(_written_files, lambda *_: ())
