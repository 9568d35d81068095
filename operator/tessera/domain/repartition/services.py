"""The services on the slices of a pool, with the capacity that a rollout has to keep for each."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypeAlias

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.ref import Ref
from tessera.domain.cache import KeyedCache, StableTupleCache
from tessera.domain.hardware.pools import PoolView
from tessera.domain.layout.problem import LayoutProblem
from tessera.domain.mig.demand import InstanceType
from tessera.domain.mig.gpu_models import GpuModel, find_gpu_model
from tessera.domain.mig_backends.devices import profile_of
from tessera.domain.observed.snapshot import InFlight, Pod, Snapshot
from tessera.domain.repartition.actions import PoolService, Replica
from tessera.domain.repartition.evictions import MAX_DRAIN
from tessera.domain.scaling.drain import is_drained
from tessera.domain.service.proposal import Proposal, min_replicas_of
from tessera.domain.steps import Step

_Speeds: TypeAlias = Mapping[InstanceType, float]
_NO_SPEEDS: _Speeds = {}


class _PoolContext(NamedTuple):
    """What the services of a pool depend on."""

    pool: str
    gpu_model: GpuModel | None
    members: frozenset[str]
    """Names of the pool's nodes."""
    other_nodes: frozenset[str]
    """Names of the nodes of other pools."""


class PoolServiceCache:
    """The services of one pool as of the last cycle."""

    def __init__(self) -> None:
        self.stable = StableTupleCache[PoolService]()
        self._context: _PoolContext | None = None
        self._pool_service: KeyedCache[
            Ref, [_PoolContext, Proposal, _Speeds], PoolService | None
        ] = KeyedCache(_service_without_draining)

    def context(self, view: PoolView, views: Sequence[PoolView]) -> _PoolContext:
        """Return the context, the same object as long as it is equal."""
        gpu_model = find_gpu_model(view.product) if view.product is not None else None
        other_nodes = (
            frozenset[str]().union(*(other.node_names for other in views)) - view.node_names
        )
        context = _PoolContext(view.pool.name, gpu_model, view.node_names, other_nodes)
        if self._context is None or context != self._context:
            self._context = context
        return self._context

    def pool_service(
        self, snapshot: Snapshot, context: _PoolContext, proposal: Proposal, speeds: _Speeds
    ) -> PoolService | None:
        """Return one service, from the cache unless it drains a pod."""
        # Whether a drain has ended depends on the time, which is no key of the cache.
        if any(pod.draining_since is not None for pod in proposal.objects.pods):
            return pool_service_of(context, proposal, speeds, snapshot.in_flight, snapshot.at)
        return self._pool_service(proposal.service.ref, context, proposal, speeds)

    def retain(self, proposals: Mapping[Ref, Proposal]) -> None:
        """Forget services without a proposal."""
        self._pool_service.retain(proposals.keys())


def pool_services(
    snapshot: Snapshot,
    view: PoolView,
    views: Sequence[PoolView],
    proposals: Mapping[Ref, Proposal],
    problem: LayoutProblem,
    cache: PoolServiceCache | None = None,
) -> tuple[PoolService, ...]:
    """Return the services with replicas on slices of the pool or slices planned there, by name."""
    speeds = {demand.service.name: demand.service.throughput for demand in problem.demands}
    cache = cache or PoolServiceCache()
    context = cache.context(view, views)
    services = [
        cache.pool_service(snapshot, context, proposals[ref], speeds.get(str(ref), _NO_SPEEDS))
        for ref in sorted(proposals)
    ]
    cache.retain(proposals)
    return cache.stable(tuple(service for service in services if service is not None))


def _build_pool_service(
    context: _PoolContext,
    proposal: Proposal,
    speeds: _Speeds,
    in_flight: Mapping[Ref, InFlight],
    at: datetime | None,
) -> PoolService | None:
    """Return the service as of a moment; `at` is None where no pod drains."""
    spec, choice = proposal.service.spec, proposal.placement.choice
    if spec is None:
        return None
    replicas = tuple(_replicas(context, proposal, spec, in_flight, at))
    in_pool = choice is not None and choice.offer.pool == context.pool
    profile = choice.offer.hardware.profile if choice is not None and in_pool else None
    if not replicas and profile is None:
        return None
    # Where no speed is known, replicas are counted: each has the capacity 1.
    capacity = {replica.profile: 1.0 for replica in replicas if replica.profile is not None}
    capacity |= {
        instance_type.profile: speed
        for instance_type, speed in speeds.items()
        if instance_type.gpu_model == context.pool
    }
    planned_capacity = min(capacity.values(), default=0.0)
    if choice is not None and profile is not None:
        planned_capacity = capacity[profile] = choice.fit.limits.tokens_per_second
    desired_replicas = proposal.scale.replicas
    return PoolService(
        ref=proposal.service.ref,
        replicas=replicas,
        min_capacity=min(min_replicas_of(spec), desired_replicas) * planned_capacity,
        # A replica never counts for more than a planned one: otherwise one fast replica of the
        # previous profile would stand for several of minReplicas.
        capacity={name: min(speed, planned_capacity) for name, speed in capacity.items()},
        desired_replicas=desired_replicas if profile is not None else 0,
        profile=profile,
        previous_profile=_previous_profile(replicas, profile),
        allows_downtime=proposal.service.allows_downtime,
    )


pool_service_of = Step(_build_pool_service, lambda *_: None)


def _previous_profile(replicas: Sequence[Replica], planned: str | None) -> str | None:
    """Return the profile of most replicas that do not have the planned one."""
    counts = Counter(
        replica.profile
        for replica in replicas
        if replica.node is not None and replica.profile is not None and replica.profile != planned
    )
    return max(sorted(counts), key=lambda profile: counts[profile], default=None)


def _service_without_draining(
    context: _PoolContext, proposal: Proposal, speeds: _Speeds
) -> PoolService | None:
    # No pod drains, so the result is the same at any time and can be cached.
    return pool_service_of(context, proposal, speeds, {}, None)


def _replicas(
    context: _PoolContext,
    proposal: Proposal,
    spec: InferenceServiceSpec,
    in_flight: Mapping[Ref, InFlight],
    at: datetime | None,
) -> Iterator[Replica]:
    """Yield its pods on the pool's slices and its pending pods that request one.

    A service of the pool keeps the replicas on nodes that left every pool.
    """
    variants = {workload.variant for workload in proposal.objects.workloads}
    choice = proposal.placement.choice
    in_pool = choice is not None and choice.offer.pool == context.pool
    limit = min(spec.drain.timeout, MAX_DRAIN)
    for pod in proposal.objects.pods:
        profile = _slice_profile(context.gpu_model, pod)
        if pod.node is None:
            belongs = pod.variant in variants
        else:
            left = in_pool and pod.node not in context.other_nodes and _serves_or_drains(pod)
            belongs = pod.node in context.members or left
        if profile is None or not belongs or pod.ended is not None:
            continue
        now, since = at or pod.created, pod.draining_since
        yield Replica(
            pod=pod.ref,
            uid=pod.uid,
            node=pod.node,
            profile=profile,
            ready=pod.takes_requests,
            draining=pod.terminating or pod.draining_since is not None,
            terminating=pod.terminating,
            drained=is_drained(pod, in_flight, now, limit),
            drain_expired=since is not None and now - since >= MAX_DRAIN,
        )


def _serves_or_drains(pod: Pod) -> bool:
    return pod.takes_requests or pod.draining_since is not None


def _slice_profile(gpu_model: GpuModel | None, pod: Pod) -> str | None:
    profiles = (profile_of(gpu_model, resource) for resource in pod.devices) if gpu_model else ()
    return next((profile for profile in profiles if profile is not None), None)
