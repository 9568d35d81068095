"""The part of a solution that is of one pool: its plan, with costs, moves and reasons."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from decimal import Decimal

from tessera.api.mig import Assignment, GpuTarget, MigPlan, NodeTarget, ServiceChange
from tessera.api.text import counted
from tessera.domain import money
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement, geometry, place_geometry
from tessera.domain.hardware.gpu_models import GpuModel
from tessera.domain.layout.demand import whole_gpu_model
from tessera.domain.layout.problem import (
    HardwareOption,
    LayoutProblem,
    PoolLayout,
    PoolTerms,
    Shortfall,
    SliceDemand,
)
from tessera.domain.mig.demand import GpuOffer, InstanceType, replicas_needed, served_demand
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.plan import LayoutPlan
from tessera.domain.mig_backends.format import format_slice

_MAX_MESSAGE_LENGTH = 300
_MAX_UNMET = 64
_MAX_SERVICES = 512
_UNSET_TIME = datetime.fromtimestamp(0, UTC)


def pool_layout(
    problem: LayoutProblem, terms: PoolTerms, plan: LayoutPlan, crowded: Collection[str]
) -> PoolLayout:
    """Return the part of a plan that is of one pool; `crowded` GPUs keep their layout."""
    pool = terms.pool
    model_names = {pool, whole_gpu_model(pool)}
    before = [gpu for gpu in problem.gpus if gpu.gpu_model in model_names]
    after = [gpu for gpu in plan.gpus if gpu.gpu_model in model_names]
    pool_demands = [
        demand
        for demand in problem.demands
        if {instance_type.gpu_model for instance_type in demand.service.throughput} & model_names
    ]
    offer = next(candidate for candidate in problem.offers if candidate.gpu_model.name == pool)
    targets = _target_layouts(problem, offer, [gpu for gpu in after if gpu.gpu_model == pool])
    nodes = _node_targets(targets, terms)
    services = tuple(_assignments(pool_demands, plan.gpus, terms))
    shortfalls = tuple(
        _shortfall(demand, plan.gpus)
        for demand in pool_demands
        if demand.service.name in plan.unmet and not demand.is_asleep
    )
    gpus_before, gpus_after = (
        sum(gpu.used or bool(gpu.foreign_slices) for gpu in gpus) for gpus in (before, after)
    )
    repartitioned = {
        name
        for name, (_, layout) in targets.items()
        if not _is_same_layout(problem.observed_layouts[name], layout, terms)
    }
    displaced = Counter(
        (part.service, gpu.instance_type(part))
        for gpu in before
        if gpu.name in targets
        for removed in (_removed_placements(gpu, targets, repartitioned, offer),)
        for part in gpu.slices
        if part.service is not None and part.placement in removed
    )
    changes = tuple(_changes(problem, plan.gpus, displaced, model_names))
    mig_plan = MigPlan(
        name=plan_name(nodes, services, _mixed_services(pool_demands, plan.gpus)),
        at=_UNSET_TIME,
        gpus_before=gpus_before,
        gpus_after=gpus_after,
        per_hour_before=money.from_nanos(gpus_before * terms.per_gpu_hour),
        per_hour_after=money.from_nanos(gpus_after * terms.per_gpu_hour),
        lower_bound=money.from_nanos(round(gpus_after * terms.per_gpu_hour * (1 - plan.gap))),
        gap=Decimal(f"{plan.gap:.4f}"),
        moves=sum(change.moves for change in changes),
        services=services,
        changes=changes[:_MAX_SERVICES],
        nodes=nodes,
        unmet=tuple(shortfall.service for shortfall in shortfalls)[:_MAX_UNMET],
    )
    return PoolLayout(
        plan=mig_plan,
        shortfalls=shortfalls,
        repartitioned_gpus=len(repartitioned),
        crowded_gpus=sum(gpu.name in crowded for gpu in before),
    )


def _changes(
    problem: LayoutProblem,
    gpus: Sequence[FleetGpu],
    displaced: Mapping[tuple[str, InstanceType], int],
    model_names: Set[str],
) -> Iterator[ServiceChange]:
    """Yield the services of a pool that move or cost something else, with all that they cost.

    A replica moves if its slice goes, or if another one starts on other hardware in its place.
    """
    running, planned = replicas_by_service(problem.gpus), replicas_by_service(gpus)
    for demand in problem.demands:
        name = demand.service.name
        old, new = running.get(name, Counter()), planned.get(name, Counter())
        if not model_names & {each.gpu_model for each in (*old, *new)}:
            continue
        starting = (new - old).total()
        moves = 0
        for each, count in sorted(old.items()):
            leaving = min(max(0, count - new[each]), starting)
            starting -= leaving
            if each.gpu_model in model_names:
                moves += max(leaving, displaced.get((name, each), 0))
        before, after = demand.hourly_nanos(old), demand.hourly_nanos(new)
        if moves or before != after:
            yield ServiceChange(
                service=name,
                moves=moves,
                per_hour_before=money.from_nanos(before),
                per_hour_after=money.from_nanos(after),
            )


def _removed_placements(
    gpu: FleetGpu,
    targets: Mapping[str, tuple[FleetGpu, Layout]],
    repartitioned: Collection[str],
    offer: GpuOffer,
) -> Collection[SlicePlacement]:
    """Return the slices whose pods have to leave for the GPU or its node to be repartitioned."""
    nodes = {targets[name][0].node for name in repartitioned}
    if offer.drains_node and gpu.node in nodes:
        return gpu.layout
    if gpu.name not in repartitioned:
        return ()
    retained = targets[gpu.name][1] if offer.sibling_safe else ()
    return [placement for placement in gpu.layout if placement not in retained]


def _target_layouts(
    problem: LayoutProblem, offer: GpuOffer, gpus: Sequence[FleetGpu]
) -> dict[str, tuple[FleetGpu, Layout]]:
    """Return the GPUs in MIG mode with their target layouts, by name."""
    current = {gpu.name: gpu.layout for gpu in problem.gpus}
    profiles = Counter(
        gpu_slice.profile for gpu in gpus for gpu_slice in gpu.slices if gpu_slice.service
    )
    targets = {}
    for gpu in gpus:
        layout = gpu.layout
        if layout == current[gpu.name]:
            layout = problem.observed_layouts[gpu.name]
        elif not offer.sibling_safe:
            # The backend rebuilds the whole GPU: fill it now, since one slice more later would
            # displace every pod on it.
            preferred = [profile for profile, _ in profiles.most_common()]
            layout = _fill_gpu(offer.gpu_model, layout, preferred)
        targets[gpu.name] = (gpu, layout)
    return targets


def _fill_gpu(gpu_model: GpuModel, layout: Layout, preferred: Sequence[str]) -> Layout:
    """Return the layout with as many more slices as fit, first of its own profiles."""
    own_profiles = sorted(
        {placement.profile for placement in layout},
        key=lambda name: (-gpu_model.memory_slices_of(name), name),
    )
    for profile in (*own_profiles, *preferred):
        while (grown := place_geometry(gpu_model, ((profile, 1),), layout)) is not None:
            layout = grown
    return layout


def _is_same_layout(current: Layout, target: Layout, terms: PoolTerms) -> bool:
    return current == target if terms.pinned_starts else geometry(current) == geometry(target)


def _node_targets(
    targets: Mapping[str, tuple[FleetGpu, Layout]], terms: PoolTerms
) -> tuple[NodeTarget, ...]:
    gpus_by_node: dict[str, list[GpuTarget]] = {}
    for name, (gpu, layout) in sorted(targets.items()):
        index = int(name.rpartition("/")[2])
        slices = tuple(format_slice(placement, pinned=terms.pinned_starts) for placement in layout)
        gpus_by_node.setdefault(gpu.node, []).append(GpuTarget(gpu=index, slices=slices))
    return tuple(
        NodeTarget(node=node, gpus=tuple(gpus)) for node, gpus in sorted(gpus_by_node.items())
    )


def plan_name(
    nodes: Sequence[NodeTarget],
    services: Sequence[Assignment],
    mixed: Collection[str] = (),
) -> str:
    """Return a name that changes with the layouts and with the profile of any service.

    Of `mixed` services it changes with the replicas of each profile too. Those of others are left
    out: they follow the load without a new plan.
    """
    content = [
        [node.model_dump() for node in nodes],
        [
            [each.service, each.profile, *([each.replicas] if each.service in mixed else ())]
            for each in services
        ],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]


def _mixed_services(demands: Sequence[SliceDemand], gpus: Sequence[FleetGpu]) -> Collection[str]:
    """Return the services that the GPUs serve by several instance types."""
    replica_counts = replicas_by_service(gpus)
    return {
        demand.service.name
        for demand in demands
        if demand.service.may_mix and len(replica_counts.get(demand.service.name, ())) > 1
    }


def profiles_by_service(services: Iterable[Assignment]) -> Mapping[str, Collection[str]]:
    """Return the profiles that a plan assigns to each service."""
    profiles = defaultdict[str, set[str]](set)
    for assignment in services:
        profiles[assignment.service].add(assignment.profile)
    return profiles


def _assignments(
    demands: Sequence[SliceDemand], gpus: Sequence[FleetGpu], terms: PoolTerms
) -> Iterator[Assignment]:
    replica_counts = replicas_by_service(gpus)
    model_names = {terms.pool, whole_gpu_model(terms.pool)}
    for demand in demands:
        counts = {
            instance_type: count
            for instance_type, count in replica_counts.get(demand.service.name, {}).items()
            if instance_type in demand.service.throughput
        }
        for instance_type, count in sorted(counts.items()):
            if instance_type.gpu_model in model_names:
                message = _explain_choice(demand, instance_type, counts, terms)
                yield Assignment(
                    service=demand.service.name,
                    profile=instance_type.profile,
                    replicas=count,
                    previous_profile=_previous_profile(demand, instance_type),
                    message=message[:_MAX_MESSAGE_LENGTH],
                )


def _previous_profile(demand: SliceDemand, instance_type: InstanceType) -> str:
    if instance_type in demand.current:
        return instance_type.profile
    return demand.current[0].profile if demand.current else ""


def _explain_choice(
    demand: SliceDemand,
    instance_type: InstanceType,
    counts: Mapping[InstanceType, int],
    terms: PoolTerms,
) -> str:
    """Return the arithmetic behind an assignment, with the nearest alternative and its price."""
    service, count = demand.service, counts[instance_type]
    throughput = service.throughput
    speed = throughput[instance_type]
    text = (
        f"{service.demand:.0f} tokens/s and at least {counted(service.min_replicas, 'replica')}: "
        f"{count} x {instance_type.profile} of {instance_type.gpu_model.partition('/')[0]} at "
        f"{speed:.0f} tokens/s"
    )
    others = [
        f"{number} x {other.profile} of {other.gpu_model.partition('/')[0]}"
        for other, number in sorted(counts.items())
        if other != instance_type
    ]
    if others:
        text += f", beside {', '.join(others)}"
    options = demand.options
    alternatives = [
        option
        for option in options
        if option.instance_type in throughput and option.instance_type != instance_type
    ]
    if alternatives:
        nearest = _nearest_alternative(demand, alternatives, terms)
        # Its slices may cost less; what counts are the whole GPUs that the services take together.
        text += f"; {nearest} per hour by slices, and save no GPU of the pool"
    offered = [option for option in options if option.instance_type in throughput]
    # Isolation leaves only options that fill their GPU; the others would be cheaper.
    shared_options = [option for option in options if not option.fills_gpu]
    if shared_options and all(option.fills_gpu for option in offered):
        exclusive_cost = demand.hourly_nanos({instance_type: count})
        text += (
            f"; spec.placement.isolation Gpu costs {_format_price(exclusive_cost, terms)} per "
            f"hour, where {_nearest_alternative(demand, shared_options, terms)}"
        )
    elif demand.max_hourly_nanos is not None and len(offered) < len(options):
        limit = _format_price(demand.max_hourly_nanos, terms)
        text += f"; nothing above {limit} per hour is planned while it wants no more than it has"
    return text


def _nearest_alternative(
    demand: SliceDemand, options: Sequence[HardwareOption], terms: PoolTerms
) -> str:
    """Return the cheapest of these options as `2 x 2g.20gb would cost 1.20 USD`."""
    cost, name, count = min(
        (count * option.hourly_nanos, option.instance_type.profile, count)
        for option in options
        for count in (replicas_needed(demand.service, option.tokens_per_second),)
    )
    return f"{count} x {name} would cost {_format_price(cost, terms)}"


def _format_price(nanos: int, terms: PoolTerms) -> str:
    return str(money.Money(nanos, terms.currency))


def _shortfall(demand: SliceDemand, gpus: Sequence[FleetGpu]) -> Shortfall:
    service = demand.service
    replicas = replicas_by_service(gpus).get(service.name, Counter())
    return Shortfall(
        service=service.name,
        demanded=service.demand,
        provided=served_demand(service, replicas),
        demanded_replicas=service.required_replicas,
        provided_replicas=replicas.total(),
    )
