"""The services on the slices of a pool, with the capacity that a rollout has to keep for each."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, TypeAlias

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.ref import Ref
from tessera.domain.hardware.gpu_models import GpuModel, find_gpu_model
from tessera.domain.hardware.pools import PoolView
from tessera.domain.incremental import FOREVER, Until, reused_per_object, reused_until
from tessera.domain.layout.problem import LayoutProblem
from tessera.domain.mig.demand import InstanceType
from tessera.domain.mig_backends.devices import profile_of
from tessera.domain.observed.snapshot import InFlight, Pod, Snapshot, Workload
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.repartition.actions import PoolService, Replica
from tessera.domain.rollout.drain import is_drained
from tessera.domain.rollout.strategy import is_rolling_out, surge_timed_out
from tessera.domain.service.current_objects import pods_of_variant
from tessera.domain.service.proposal import Proposal, min_replicas_of
from tessera.domain.service.variant_counts import VariantCount, unit_choice
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
    max_drain: timedelta | None
    """How long a replica may drain before it is stopped; None for the drain timeout of its
    service."""


@reused_per_object
def _pool_context(_pool: str, view: PoolView, views: Sequence[PoolView]) -> _PoolContext:
    mig = view.pool.spec.mig if view.pool.spec is not None else None
    return _PoolContext(
        pool=view.pool.name,
        gpu_model=find_gpu_model(view.product) if view.product is not None else None,
        members=view.node_names,
        other_nodes=(
            frozenset[str]().union(*(other.node_names for other in views)) - view.node_names
        ),
        max_drain=mig.drain_deadline if mig and mig.on_deadline == "Evict" else None,
    )


def pool_services(
    snapshot: Snapshot,
    view: PoolView,
    views: Sequence[PoolView],
    proposals: Mapping[Ref, Proposal],
    problem: LayoutProblem,
) -> tuple[PoolService, ...]:
    """Return the services with replicas on slices of the pool or slices planned there, by name."""
    speeds = {demand.service.name: demand.service.throughput for demand in problem.demands}
    context = _pool_context(view.pool.name, view, views)
    services = [
        pool_service_of(
            (context.pool, ref),
            context,
            proposals[ref],
            speeds.get(str(ref), _NO_SPEEDS),
            in_flight=snapshot.in_flight,
            at=snapshot.at,
        )
        for ref in sorted(proposals)
    ]
    return tuple(service for service in services if service is not None)


@reused_until
def _build_pool_service(
    _key: tuple[str, Ref],
    context: _PoolContext,
    proposal: Proposal,
    speeds: _Speeds,
    *,
    in_flight: Mapping[Ref, InFlight],
    at: datetime,
) -> Until[PoolService | None]:
    objects, until = proposal.objects, FOREVER
    if any(pod.draining_since is not None for pod in objects.pods) or any(
        _rolls_out(workload, objects.pods) for workload in objects.workloads
    ):
        until = at  # the time decides when a drain or a rollout has ended
    spec, choice = proposal.service.spec, proposal.placement.choice
    if spec is None:
        return Until(None, until)
    replicas = tuple(_replicas(context, proposal, spec, in_flight, at))
    planned = _planned_replicas(proposal.counts, context.pool)
    if not replicas and not planned:
        return Until(None, until)
    # Where no speed is known, replicas are counted: each has the capacity 1.
    capacity = {replica.profile: 1.0 for replica in replicas if replica.profile is not None}
    capacity |= {
        instance_type.profile: speed
        for instance_type, speed in speeds.items()
        if instance_type.gpu_model == context.pool
    }
    per_replica = min(capacity.values(), default=0.0)
    min_capacity = min(min_replicas_of(spec), proposal.scale.replicas) * per_replica
    if choice is not None and planned:
        unit = unit_choice(proposal.placement.choices)
        per_replica = unit.fit.limits.tokens_per_second
        capacity |= {
            count.choice.offer.hardware.profile or "": count.choice.fit.limits.tokens_per_second
            for count in proposal.counts
            if count.choice.offer.hardware.profile in planned
            and count.choice.offer.pool == context.pool
        }
        min_capacity = _min_capacity(proposal, spec, unit, context.pool)
    in_pool = choice is not None and choice.offer.pool == context.pool
    keeps_slices = in_pool and proposal.placement.keeps_slices
    service = PoolService(
        ref=proposal.service.ref,
        replicas=replicas,
        min_capacity=min_capacity,
        # A replica never counts for more than one: otherwise a fast one would stand for several
        # of minReplicas.
        capacity={name: min(speed, per_replica) for name, speed in capacity.items()},
        planned=planned,
        previous_profile=_previous_profile(replicas, planned),
        is_rolling_out=_is_rolling_out(proposal, at),
        allows_downtime=proposal.service.allows_downtime and not keeps_slices,
        keeps_slices=keeps_slices,
    )
    return Until(service, until)


pool_service_of = Step(_build_pool_service, lambda *_, **_named: None)


def _planned_replicas(counts: Sequence[VariantCount], pool: str) -> Mapping[str, int]:
    """Return the replicas that slices of the pool should run, by profile."""
    planned = Counter[str]()
    for count in counts:
        if count.choice.offer.pool == pool and count.choice.offer.hardware.profile is not None:
            planned[count.choice.offer.hardware.profile] += count.lasting
    return dict(planned)


def _min_capacity(
    proposal: Proposal, spec: InferenceServiceSpec, unit: HardwareChoice, pool: str
) -> float:
    """Return the capacity that the slices of one pool have to keep.

    That is minReplicas, without the replicas that serve elsewhere. Of
    those, no more counts than their part of all that is planned: elsewhere as much counts of these.
    """
    rate = unit.fit.limits.tokens_per_second
    shares, serving = dict.fromkeys((True, False), 0.0), 0.0
    for count in proposal.counts:
        offer = count.choice.offer
        here = offer.pool == pool and offer.hardware.profile is not None
        per_replica = min(count.choice.fit.limits.tokens_per_second, rate)
        shares[here] += count.lasting * per_replica
        if not here:
            pods = pods_of_variant(proposal.objects.pods, count.choice)
            serving += per_replica * sum(
                pod.takes_requests and pod.draining_since is None and not pod.terminating
                for pod in pods
            )
    total = shares[True] + shares[False]
    floor = min(min(min_replicas_of(spec), proposal.scale.replicas) * rate, total)
    return floor - min(serving, floor * shares[False] / total if total else 0.0)


def _is_rolling_out(proposal: Proposal, at: datetime) -> bool:
    """Return whether a Deployment takes replicas away; not one whose new replica finds no slice."""
    objects = proposal.objects
    return any(
        _rolls_out(workload, objects.pods) and not surge_timed_out(objects.pods, at)
        for workload in objects.workloads
    )


def _rolls_out(workload: Workload, pods: Sequence[Pod]) -> bool:
    return not workload.rollout_complete or is_rolling_out(
        [pod for pod in pods if pod.variant == workload.variant]
    )


def _previous_profile(replicas: Sequence[Replica], planned: Collection[str]) -> str | None:
    """Return the profile of most replicas that do not have a planned one."""
    counts = Counter(
        replica.profile
        for replica in replicas
        if replica.node is not None
        and replica.profile is not None
        and replica.profile not in planned
    )
    return max(sorted(counts), key=lambda profile: counts[profile], default=None)


def _replicas(
    context: _PoolContext,
    proposal: Proposal,
    spec: InferenceServiceSpec,
    in_flight: Mapping[Ref, InFlight],
    at: datetime,
) -> Iterator[Replica]:
    """Yield its pods on the pool's slices and its pending pods that request one.

    A service of the pool keeps the replicas on nodes that left every pool.
    """
    variants = {workload.variant for workload in proposal.objects.workloads}
    pools = {choice.variant: choice.offer.pool for choice in proposal.placement.choices}
    reference = proposal.placement.choice
    reference_pool = reference.offer.pool if reference is not None else None
    max_drain = context.max_drain
    limit = spec.drain.timeout if max_drain is None else min(spec.drain.timeout, max_drain)
    for pod in proposal.objects.pods:
        profile = _slice_profile(context.gpu_model, pod)
        since = pod.draining_since
        in_pool = pools.get(pod.variant, reference_pool) == context.pool
        if pod.node is None:
            elsewhere = len(pools) > 1 and pod.variant in pools and not in_pool
            belongs = pod.variant in variants and not elsewhere
        else:
            serves = pod.takes_requests or since is not None
            left = in_pool and pod.node not in context.other_nodes and serves
            belongs = pod.node in context.members or left
        if profile is None or not belongs:
            continue
        yield Replica(
            pod=pod.ref,
            uid=pod.uid,
            node=pod.node,
            profile=profile,
            ready=pod.takes_requests,
            draining=pod.terminating or since is not None,
            can_return=since is not None and pod.containers_ready and not pod.terminating,
            terminating=pod.terminating,
            drained=is_drained(pod, in_flight, at, limit),
            drain_expired=(since is not None and max_drain is not None and at - since >= max_drain),
        )


def _slice_profile(gpu_model: GpuModel | None, pod: Pod) -> str | None:
    profiles = (profile_of(gpu_model, resource) for resource in pod.devices) if gpu_model else ()
    return next((profile for profile in profiles if profile is not None), None)
