"""GPUs that cannot be emptied, so that a plan that repartitions them could not begin.

A backend that repartitions a GPU as a whole needs it empty first: all of its slices are free then.
Moving a replica does not change how many slices are free, so as many have to be free in all, or
held by replicas beyond the floors of their services.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace

from tessera.domain.layout.problem import LayoutProblem
from tessera.domain.mig.demand import GpuOffer
from tessera.domain.mig.fleet import FleetGpu


def crowded_gpus(problem: LayoutProblem, *, grows: bool) -> frozenset[str]:
    """Return the GPUs that cannot be emptied.

    With `grows`, a GPU that can be emptied gets as many slices as fit, which take replicas of
    others.
    """
    offers = {offer.gpu_model.name: offer for offer in problem.offers}
    free, crowded = _count_free_slices(problem, offers), set[str]()
    groups = defaultdict[str, list[FleetGpu]](list)
    for gpu in problem.gpus:
        offer = offers[gpu.gpu_model]
        if not offer.sibling_safe and offer.gpu_model.profiles:
            groups[gpu.node if offer.drains_node else gpu.name].append(gpu)
    for group in sorted(groups.values(), key=_count_slices):
        if _count_slices(group) > free:
            crowded |= {gpu.name for gpu in group if not gpu.sunk}
        elif grows:
            free += sum(
                offers[gpu.gpu_model].gpu_model.compute_slices - len(gpu.slices)
                for gpu in group
                if not gpu.sunk
            )
    return frozenset(crowded)


def lock(problem: LayoutProblem, names: Collection[str]) -> LayoutProblem:
    """Return the problem in which these GPUs keep their layouts."""
    if not names:
        return problem
    gpus = tuple(replace(gpu, locked=True) if gpu.name in names else gpu for gpu in problem.gpus)
    return with_counted_gpus(replace(problem, gpus=gpus))


def with_counted_gpus(problem: LayoutProblem) -> LayoutProblem:
    """Return the problem whose offers have as many GPUs as may still be added or given up."""
    counts = Counter(gpu.gpu_model for gpu in problem.gpus if not gpu.sunk)
    offers = tuple(
        replace(offer, max_gpus=counts[offer.gpu_model.name]) for offer in problem.offers
    )
    return replace(problem, offers=offers)


def _count_free_slices(problem: LayoutProblem, offers: dict[str, GpuOffer]) -> int:
    """Return how many replicas can start somewhere, or stop, before any GPU is emptied."""
    floors = {demand.service.name: demand.floor for demand in problem.demands}
    running = Counter(part.service for gpu in problem.gpus for part in gpu.slices if part.service)
    free = sum(max(0, count - floors.get(name, 0)) for name, count in running.items())
    for gpu in problem.gpus:
        gpu_model = offers[gpu.gpu_model].gpu_model
        if not gpu_model.profiles:
            free += not gpu.slices
        elif offers[gpu.gpu_model].sibling_safe:
            # Slices may be added beside those in use.
            free += gpu_model.compute_slices
        else:
            free += sum(
                part.service is None and part.placement not in gpu.foreign_slices
                for part in gpu.slices
            )
    return free


def _count_slices(gpus: Iterable[FleetGpu]) -> int:
    return sum(len(gpu.slices) for gpu in gpus)
