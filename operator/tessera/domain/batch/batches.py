"""All batches of a plan: each in its situation, and what their tenants have to pay."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.batch.allotment import TERMINAL, BatchAllotment
from tessera.domain.batch.decide import BatchDraft, draft_batch, finish_batch, set_aside
from tessera.domain.batch.facts import Batch, BatchJob, BatchPod, NodeHealth
from tessera.domain.batch.names import payer
from tessera.domain.batch.situation import Situation
from tessera.domain.budget.meter import Meter
from tessera.domain.budget.purse import Claim, Funding, Purse
from tessera.domain.model.prepare import with_known_shape
from tessera.domain.pools import PoolView, discover
from tessera.domain.snapshot import BatchRun, Pod, Ref, Snapshot
from tessera.domain.speed.measured import measured_speeds


@dataclass(frozen=True, slots=True)
class Drafted:
    """A batch in a plan that is being made."""

    situation: Situation
    draft: BatchDraft

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What has to be paid, under the name of the batch."""
        claim, batch = self.draft.claim, self.situation.batch
        return () if claim is None else (replace(claim, ref=payer(batch.ref)),)

    def go_on(self, meter: Meter, purse: Purse) -> None:
        """What runs without a claim of its own is left as it is, and has to be paid."""
        alive = self._alive()
        if self.draft.claim is not None or not alive:
            return
        for uid, one in meter.running.items():
            if uid in alive:
                purse.floor(one.tariff, 1)

    def _alive(self) -> set[str]:
        return {pod.uid for pod in self.situation.pods if pod.ended is None}


def drafted(
    snapshot: Snapshot, views: Sequence[PoolView], taken: Counter[tuple[str, str]]
) -> Mapping[Ref, Drafted]:
    """Every batch as if money were no object; those that hold hardware come first.

    `taken` counts the devices that others hold, and afterwards those of the batches too.
    """
    if not snapshot.batches:
        return {}
    facts = _Facts(snapshot, views)
    found = {}
    for batch in sorted(
        snapshot.batches, key=lambda one: (not facts.pods[one.ref], one.created, one.ref)
    ):
        over = batch.status.state in TERMINAL
        situation = facts.rest(batch) if over else facts.situation(batch.ref, taken)
        try:
            draft = draft_batch(situation)
        except Exception as error:  # noqa: BLE001 - one bad batch must not stop the fleet
            draft = BatchDraft(allotment=set_aside(situation, error))
        found[batch.ref] = Drafted(situation, draft)
        if (choice := draft.allotment.choice) is not None:
            hardware = choice.offer.hardware
            taken[choice.offer.pool, hardware.resource] += hardware.devices
    return found


def situations(snapshot: Snapshot) -> Mapping[Ref, Situation]:
    """Every batch with what it meets, as far as its spec can be judged by."""
    views = discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
    facts = _Facts(snapshot, views)
    return {batch.ref: facts.situation(batch.ref, {}) for batch in snapshot.batches}


def finished(one: Drafted, funding: Funding | None) -> BatchAllotment:
    """The decision for one batch, once the budget has spoken."""
    shortage = funding.shortage if funding is not None else None
    return finish_batch(one.draft, None if shortage is None else shortage.message)


class _Facts:
    """What the snapshot holds, by batch and by namespace.

    What carries the uid of another batch belongs to a former one of the same name.
    """

    def __init__(self, snapshot: Snapshot, views: Sequence[PoolView]) -> None:
        self._snapshot = snapshot
        self._views = tuple(views)
        self._measured = measured_speeds(snapshot.services)
        self._batches = {batch.ref: batch for batch in snapshot.batches}
        uids = {batch.ref: batch.uid for batch in snapshot.batches}
        self.pods: dict[Ref, list[BatchPod]] = defaultdict(list)
        for pod in snapshot.pods:
            if pod.batch_run is not None and uids.get(pod.batch_run.batch) == pod.batch_run.uid:
                self.pods[pod.batch_run.batch].append(_batch_pod(pod, pod.batch_run))
        self._jobs: dict[Ref, list[BatchJob]] = defaultdict(list)
        for job in snapshot.batch_jobs:
            if uids.get(job.batch) == job.batch_uid:
                self._jobs[job.batch].append(job)
        self._services: dict[str, dict[str, InferenceServiceSpec | None]] = defaultdict(dict)
        spaces = {batch.ref.namespace for batch in snapshot.batches}
        for service in snapshot.services:
            if service.ref.namespace in spaces:
                self._services[service.ref.namespace][service.ref.name] = with_known_shape(
                    service
                ).spec
        self._nodes = {
            node.name: NodeHealth(ready=node.kubelet_ready, taints=node.taints, labels=node.labels)
            for node in snapshot.nodes
        }

    def rest(self, batch: Batch) -> Situation:
        """What is left of a batch that is over; there may be many, and nothing is decided there."""
        pods, jobs = tuple(self.pods[batch.ref]), tuple(self._jobs[batch.ref])
        return Situation(at=self._snapshot.at, batch=batch, pods=pods, jobs=jobs)

    def situation(self, ref: Ref, taken: Mapping[tuple[str, str], int]) -> Situation:
        batch = self._batches[ref]
        name = batch.spec.claim if batch.spec is not None else ""
        return Situation(
            at=self._snapshot.at,
            batch=batch,
            pods=tuple(self.pods[ref]),
            jobs=tuple(self._jobs[ref]),
            nodes=self._nodes,
            claim=self._snapshot.claims.get(Ref(ref.namespace, name)),
            services=self._services[ref.namespace],
            views=self._views,
            taken=dict(taken),
            measured=self._measured,
            asked=self._snapshot.runner_answers.get(batch.uid),
            refused=self._snapshot.job_creation_errors.get(batch.uid),
        )


def _batch_pod(pod: Pod, run: BatchRun) -> BatchPod:
    return BatchPod(
        ref=pod.ref,
        uid=pod.uid,
        batch=run.batch,
        attempt=run.attempt,
        created=pod.created,
        owner=run.job_uid,
        node=pod.node,
        bound=pod.bound,
        runner_since=run.since,
        ended=pod.ended,
        exit_code=run.exit_code,
        report=run.report,
        address=pod.address,
        leaving=pod.terminating and pod.ended is None,
        disrupted=run.disrupted,
        unschedulable=pod.unschedulable,
        trouble=pod.waiting_reason,
        last_words=pod.container_message,
    )
