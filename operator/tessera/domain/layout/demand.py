"""Build the layout problem: the slice demands of services, and the GPUs that may serve them."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from sys import intern
from typing import NamedTuple

from tessera.api.reasons import Accepted
from tessera.api.ref import Ref
from tessera.domain import money
from tessera.domain.hardware.device import GPU
from tessera.domain.hardware.gpu_layouts import WHOLE_GPU_LAYOUT, Layout
from tessera.domain.hardware.gpu_models import WHOLE_GPU
from tessera.domain.hardware.pools import PoolView, admits, plans_layouts
from tessera.domain.incremental import reused, reused_per_object
from tessera.domain.layout.price_limits import with_price_limits
from tessera.domain.layout.problem import HardwareOption, LayoutProblem, PoolTerms, SliceDemand
from tessera.domain.layout.shares import TenantShare
from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu, FleetSlice
from tessera.domain.mig_backends.backend import Capabilities
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.mig_backends.usage import instance_holders
from tessera.domain.observed.snapshot import Pod, PodReading, Snapshot
from tessera.domain.placement.candidates import (
    HardwareChoice,
    hardware_candidates,
    running_at_best,
)
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.placement import CLASS_RANKS
from tessera.domain.scaling.load import usable_readings
from tessera.domain.scaling.target import places
from tessera.domain.service.proposal import Proposal, assigned_units, min_replicas_of
from tessera.domain.service.variant_counts import unit_choice
from tessera.domain.sizing.sizing import ReplicaFit
from tessera.domain.steps import Step

# Share of its concurrent requests that an engine has on average, so that peaks fit.
_TARGET_OCCUPANCY = 0.6


def whole_gpu_model(pool: str) -> str:
    """Return the GPU model name under which GPUs of the pool outside MIG mode are planned."""
    return f"{pool}/{WHOLE_GPU}"


def planned_type(pool: str, profile: str) -> InstanceType:
    """Return the instance type of a profile of the pool, or of its GPUs outside MIG mode."""
    return InstanceType(whole_gpu_model(pool) if profile == WHOLE_GPU else pool, profile)


class _NodeGpus(NamedTuple):
    gpus: tuple[FleetGpu, ...]
    layouts: tuple[tuple[str, Layout], ...]
    """Names and layouts of the GPUs in MIG mode."""


def layout_problem(  # noqa: PLR0913 - the shares are all that grants say of the proposals
    views: Sequence[PoolView],
    nodes_by_pool: Mapping[str, Sequence[MigNode]],
    capabilities: Mapping[str, Capabilities],
    proposals: Mapping[Ref, Proposal],
    snapshot: Snapshot,
    *,
    shares: Mapping[Ref, TenantShare] | None = None,
    gateways: bool = False,
    previous: LayoutProblem | None = None,
) -> LayoutProblem:
    """Return the layout problem of all pools that plan layouts and have GPUs.

    Slices of services that are not planned for stay as they are, also while these sleep. Only
    `gateways` know what each of several instance types of a service can serve. The `previous`
    problem has the demand of a service whose planning raises.
    """
    planned = tuple(
        view
        for view in sorted(views, key=lambda view: view.pool.name)
        if view.price is not None
        and plans_layouts(view.pool.spec)
        and view.pool.name in capabilities
        and any(node.gpus or node.whole_gpus for node in nodes_by_pool.get(view.pool.name, ()))
    )
    readings = usable_readings(snapshot.readings, snapshot.at)
    demands = _slice_demands(
        tuple(proposals.values()), planned, readings, shares or {}, gateways, previous=previous
    )
    device_holders = _device_holders(
        snapshot.pods, frozenset(demand.service.name for demand in demands)
    )
    nodes = {
        (pool, node.name): node
        for view in planned
        for pool in (intern(view.pool.name),)
        for node in sorted(nodes_by_pool[pool], key=lambda node: node.name)
    }
    node_gpus = tuple(
        node_gpus_of(key, node, capabilities[key[0]].knows_pods, device_holders)
        for key, node in nodes.items()
    )
    unplanned = _unplanned_slices(tuple(proposals.values()), shares or {})
    node_gpus = _with_unplanned_slices(node_gpus, unplanned)
    demands = _with_price_limits(demands, tuple(gpu for node in node_gpus for gpu in node.gpus))
    return _build_problem(planned, nodes_by_pool, capabilities, demands, node_gpus)


@reused
def _slice_demands(
    proposals: Sequence[Proposal],
    views: Sequence[PoolView],
    readings: Mapping[Ref, PodReading],
    shares: Mapping[Ref, TenantShare],
    gateways: bool,
    *,
    previous: LayoutProblem | None,
) -> tuple[SliceDemand, ...]:
    """Return the demands by service name."""
    previous_by_name = (
        {demand.service.name: demand for demand in previous.demands} if previous else {}
    )
    demands = (
        slice_demand(
            proposal,
            views,
            readings,
            shares.get(ref, TenantShare()),
            gateways,
            previous_by_name.get(str(ref)),
        )
        for proposal in sorted(proposals, key=lambda candidate: candidate.service.ref)
        for ref in (proposal.service.ref,)
    )
    return tuple(demand for demand in demands if demand is not None)


@reused
def _unplanned_slices(
    proposals: Sequence[Proposal], shares: Mapping[Ref, TenantShare]
) -> Mapping[tuple[str, str], int]:
    """Return the slices by pool and profile that services without a plan use and hold by no pod.

    A sleeping service wakes on one, and a replica that restarts goes back to its own.
    """
    slices = Counter[tuple[str, str]]()
    for proposal in proposals:
        spec, choice = proposal.service.spec, proposal.placement.choice
        if spec is None or choice is None or spec.placement.mig == "Auto":
            continue
        profile = choice.offer.hardware.profile
        if profile is None or not proposal.accepted.reason.is_true:
            continue
        used = 1
        if proposal.scale.replicas:
            share = shares.get(proposal.service.ref, TenantShare())
            used = _paid(max(1, min_replicas_of(spec)), share)
        bound = sum(
            pod.variant == choice.variant and pod.node is not None and not pod.terminating
            for pod in proposal.objects.pods
        )
        slices[choice.offer.pool, profile] += max(0, used - bound)
    return slices


def _with_unplanned_slices(
    nodes: tuple[_NodeGpus, ...], slices: Mapping[tuple[str, str], int]
) -> tuple[_NodeGpus, ...]:
    """Return the GPUs on which so many free slices stay, first where most of the others do."""
    left, fixed = Counter(slices), dict[str, FleetGpu]()
    gpus = [gpu for node in nodes for gpu in node.gpus if not gpu.locked]
    for gpu in sorted(gpus, key=lambda gpu: (-len(gpu.foreign_slices), gpu.name)):
        staying = list(gpu.foreign_slices)
        for gpu_slice in gpu.slices:
            pair = gpu.gpu_model, gpu_slice.profile
            is_free = gpu_slice.service is None and gpu_slice.placement not in staying
            if is_free and left[pair]:
                left[pair] -= 1
                staying.append(gpu_slice.placement)
        if len(staying) > len(gpu.foreign_slices):
            fixed[gpu.name] = replace(gpu, foreign_slices=tuple(staying))
    if not fixed:
        return nodes
    return tuple(
        node._replace(gpus=tuple(fixed.get(gpu.name, gpu) for gpu in node.gpus)) for node in nodes
    )


@reused
def _build_problem(
    planned: Sequence[PoolView],
    nodes_by_pool: Mapping[str, Sequence[MigNode]],
    capabilities: Mapping[str, Capabilities],
    demands: tuple[SliceDemand, ...],
    nodes: Sequence[_NodeGpus],
) -> LayoutProblem:
    gpus = tuple(gpu for node in nodes for gpu in node.gpus)
    return LayoutProblem(
        terms=tuple(_pool_terms(view, capabilities[view.pool.name]) for view in planned),
        demands=demands,
        offers=tuple(
            offer
            for view in planned
            for offer in _offers(
                view, nodes_by_pool[view.pool.name], capabilities[view.pool.name], gpus
            )
        ),
        gpus=gpus,
        observed_layouts={name: layout for node in nodes for name, layout in node.layouts},
    )


@reused
def _with_price_limits(
    demands: tuple[SliceDemand, ...], gpus: tuple[FleetGpu, ...]
) -> tuple[SliceDemand, ...]:
    return with_price_limits(demands, gpus)


def _pool_terms(view: PoolView, capabilities: Capabilities) -> PoolTerms:
    mig = view.pool.spec.mig if view.pool.spec is not None else None
    return PoolTerms(
        pool=view.pool.name,
        currency=view.price.currency if view.price else "",
        per_gpu_hour=_per_gpu_hour(view),
        pinned_starts=capabilities.pinned_starts,
        asks_approval=mig is not None and mig.mode == "Propose",
    )


def _per_gpu_hour(view: PoolView) -> int:
    # At least 1 nano-unit: a solver to which GPUs cost nothing would use all of them.
    return max(1, money.to_nanos(view.price.per_gpu_hour)) if view.price else 1


def _build_demand(
    proposal: Proposal,
    views: Sequence[PoolView],
    readings: Mapping[Ref, PodReading],
    share: TenantShare,
    gateways: bool,
    previous: SliceDemand | None,
) -> SliceDemand | None:
    """Return the demand as far as it is paid.

    None is returned for a service that is not planned for, is not paid at all, or fits on no GPU.
    """
    spec = proposal.service.spec
    if proposal.accepted.reason is Accepted.PLANNER_ERROR:
        return previous
    if share.paid_replicas == 0:
        return None
    if spec is None or spec.placement.mig != "Auto" or not proposal.accepted.reason.is_true:
        return None
    options = _options(proposal.service.ref, proposal, views)
    speeds = {
        option.instance_type: option.tokens_per_second
        for option in options
        if option.fills_gpu or spec.placement.isolation == "Slice"
    }
    if not speeds:
        return None
    current = _current_types(proposal)
    # The demand is counted in replicas of what it runs on, perhaps at a measured speed.
    for instance_type, choice in _planned_choices(proposal):
        if instance_type in speeds:
            speeds[instance_type] = choice.fit.limits.tokens_per_second
    may_mix = gateways and _has_one_precision(proposal, options)
    service = ServiceDemand(
        name=str(proposal.service.ref),
        demand=_token_demand(proposal, options[0], readings, share),
        min_replicas=_paid(max(1, min_replicas_of(spec)), share),
        throughput=speeds,
        max_types=2 if may_mix and len(current) > 1 else 1,
        may_mix=may_mix,
        kept_types=current[:2],
        tenant=share.tenant,
        weight=share.weight,
        running_replicas=sum(pod.node is not None for pod in proposal.objects.pods),
        class_rank=CLASS_RANKS[spec.service_class],
    )
    return SliceDemand(
        service=service,
        options=options,
        current=current,
        floor=0 if proposal.service.allows_downtime else min_replicas_of(spec),
        assigned=_assigned_types(proposal),
        is_moving=_is_moving(proposal),
        is_asleep=not proposal.scale.replicas and not proposal.objects.pods and bool(current),
    )


slice_demand = Step(_build_demand, lambda *arguments: arguments[-1])


@reused_per_object
def _options(
    _ref: Ref, proposal: Proposal, views: Sequence[PoolView]
) -> tuple[HardwareOption, ...]:
    """Return the hardware that placement accepts for the service too, the cheapest first."""
    spec = proposal.service.spec
    shape = shape_of(spec) if spec else None
    if spec is None or shape is None:
        return ()
    offers = [
        offer
        for view in views
        if not spec.placement.pools or view.pool.name in spec.placement.pools
        if admits(view.pool.spec, proposal.service.ref.namespace)
        for offer in view.offers
        if offer.layout_profile and offer.exists and offer.tier in spec.placement.tiers
    ]
    options: dict[InstanceType, HardwareOption] = {}
    # What runs stays where it keeps the SLO within the error of its prediction.
    running = frozenset(choice.variant for choice in proposal.placement.choices)
    for sized in hardware_candidates(spec, shape, offers):
        candidate = running_at_best(sized, running)
        if not isinstance(candidate.fit, ReplicaFit) or not candidate.offer.layout_profile:
            continue
        instance_type = planned_type(candidate.offer.pool, candidate.offer.layout_profile)
        speed = candidate.fit.limits.tokens_per_second
        # Candidates differ in precision as well: keep the fastest per instance type.
        if instance_type not in options or speed > options[instance_type].tokens_per_second:
            options[instance_type] = HardwareOption(
                instance_type=instance_type,
                tokens_per_second=speed,
                hourly_nanos=candidate.offer.hourly.nanos,
                fills_gpu=candidate.offer.hardware.exclusive,
                precision=candidate.fit.precision,
            )
    return tuple(
        sorted(options.values(), key=lambda option: (option.hourly_nanos, option.instance_type))
    )


def _token_demand(
    proposal: Proposal,
    cheapest: HardwareOption,
    readings: Mapping[Ref, PodReading],
    share: TenantShare,
) -> float:
    """Return the output tokens per second that the service needs.

    That is the capacity of its desired replicas that are paid. At minReplicas it may be less: what
    the requests in its engines need, in whole replicas of the cheapest option.
    """
    choice = proposal.placement.choice
    # A new service starts with minReplicas.
    if choice is None:
        min_replicas = min_replicas_of(proposal.service.spec) if proposal.service.spec else 1
        return _paid(max(1, min_replicas), share) * cheapest.tokens_per_second
    replicas = proposal.scale.replicas
    variants = {each.variant for each in proposal.placement.choices}
    moving = _is_moving(proposal)
    # While it changes its hardware, the autoscaler sees few replicas: the planned number counts
    # if it is larger.
    if moving:
        replicas = max(replicas, assigned_units(proposal.placement))
    replicas = _paid(replicas, share)
    unit = unit_choice(proposal.placement.choices)
    current = max(1, replicas) * unit.fit.limits.tokens_per_second
    spec = proposal.service.spec
    in_flight = _in_flight(proposal, choice, readings)
    several = len(variants) > 1
    if moving or several or spec is None or replicas > min_replicas_of(spec) or in_flight is None:
        return current
    limits = choice.fit.limits
    needed = in_flight / places(spec, limits) * limits.tokens_per_second / _TARGET_OCCUPANCY
    return min(current, math.ceil(needed / cheapest.tokens_per_second) * cheapest.tokens_per_second)


def _is_moving(proposal: Proposal) -> bool:
    """Return whether replicas run on hardware that is not chosen any more."""
    variants = {each.variant for each in proposal.placement.choices}
    return any(pod.variant not in variants and not pod.terminating for pod in proposal.objects.pods)


def _assigned_types(proposal: Proposal) -> Mapping[InstanceType, int]:
    """Return the replicas that layout plans assign, by instance type."""
    assigned = proposal.placement.assigned
    return {
        instance_type: assigned[choice.variant]
        for instance_type, choice in _planned_choices(proposal)
        if choice.variant in assigned
    }


def _planned_choices(proposal: Proposal) -> Sequence[tuple[InstanceType, HardwareChoice]]:
    """Return the choices that layouts are planned for, with their instance types."""
    return [
        (planned_type(choice.offer.pool, choice.offer.layout_profile), choice)
        for choice in proposal.placement.choices
        if choice.offer.layout_profile
    ]


def _paid(replicas: int, share: TenantShare) -> int:
    return replicas if share.paid_replicas is None else min(replicas, share.paid_replicas)


def _in_flight(
    proposal: Proposal, choice: HardwareChoice, readings: Mapping[Ref, PodReading]
) -> float | None:
    """Return the requests in its engines, None where a serving engine has no reading."""
    total = 0.0
    for pod in proposal.objects.pods:
        if pod.variant != choice.variant or not pod.takes_requests:
            continue
        reading = readings.get(pod.ref)
        if reading is None or reading.running is None or reading.waiting is None:
            return None
        total += reading.running + reading.waiting
    return total


def _has_one_precision(proposal: Proposal, options: Sequence[HardwareOption]) -> bool:
    """Return whether replicas on all of these instance types would give the same answers."""
    running = {choice.fit.precision for choice in proposal.placement.choices}
    return len(running | {option.precision for option in options}) == 1


def _current_types(proposal: Proposal) -> tuple[InstanceType, ...]:
    """Return the instance types that layout plans assign, or that it runs on without one."""
    return tuple(dict.fromkeys(each for each, _ in _planned_choices(proposal)))


class _DeviceHolders:
    """The pods that hold devices of each node, with the planned service of each pod."""

    def __init__(self, pods: Sequence[Pod], names: Collection[str]) -> None:
        self.service_of = {
            pod.ref: str(pod.service)
            if pod.batch_run is None and str(pod.service) in names
            else None
            for pod in pods
            if pod.model_job_run is None
        }
        self.terminating = {pod.ref for pod in pods if pod.terminating}
        self.by_node = defaultdict[str, list[Pod]](list)
        for pod in sorted(pods, key=lambda pod: pod.ref):
            if pod.node and pod.ended is None and not pod.terminating:
                self.by_node[pod.node].append(pod)


@reused
def _device_holders(pods: Sequence[Pod], names: Collection[str]) -> _DeviceHolders:
    return _DeviceHolders(pods, names)


@reused_per_object
def _build_node_gpus(
    key: tuple[str, str], node: MigNode, knows_pods: bool, holders: _DeviceHolders
) -> _NodeGpus:
    pool, _ = key
    gpus = tuple(_problem_gpus(pool, node, holders, knows_pods=knows_pods))
    return _NodeGpus(
        gpus, tuple((gpu_name(pool, node.name, gpu.index), gpu.layout) for gpu in node.gpus)
    )


node_gpus_of = Step(_build_node_gpus, lambda *_: _NodeGpus((), ()))


def _problem_gpus(
    pool: str, node: MigNode, device_holders: _DeviceHolders, *, knows_pods: bool
) -> Iterator[FleetGpu]:
    gpus = list(_mig_gpus(pool, node, device_holders))
    # Such a backend drains the whole node: one pod that may not be moved locks all its GPUs.
    if not knows_pods and any(gpu.foreign_slices for gpu in gpus):
        gpus = [replace(gpu, locked=True) for gpu in gpus]
    yield from (gpu if node.ready else _unavailable_gpu(gpu) for gpu in gpus)
    yield from _whole_gpus(pool, node, device_holders)


def _unavailable_gpu(gpu: FleetGpu) -> FleetGpu:
    """Return the GPU of an unavailable node: nothing is planned on it, but replicas on it count."""
    slices = tuple(
        gpu_slice
        for gpu_slice in gpu.slices
        if gpu_slice.service or gpu_slice.placement in gpu.foreign_slices
    )
    return replace(gpu, slices=slices, locked=True)


def gpu_name(pool: str, node: str, index: int) -> str:
    """Return the name of a GPU in MIG mode in layout problems."""
    return f"{pool}/{node}/{index:02}"


def _mig_gpus(pool: str, node: MigNode, device_holders: _DeviceHolders) -> Iterator[FleetGpu]:
    """Yield the node's GPUs in MIG mode.

    Without an agent it is assumed which slices pods hold.
    """
    pods = device_holders.by_node.get(node.name, ())
    holders = {
        (gpu.index, instance.placement): refs
        for gpu, instance, refs in instance_holders(node, pods)
    }
    for gpu in node.gpus:
        slices, fixed = [], []
        for placement in gpu.layout:
            services = [
                device_holders.service_of.get(ref)
                for ref in holders[gpu.index, placement]
                if ref not in device_holders.terminating
            ]
            slices.append(FleetSlice(*placement, next(iter(services), None)))
            if services and services[0] is None:
                fixed.append(placement)
        yield FleetGpu(
            name=gpu_name(pool, node.name, gpu.index),
            gpu_model=pool,
            node=node.name,
            slices=tuple(slices),
            foreign_slices=tuple(fixed),
            locked=gpu.fault is not None,
        )


def _whole_gpus(pool: str, node: MigNode, device_holders: _DeviceHolders) -> Iterator[FleetGpu]:
    pods = device_holders.by_node.get(node.name, ())
    holders = [pod.ref for pod in pods for _ in range(pod.devices.get(GPU, 0))]
    for index in range(node.whole_gpus):
        service = device_holders.service_of.get(holders[index]) if index < len(holders) else None
        is_held = index < len(holders)
        yield FleetGpu(
            name=f"{pool}/{node.name}/{WHOLE_GPU}-{index:02}",
            gpu_model=whole_gpu_model(pool),
            node=node.name,
            slices=(FleetSlice(0, WHOLE_GPU, service),) if is_held else (),
            foreign_slices=WHOLE_GPU_LAYOUT if is_held and service is None else (),
            locked=not node.ready,
        )


def _offers(
    view: PoolView, nodes: Sequence[MigNode], capabilities: Capabilities, gpus: Sequence[FleetGpu]
) -> Iterator[GpuOffer]:
    """Yield the pool's two GPU models: in MIG mode with all profiles, and whole without any."""
    pool = view.pool.name
    gpu_model = nodes[0].gpu_model
    counts = Counter(gpu.gpu_model for gpu in gpus if not gpu.sunk)
    for name, profiles in ((pool, gpu_model.profiles), (whole_gpu_model(pool), ())):
        yield GpuOffer(
            gpu_model=replace(gpu_model, name=name, profiles=profiles),
            price=_per_gpu_hour(view),
            max_gpus=counts[name],
            sibling_safe=capabilities.sibling_safe,
            drains_node=name == pool and not capabilities.knows_pods,
        )
