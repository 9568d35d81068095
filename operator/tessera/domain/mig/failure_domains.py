"""Spreading of a service's replicas over GPUs and nodes.

The mix has no names of GPUs, so spreading comes afterwards: replicas take idle slices, new slices
on used GPUs or the slices of services that may move, and only then new GPUs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from tessera.domain.mig.demand import ServiceDemand
from tessera.domain.mig.fleet import FleetGpu, FleetSlice
from tessera.domain.mig.gpu_building import place_geometry
from tessera.domain.mig.gpu_models import WHOLE_GPU, GpuModel
from tessera.domain.mig.layouts import WHOLE_GPU_LAYOUT

# Prefix of GPUs and nodes that have no name yet.
_NEW_PREFIX = "+"

# Returns the failure domain of a GPU: itself or its node.
TopologyKey: TypeAlias = Callable[[FleetGpu], str]


class _SliceRef(NamedTuple):
    gpu_index: int
    mig_slice: FleetSlice


def by_gpu(gpu: FleetGpu) -> str:
    """Return the GPU's name, as GPUs fail one by one."""
    return gpu.name


def by_node(gpu: FleetGpu) -> str:
    """Return the GPU's node, as a node fails with all its GPUs."""
    # A GPU without a node is a failure domain of its own.
    return gpu.node or f"?{gpu.name}"


@dataclass(frozen=True, slots=True)
class _SpreadRule:
    domain_of: TopologyKey
    min_domains: Mapping[str, int]
    """Number of failure domains that each service requires."""


def _spread_rules(services: Sequence[ServiceDemand]) -> tuple[_SpreadRule, ...]:
    return (
        _SpreadRule(
            by_node,
            {service.name: service.min_nodes for service in services if service.min_nodes > 1},
        ),
        _SpreadRule(
            by_gpu, {service.name: service.min_gpus for service in services if service.min_gpus > 1}
        ),
    )


def spread_violations(
    services: Sequence[ServiceDemand], gpus: Sequence[FleetGpu]
) -> tuple[str, ...]:
    """Return the services on fewer GPUs or nodes than they require."""
    rules = _spread_rules(services)
    if not any(rule.min_domains for rule in rules):
        return ()
    domains_by_rule = [_replicas_by_domain(gpus, rule.domain_of) for rule in rules]
    return tuple(
        sorted(
            {
                name
                for rule, domains in zip(rules, domains_by_rule, strict=True)
                for name, min_domains in rule.min_domains.items()
                if len(domains.get(name, ())) < min_domains
            }
        )
    )


def spread(
    services: Sequence[ServiceDemand], gpus: Sequence[FleetGpu], gpu_models: Mapping[str, GpuModel]
) -> tuple[FleetGpu, ...]:
    """Return the same replicas, spread as far as possible; added GPUs have no name."""
    spread_gpus = list(gpus)
    rules = _spread_rules(services)
    for rule in rules:
        for name, min_domains in sorted(rule.min_domains.items()):
            while len(_replicas_by_domain(spread_gpus, rule.domain_of).get(name, ())) < min_domains:
                changed = _move_replica(name, rule, rules, spread_gpus, gpu_models)
                if changed is None:
                    break
                spread_gpus = changed
    return tuple(
        replace(gpu, name="") if gpu.name.startswith(_NEW_PREFIX) else gpu for gpu in spread_gpus
    )


def assign_nodes(gpus: Sequence[FleetGpu], gpus_per_node: int) -> tuple[FleetGpu, ...]:
    """Return the GPUs with nodes: free ones of existing nodes first, then new nodes."""
    taken = Counter(gpu.node for gpu in gpus if gpu.node and not gpu.node.startswith(_NEW_PREFIX))
    new_nodes = {gpu.node for gpu in gpus if gpu.node.startswith(_NEW_PREFIX)}
    names = (name for number in count(1) if (name := f"node-{number:04}") not in taken)
    node_names = dict(zip(sorted(new_nodes), names, strict=False))
    free_places = [node for node in sorted(taken) for _ in range(gpus_per_node - taken[node])]
    with_nodes = []
    for gpu in gpus:
        node = node_names.get(gpu.node, gpu.node)
        if not node:
            if not free_places:
                free_places = [next(names)] * gpus_per_node
            node = free_places.pop(0)
        with_nodes.append(replace(gpu, node=node))
    return tuple(with_nodes)


def _replicas_by_domain(
    gpus: Sequence[FleetGpu], domain_of: TopologyKey
) -> dict[str, Counter[str]]:
    domains: dict[str, Counter[str]] = {}
    for gpu in gpus:
        for mig_slice in gpu.slices:
            if mig_slice.service is not None:
                domains.setdefault(mig_slice.service, Counter())[domain_of(gpu)] += 1
    return domains


def _move_replica(
    name: str,
    rule: _SpreadRule,
    rules: Sequence[_SpreadRule],
    gpus: list[FleetGpu],
    gpu_models: Mapping[str, GpuModel],
) -> list[FleetGpu] | None:
    """Return the GPUs with one replica moved to a failure domain without any of its service.

    None if the service has no failure domain with two replicas.
    """
    domains = _replicas_by_domain(gpus, rule.domain_of)
    refs = [
        _SliceRef(index, mig_slice)
        for index, gpu in enumerate(gpus)
        for mig_slice in gpu.slices
        if mig_slice.service == name and domains[name][rule.domain_of(gpu)] > 1
    ]
    target_gpu_indexes = [
        index for index, gpu in enumerate(gpus) if rule.domain_of(gpu) not in domains.get(name, ())
    ]
    for ref in reversed(refs):
        for changed in _possible_moves(ref, target_gpu_indexes, gpus, gpu_models):
            if all(_keeps_spread(checked_rule, gpus, changed) for checked_rule in rules):
                return changed
    return _add_gpu(refs[-1], rule, gpus, gpu_models) if refs else None


def _add_gpu(
    ref: _SliceRef, rule: _SpreadRule, gpus: list[FleetGpu], gpu_models: Mapping[str, GpuModel]
) -> list[FleetGpu]:
    """Return the GPUs with the replica on an added one, on a new node if the rule is by node."""
    gpu_model, profile = gpus[ref.gpu_index].gpu_model, ref.mig_slice.profile
    # The profile comes from a GPU of this model, so that it fits on an empty one.
    layout = place_geometry(gpu_models[gpu_model], ((profile, 1),)) or ()
    start = layout[0].start
    name = f"{_NEW_PREFIX}{len(gpus)}"
    node = name if rule.domain_of is by_node else ""
    new_gpu = FleetGpu(
        name=name, gpu_model=gpu_model, node=node, slices=(ref.mig_slice._replace(start=start),)
    )
    return [*_set_service(gpus, ref, None), new_gpu]


def _possible_moves(
    ref: _SliceRef,
    target_gpu_indexes: Sequence[int],
    gpus: list[FleetGpu],
    gpu_models: Mapping[str, GpuModel],
) -> Iterator[list[FleetGpu]]:
    """Yield the GPUs after each possible move: to idle slices, to new slices, then by exchange."""
    profile, gpu_model = ref.mig_slice.profile, gpus[ref.gpu_index].gpu_model
    same_model = [index for index in target_gpu_indexes if gpus[index].gpu_model == gpu_model]
    service = ref.mig_slice.service
    for idle in (True, False):
        for index in same_model:
            for other in gpus[index].slices:
                if other.profile == profile and (other.service is None) == idle:
                    yield _set_service(
                        _set_service(gpus, ref, other.service), _SliceRef(index, other), service
                    )
        for index in same_model if idle else ():
            if (start := _free_start(gpus[index], profile, gpu_models[gpu_model])) is not None:
                grown = tuple(
                    sorted(
                        (*gpus[index].slices, FleetSlice(start, profile, service)),
                        key=attrgetter("start"),
                    )
                )
                without_replica = _set_service(gpus, ref, None)
                yield [
                    *without_replica[:index],
                    replace(without_replica[index], slices=grown),
                    *without_replica[index + 1 :],
                ]


def _free_start(gpu: FleetGpu, profile: str, gpu_model: GpuModel) -> int | None:
    """Return where the profile fits on a used GPU in MIG mode; None if it does not."""
    if not gpu.used or gpu.layout == WHOLE_GPU_LAYOUT or profile == WHOLE_GPU:
        return None
    extended = place_geometry(gpu_model, ((profile, 1),), gpu.layout)
    return (
        None
        if extended is None
        else next(placement.start for placement in extended if placement not in gpu.layout)
    )


def _set_service(gpus: list[FleetGpu], ref: _SliceRef, service: str | None) -> list[FleetGpu]:
    gpu_index = ref.gpu_index
    slices = tuple(
        mig_slice._replace(service=service) if mig_slice == ref.mig_slice else mig_slice
        for mig_slice in gpus[gpu_index].slices
    )
    return [*gpus[:gpu_index], replace(gpus[gpu_index], slices=slices), *gpus[gpu_index + 1 :]]


def _keeps_spread(rule: _SpreadRule, before: Sequence[FleetGpu], after: Sequence[FleetGpu]) -> bool:
    """Return whether no service falls below its required spread, or further below it."""
    old_domains, new_domains = (
        _replicas_by_domain(before, rule.domain_of),
        _replicas_by_domain(after, rule.domain_of),
    )
    return all(
        len(new_domains.get(name, ())) >= min(min_domains, len(old_domains.get(name, ())))
        for name, min_domains in rule.min_domains.items()
    )
