"""New layouts for GPUs in use that move as few replicas as the cost allows.

In this integer program every open GPU takes one of the ways to repartition it, services take
slices, and the replica of a retained slice may stay. It minimizes, in this order, moves,
repartitioned GPUs, destroyed slices and starts.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tessera.domain.mig.demand import (
    DEMAND_TOLERANCE,
    GpuOffer,
    InstanceType,
    ServiceDemand,
    instance_types_of,
    profiles_of,
    served_demand,
)
from tessera.domain.mig.fleet import FleetGpu, replicas_by_service
from tessera.domain.mig.geometries import Reshape, possible_reshapes
from tessera.domain.mig.integer_program import INFINITY, IntegerProgram, IntegerSolution
from tessera.domain.mig.mix import gpu_geometries
from tessera.domain.mig.slice_assignment import ReshapedGpu, assign_replicas

_MAX_NODES = 1_000
# Moves that the most expensive GPU is worth where cost goes first; more than ever happen at once.
_MOVES_COST_FIRST = 1_000.0
# Slices of one GPU; it scales the weights of lower objectives below those of higher ones.
_MAX_SLICES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RearrangeProblem:
    """The GPUs to rearrange, the GPUs beside them, and the limits."""

    services: Sequence[ServiceDemand]
    """Services by name, each with an offered instance type."""
    offers: Sequence[GpuOffer]
    open_gpus: Sequence[FleetGpu]
    fixed_gpus: Sequence[FleetGpu] = ()
    """GPUs whose replicas all stay."""
    max_cost: int | None = None
    """Largest cost of the open and the added GPUs; without it, cost and moves are weighed."""
    moves_per_gpu: float | None = None
    """Moves that saving the most expensive GPU is worth without `max_cost`; None for any number."""
    only_adds: bool = False
    """Whether slices are only added beside the existing ones, which is a smaller program."""


# Index of a group of interchangeable GPUs, and the way in which some of them are repartitioned.
_GroupReshape: TypeAlias = tuple[int, Reshape | None]


def rearrange(problem: RearrangeProblem) -> tuple[FleetGpu, ...] | None:
    """Return the open GPUs rearranged, then the added ones without a name.

    None if `max_cost` is too small.
    """
    return _RearrangeProgram(problem).solve()


class _RearrangeProgram:
    """The integer program; columns are reshapes, added GPUs, replicas, stays, moves and drains."""

    def __init__(self, problem: RearrangeProblem) -> None:
        self._problem = problem
        self._offer_by_model = {offer.gpu_model.name: offer for offer in problem.offers}
        self._current = {} if problem.only_adds else replicas_by_service(problem.open_gpus)
        fixed_replicas = replicas_by_service(
            (*problem.fixed_gpus, *problem.open_gpus) if problem.only_adds else problem.fixed_gpus
        )
        services = problem.services
        self._remaining = {
            service.name: remaining
            for service in services
            if any(
                remaining := _remaining_need(service, fixed_replicas.get(service.name, Counter()))
            )
            or service.name in self._current
        }
        self._services = [service for service in services if service.name in self._remaining]
        self._instance_types = instance_types_of(self._services)
        self._program = IntegerProgram()
        self._groups = self._group_gpus(problem.open_gpus)
        self._reshape_columns: list[_GroupReshape] = []
        self._new_gpu_columns: list[tuple[GpuOffer, Reshape]] = []
        self._replica_columns: list[tuple[str, InstanceType]] = []
        self._stay_columns = [
            (service.name, instance_type)
            for service in self._services
            for instance_type in sorted(self._current.get(service.name, ()))
            if instance_type in service.throughput
        ]
        # Without repetition, in the order of the GPUs.
        self._drained_nodes = dict.fromkeys(
            gpu.node for gpu in problem.open_gpus if self._offer_by_model[gpu.gpu_model].drains_node
        )
        total = len(problem.open_gpus) + 1
        moves_per_gpu = (
            _MOVES_COST_FIRST if problem.moves_per_gpu is None else problem.moves_per_gpu
        )
        self._moves_per_gpu = 0.0 if problem.max_cost is not None else moves_per_gpu
        self._reshape_cost = 1 / total
        self._destroy_cost = self._reshape_cost / (4 * _MAX_SLICES * total)
        self._replica_cost = self._destroy_cost / (2 * _MAX_SLICES * total)

    def _group_gpus(self, gpus: Sequence[FleetGpu]) -> list[list[FleetGpu]]:
        """Return groups of interchangeable GPUs, which share columns."""
        groups: dict[FleetGpu, list[FleetGpu]] = {}
        for gpu in gpus:
            # The node counts where nodes are drained as a whole.
            node = gpu.node if self._offer_by_model[gpu.gpu_model].drains_node else ""
            groups.setdefault(replace(gpu, name="", node=node), []).append(gpu)
        return list(groups.values())

    def solve(self) -> tuple[FleetGpu, ...] | None:
        """Return the GPUs of the best solution; None if the search finds none."""
        self._add_rows()
        for index, group in enumerate(self._groups):
            self._add_reshapes(index, group[0], len(group))
        for offer in self._problem.offers:
            self._add_new_gpus(offer)
        for service in self._services:
            self._add_replicas(service)
        self._add_stays()
        self._add_moves()
        self._add_node_drains()
        cost_first = self._problem.max_cost is None and self._problem.moves_per_gpu is None
        step = self._reshape_cost if cost_first else 0.0
        solution = self._program.solve_integer(_MAX_NODES, step=step)
        return None if solution is None else self._build_gpus(solution)

    def _add_rows(self) -> None:
        problem, add_row = self._problem, self._program.add_row
        for index, group in enumerate(self._groups):
            add_row(len(group), len(group), name=("group", index))
        for offer in problem.offers:
            if offer.max_gpus is not None:
                used, added = self._limits(offer)
                add_row(-INFINITY, used, name=("used", offer.gpu_model.name))
                add_row(-INFINITY, added, name=("added", offer.gpu_model.name))
        for node in self._drained_nodes:
            add_row(0, name=("node", node))
        for instance_type in self._instance_types:
            add_row(0, name=("slices", instance_type))
        for service in self._services:
            demand, replicas = self._remaining[service.name]
            add_row(demand, name=("demand", service.name))
            add_row(replicas, name=("replicas", service.name))
            add_row(0, name=("stops", service.name))
            add_row(0, name=("starts", service.name))
        for stay in self._stay_columns:
            add_row(0, name=("retained", stay))
            add_row(0, name=("needed", stay))
        add_row(0, INFINITY if problem.max_cost is None else problem.max_cost, name="cost")

    def _limits(self, offer: GpuOffer) -> tuple[int, int]:
        """Return how many open or added GPUs may be used, and how many may be added."""
        fixed_gpus, open_gpus = (
            [gpu for gpu in gpus if gpu.gpu_model == offer.gpu_model.name and not gpu.sunk]
            for gpus in (self._problem.fixed_gpus, self._problem.open_gpus)
        )
        max_gpus = offer.max_gpus or 0
        used = max(0, max_gpus - sum(gpu.used for gpu in fixed_gpus))
        return used, max(0, max_gpus - len(fixed_gpus) - len(open_gpus))

    def _add_reshapes(self, index: int, gpu: FleetGpu, gpu_count: int) -> None:
        """Add columns for all ways to repartition the GPUs of a group."""
        offer = self._offer_by_model[gpu.gpu_model]
        # An unused GPU keeps its slices and costs nothing.
        if not (self._problem.only_adds and gpu.used) and not gpu.sunk:
            self._reshape_columns.append((index, None))
            self._program.add_column(0, [(("group", index), 1)], 0, gpu_count)
        service_at = {mig_slice.placement: mig_slice.service for mig_slice in gpu.slices}
        for reshape in self._allowed_reshapes(offer, gpu):
            available = Counter(
                InstanceType(gpu.gpu_model, placement.profile)
                for placement in reshape.retained
                if not (self._problem.only_adds and service_at[placement])
                and placement not in gpu.foreign_slices
            )
            available.update(
                {InstanceType(gpu.gpu_model, name): count for name, count in reshape.added}
            )
            stays = Counter(
                (service_at[placement], InstanceType(gpu.gpu_model, placement.profile))
                for placement in reshape.retained
            )
            entries: list[tuple[Hashable, float]] = [(("group", index), 1)]
            if not gpu.sunk:
                entries += [("cost", offer.price), (("used", gpu.gpu_model), 1)]
            if reshape.retained != gpu.layout or reshape.added:
                entries.append((("node", gpu.node), -1))
            entries += [
                (("slices", instance_type), count) for instance_type, count in available.items()
            ]
            entries += [(("retained", stay), count) for stay, count in stays.items()]
            destroyed = [placement for placement in gpu.layout if placement not in reshape.retained]
            occupied = sum(service_at[placement] is not None for placement in destroyed)
            cost = self._reshape_cost * bool(reshape.added) + self._destroy_cost * (
                len(destroyed) + occupied
            )
            self._reshape_columns.append((index, reshape))
            self._program.add_column(
                cost + self._price_in_moves(offer) * (not gpu.sunk), entries, 0, gpu_count
            )

    def _allowed_reshapes(self, offer: GpuOffer, gpu: FleetGpu) -> Iterator[Reshape]:
        """Yield the ways to repartition the GPU that its backend and its fixed slices allow.

        The current layout is always one of them.
        """
        layout = gpu.layout
        profiles = profiles_of(gpu.gpu_model, self._instance_types)
        for reshape in possible_reshapes(offer.gpu_model, profiles, layout):
            unchanged = reshape.retained == layout and not reshape.added
            if unchanged or (
                not gpu.locked
                and set(gpu.foreign_slices) <= set(reshape.retained)
                and (offer.sibling_safe or not reshape.retained)
                and (reshape.retained == layout or not self._problem.only_adds)
            ):
                yield reshape

    def _price_in_moves(self, offer: GpuOffer) -> float:
        return (
            self._moves_per_gpu
            * offer.price
            / max(candidate.price for candidate in self._problem.offers)
        )

    def _add_new_gpus(self, offer: GpuOffer) -> None:
        name = offer.gpu_model.name
        profiles = profiles_of(name, self._instance_types)
        for geometry in gpu_geometries(offer.gpu_model, profiles) if profiles else ():
            slices = [
                (("slices", InstanceType(name, profile)), count) for profile, count in geometry
            ]
            limits = [(("used", name), 1), (("added", name), 1)]
            self._new_gpu_columns.append((offer, Reshape((), geometry)))
            # An existing GPU without services is a little cheaper than a new one.
            cost = 1.5 * self._reshape_cost + self._price_in_moves(offer)
            self._program.add_column(cost, [*slices, *limits, ("cost", offer.price)])

    def _add_replicas(self, service: ServiceDemand) -> None:
        """Add columns for the service's replicas by instance type, those that stay included."""
        name = service.name
        for instance_type, speed in sorted(service.throughput.items()):
            entries: list[tuple[Hashable, float]] = [
                (("slices", instance_type), -1),
                (("demand", name), speed),
                (("replicas", name), 1),
                (("starts", name), -1),
                (("needed", (name, instance_type)), 1),
            ]
            self._replica_columns.append((name, instance_type))
            self._program.add_column(self._replica_cost, entries)

    def _add_stays(self) -> None:
        """Add columns for replicas that stay: those on retained slices, if they are needed."""
        for stay in self._stay_columns:
            both = (("stops", stay[0]), 1), (("starts", stay[0]), 1)
            self._program.add_column(0, [(("retained", stay), -1), (("needed", stay), -1), *both])

    def _add_moves(self) -> None:
        """Add columns that count moves: the smaller number of a service's stops and starts."""
        for service in self._services:
            stops, starts = ("stops", service.name), ("starts", service.name)
            current = self._current.get(service.name, Counter())
            self._program.add_column(1, [(stops, 1), (starts, 1)])
            # A binary column relaxes the row of the larger of the two numbers.
            switch = [(stops, -current.total()), (starts, _max_replicas(service))]
            self._program.add_column(0, switch, 0, 1)

    def _add_node_drains(self) -> None:
        """Add a column per node whose replicas all move once one of its GPUs is repartitioned."""
        for node in self._drained_nodes:
            node_gpus = [gpu for gpu in self._problem.open_gpus if gpu.node == node]
            replica_count = sum(
                mig_slice.service is not None for gpu in node_gpus for mig_slice in gpu.slices
            )
            cost = replica_count + 2 * self._reshape_cost
            self._program.add_column(cost, [(("node", node), len(node_gpus))], 0, 1)

    def _build_gpus(self, solution: IntegerSolution) -> tuple[FleetGpu, ...]:
        columns = iter(solution.columns)
        chosen = [reshape for reshape in self._reshape_columns for _ in range(next(columns))]
        new_gpus = [column for column in self._new_gpu_columns for _ in range(next(columns))]
        replica_totals = {key: count for key in self._replica_columns if (count := next(columns))}
        stays = {key: count for key in self._stay_columns if (count := next(columns))}
        reshaped: list[ReshapedGpu] = []
        for index, group in enumerate(self._groups):
            reshapes_of_group = [reshape for group_index, reshape in chosen if group_index == index]
            # GPUs that stay unused go last, so that the first of a group are used.
            reshapes_of_group.sort(key=lambda reshape: reshape is None)
            reshaped += zip(group, reshapes_of_group, strict=True)
        reshaped.sort(key=lambda reshaped_gpu: reshaped_gpu[0].name)
        reshaped += [
            (FleetGpu(name="", gpu_model=offer.gpu_model.name), reshape)
            for offer, reshape in new_gpus
        ]
        if self._problem.only_adds:
            for name, counts in replicas_by_service(self._problem.open_gpus).items():
                stays |= {(name, instance_type): count for instance_type, count in counts.items()}
            replica_totals = dict(Counter(replica_totals) + Counter(stays))
        gpu_models = {name: offer.gpu_model for name, offer in self._offer_by_model.items()}
        return assign_replicas(reshaped, replica_totals, stays, gpu_models)


def _remaining_need(
    service: ServiceDemand, fixed_replicas: Mapping[InstanceType, int]
) -> tuple[float, int]:
    """Return the demand and the replicas beyond those that fixed GPUs serve."""
    served = served_demand(service, fixed_replicas)
    demand = max(service.demand * (1 - DEMAND_TOLERANCE) - served, 0.0)
    return demand, max(service.required_replicas - sum(fixed_replicas.values()), 0)


def _max_replicas(service: ServiceDemand) -> int:
    """Return the largest number of replicas that can be needed."""
    slowest = min(service.throughput.values())
    return max(math.ceil(service.demand / slowest), service.required_replicas)
