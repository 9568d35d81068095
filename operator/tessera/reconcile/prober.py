"""Probes of engines, runners and hubs in the background; their results enter a later cycle."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial

from tessera.api.model_files import PoolingTask
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.batch.names import RUNNER_PORT
from tessera.domain.health.readiness import was_ready
from tessera.domain.health.stall import Suspect
from tessera.domain.names import PORT
from tessera.domain.observed.batches import BatchJob, PodRefusal, ProgressSample
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.snapshot import (
    InFlight,
    ListedAutoscalers,
    ObservedService,
    Pod,
    ProbeResult,
    Ref,
    RevisionQuery,
    Snapshot,
)
from tessera.domain.placement.checks import pooling_task
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.rollout.drain import DrainPlan
from tessera.domain.service.preparation.jobs import ModelJobs, podless_jobs
from tessera.domain.steps import Step
from tessera.ports import Clock, Cluster, ClusterError, Engines, ModelHub
from tessera.reconcile.observe import ProbeAnswers
from tessera.reconcile.store import forget_all_but

# Seconds between two probes of a draining replica.
_DRAIN_INTERVAL = timedelta(seconds=1)
# Seconds between two probes of a runner.
_RUNNER_INTERVAL = timedelta(seconds=3)
# Seconds between two questions for the events of a Job without a pod, or of a pod without a node.
_EVENTS_INTERVAL = timedelta(seconds=30)
# Pods whose events a cycle asks for.
_MAX_EVENT_READS = 4
# Seconds between two lists of the autoscalers of a namespace where somebody else writes replicas.
_AUTOSCALERS_INTERVAL = timedelta(seconds=15)
# Namespaces whose autoscalers a cycle lists.
_MAX_AUTOSCALER_LISTS = 4
# Probes of one namespace at the same time: engines that hang delay those beside them alone.
_PROBES_PER_NAMESPACE = 16
# How long a resolved revision stays valid.
_RESOLUTION_TTL = timedelta(seconds=10)


class Prober:
    """Keeps at most one probe in flight for each service, each replica and each model revision."""

    def __init__(
        self,
        engines: Engines,
        answers: ProbeAnswers,
        clock: Clock,
        wake: Callable[[], None],
        hub: ModelHub | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        self._cluster = cluster
        self._hub = hub
        self._engines = engines
        self._answers = answers
        self._clock = clock
        self._wake = wake
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._free_probes: dict[str, asyncio.Semaphore] = defaultdict(
            partial(asyncio.Semaphore, _PROBES_PER_NAMESPACE)
        )
        self._event_times: dict[str, datetime] = {}
        self._fetch_times: dict[Ref, datetime] = {}
        self._resolution_times: dict[RevisionQuery, datetime] = {}

    def start(self, snapshot: Snapshot, plan: Plan) -> None:
        """Start the probes that the plan needs, and forget what it does not know anymore."""
        for service_plan in plan.versions:
            if service_plan.is_moving:
                self.start_service(self, service_plan.service.ref, service_plan)
        for removed in plan.removed_workloads:
            self._start_drain_probes(removed.pods, removed.drain)
        for ref in plan.services_to_probe & snapshot.addresses.keys():
            address = _host_port(snapshot.addresses[ref], PORT)
            complete = partial(self._probe_completion, plan.service_plans[ref].service, address)
            self._start_once(f"service {ref}", ref.namespace, complete)
        for suspect in plan.suspects:
            if suspect.pod.address:
                check = partial(self._check_suspect, suspect, _host_port(suspect.pod.address, PORT))
                self._start_once(f"pod {suspect.pod.uid}", suspect.pod.ref.namespace, check)
        for batch_plan in plan.batches.values():
            self._start_batch_probes(batch_plan)
        for ref, address in _gate_job_addresses(plan).items():
            self._start_fetch_probe(ref, _host_port(address, RUNNER_PORT))
        self._start_event_reads(snapshot, plan)
        self._start_autoscaler_lists(plan)
        self._forget(plan)

    def _start_event_reads(self, snapshot: Snapshot, plan: Plan) -> None:
        """Ask why Jobs have no pod, forgetting it of those that have one, and pods no place."""
        if self._cluster is None:
            return
        model_jobs = ModelJobs(snapshot.at, snapshot.model_jobs, snapshot.pods)
        podless: list[BatchJob | ObservedModelJob] = [*podless_jobs(model_jobs)]
        podless += [each.podless_job for each in plan.batches.values() if each.podless_job]
        for job in podless:
            refusal = self._answers.pod_refusals.get(job.uid)
            if _is_due(self._clock(), refusal.at if refusal else None, _EVENTS_INTERVAL):
                read = partial(self._read_pod_refusal, self._cluster, job)
                self._start_once(f"job {job.uid}", job.ref.namespace, read)
        forget_all_but({job.uid for job in podless}, self._answers.pod_refusals)
        due = [
            pod
            for view in plan.pools
            for pod in view.pods_to_explain
            if _is_due(self._clock(), self._event_times.get(pod.uid), _EVENTS_INTERVAL)
        ]
        for pod in due[:_MAX_EVENT_READS]:
            read = partial(self._read_pod_events, self._cluster, pod)
            self._start_once(f"events {pod.uid}", pod.ref.namespace, read)

    def _start_autoscaler_lists(self, plan: Plan) -> None:
        """List autoscalers where somebody else writes replicas, and forget them elsewhere."""
        known = self._answers.autoscalers
        contested = {ref.namespace for ref, each in plan.service_plans.items() if each.contested}
        forget_all_but(contested, known)
        if self._cluster is None:
            return
        last = {each: known[each].at if each in known else None for each in contested}
        due = [
            each for each in contested if _is_due(self._clock(), last[each], _AUTOSCALERS_INTERVAL)
        ]
        # The oldest list comes first, so that none waits behind the others for ever.
        due.sort(key=lambda each: (last[each] is not None, last[each], each))
        for namespace in due[:_MAX_AUTOSCALER_LISTS]:
            read = partial(
                _list_autoscalers, self._cluster, namespace, self._clock(), known, self._wake
            )
            self._start_once(f"autoscalers {namespace}", namespace, read)

    def _start_batch_probes(self, batch_plan: BatchPlan) -> None:
        uid, probe = batch_plan.batch.uid, batch_plan.progress_target
        namespace = batch_plan.batch.ref.namespace
        answer = self._answers.runner_answers.get(uid)
        if probe is not None and _is_due(
            self._clock(), answer.at if answer else None, _RUNNER_INTERVAL
        ):
            fetch = partial(self._fetch_progress, uid, _host_port(probe.address, RUNNER_PORT))
            self._start_once(f"batch {uid} {probe.attempt}", namespace, fetch)

    def _start_service_probes(self, ref: Ref, service_plan: ServicePlan) -> None:
        if (query := service_plan.pinned_revision.query) is not None and self._hub is not None:
            # By namespace too: none waits behind another's probes for a model that both use.
            key = f"model {query} of {ref.namespace}"
            self._start_once(key, ref.namespace, partial(self._resolve, self._hub, query))
        fetching = service_plan.preparation and service_plan.preparation.progress_address
        if fetching:
            self._start_fetch_probe(ref, _host_port(fetching, PORT))
        self._start_drain_probes(service_plan.pods, service_plan.drain)

    def _start_fetch_probe(self, ref: Ref, address: str) -> None:
        if _is_due(self._clock(), self._fetch_times.get(ref), _RUNNER_INTERVAL):
            fetch = partial(self._fetch_status, ref, address)
            self._start_once(f"fetch {ref}", ref.namespace, fetch)

    def _start_drain_probes(self, pods: Iterable[Pod], drain: DrainPlan) -> None:
        if not (draining := drain.draining):
            return
        for pod in pods:
            load = self._answers.in_flight.get(pod.ref)
            due = _is_due(self._clock(), load.at if load else None, _DRAIN_INTERVAL)
            if pod.ref in draining and pod.address and due:
                count = partial(self._count_requests, pod, _host_port(pod.address, PORT))
                self._start_once(f"pod {pod.uid}", pod.ref.namespace, count)

    start_service = Step(_start_service_probes, lambda *_: None)

    async def stop(self) -> None:
        """Cancel all probes."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_once(
        self, key: str, namespace: str, probe: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        async def run() -> None:
            async with self._free_probes[namespace]:
                await probe()

        if key not in self._tasks:
            task = asyncio.create_task(run(), name=key)
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def _probe_completion(self, service: ObservedService, address: str) -> None:
        problem = await self._engines.probe(
            f"http://{address}", _served_model_name(service), _task_of(service)
        )
        at = self._clock()
        self._answers.probe_results[service.ref] = ProbeResult(at=at, problem=problem)
        if problem is not None or not was_ready(service):
            self._wake()

    async def _resolve(self, hub: ModelHub, query: RevisionQuery) -> None:
        resolution = await hub.resolve(query)
        if self._answers.resolutions is not None:
            self._answers.resolutions[query] = resolution
            self._resolution_times[query] = self._clock()
            self._wake()

    async def _count_requests(self, pod: Pod, address: str) -> None:
        asked_at = self._clock()
        requests = await self._engines.in_flight(address)
        if requests is not None:
            self._answers.in_flight[pod.ref] = InFlight(asked_at, requests)
            self._wake()

    async def _check_suspect(self, suspect: Suspect, address: str) -> None:
        """Count the requests of a suspected engine, and request a token if there are any."""
        # A healthy engine takes a step for the token, and is suspected no more. No cycle waits for
        # this result, so none is woken.
        asked_at = self._clock()
        requests = await self._engines.in_flight(address)
        if requests is None:
            return
        self._answers.in_flight[suspect.pod.ref] = InFlight(asked_at, requests)
        if requests:
            probe = partial(self._request_token, suspect, address)
            self._start_once(f"token {suspect.pod.uid}", suspect.pod.ref.namespace, probe)

    async def _request_token(self, suspect: Suspect, address: str) -> None:
        service = suspect.service
        await self._engines.probe(
            f"http://{address}", _served_model_name(service), _task_of(service)
        )

    async def _fetch_progress(self, batch: str, address: str) -> None:
        asked_at = self._clock()
        progress = await self._engines.progress(address)
        if progress is None:
            self._answers.silent_runners.setdefault(batch, asked_at)
            return
        self._answers.silent_runners.pop(batch, None)
        self._answers.runner_answers[batch] = ProgressSample(asked_at, progress)
        self._wake()

    async def _read_pod_refusal(self, cluster: Cluster, job: BatchJob | ObservedModelJob) -> None:
        message: str | None = None
        # Without the right to list events the Job stays unexplained.
        with contextlib.suppress(ClusterError):
            message = await cluster.pod_refusal(job.ref, job.uid)
        self._answers.pod_refusals[job.uid] = PodRefusal(self._clock(), message)
        self._wake()

    async def _read_pod_events(self, cluster: Cluster, pod: Pod) -> None:
        self._event_times[pod.uid] = self._clock()
        # Without the right to list events the pod stays unexplained.
        with contextlib.suppress(ClusterError):
            events = tuple(await cluster.pod_events(pod.ref, pod.uid))
            if events != self._answers.pod_events.get(pod.uid):
                self._answers.pod_events[pod.uid] = events
                self._wake()

    async def _fetch_status(self, service: Ref, address: str) -> None:
        self._fetch_times[service] = self._clock()
        progress = await self._engines.fetch_progress(address)
        if progress is not None:
            self._answers.fetch_progress[service] = progress
            self._wake()

    def _forget(self, plan: Plan) -> None:
        answers, service_plans = self._answers, plan.versions
        forget_all_but(plan.service_plans, answers.probe_results)
        if answers.in_flight:
            pods = {pod.ref for service_plan in service_plans for pod in service_plan.pods}
            pods |= {pod.ref for removed in plan.removed_workloads for pod in removed.pods}
            forget_all_but(pods, answers.in_flight)
        if answers.resolutions:
            # Services with the same model share one query.
            queries = {service_plan.pinned_revision.query for service_plan in service_plans}
            for query, resolved_at in self._resolution_times.items():
                if abs(self._clock() - resolved_at) < _RESOLUTION_TTL:
                    queries.add(query)
            forget_all_but(queries, answers.resolutions, self._resolution_times)
        if answers.fetch_progress or self._fetch_times:
            fetching = {
                service_plan.service.ref
                for service_plan in service_plans
                if service_plan.preparation and service_plan.preparation.progress_address
            }
            fetching |= _gate_job_addresses(plan).keys()
            forget_all_but(fetching, answers.fetch_progress, self._fetch_times)
        if self._event_times:
            pods_to_explain = {pod.uid for view in plan.pools for pod in view.pods_to_explain}
            forget_all_but(pods_to_explain, answers.pod_events, self._event_times)
        batches = {batch_plan.batch.uid for batch_plan in plan.batches.values()}
        forget_all_but(batches, answers.runner_answers, answers.silent_runners)


def _gate_job_addresses(plan: Plan) -> Mapping[Ref, str]:
    """Return where the Jobs of gates say how far they are, by the name of the Job."""
    addresses = (each.progress_addresses for each in plan.gates.values())
    return {ref: address for each in addresses for ref, address in each.items()}


def _served_model_name(service: ObservedService) -> str:
    """Return the name under which the engine serves the model."""
    served = service.spec.model.served_name if service.spec else None
    return served or service.ref.name


def _task_of(service: ObservedService) -> PoolingTask | None:
    return pooling_task(service.spec) if service.spec is not None else None


def _host_port(address: str, port: int) -> str:
    """Return host and port as they appear in a URL; IPv6 addresses in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _is_due(now: datetime, last: datetime | None, interval: timedelta) -> bool:
    # After the clock was set back nothing waits for the moment of the last one.
    return last is None or not timedelta() <= now - last < interval


async def _list_autoscalers(
    cluster: Cluster,
    namespace: str,
    at: datetime,
    known: dict[str, ListedAutoscalers],
    wake: Callable[[], None],
) -> None:
    try:
        by_deployment = await cluster.list_autoscalers(namespace)
        known[namespace] = ListedAutoscalers(at=at, by_deployment=by_deployment)
    except ClusterError as error:
        known[namespace] = ListedAutoscalers(at=at, problem=str(error))
    wake()
