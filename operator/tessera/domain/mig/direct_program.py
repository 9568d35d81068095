"""The integer program of the mix with a variable for every service and instance type.

It covers every combination of replicas, but suits small fleets only. Its bound is weaker than that
of the decomposed program, so the latter goes in as a constraint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.domain.mig.demand import DEMAND_TOLERANCE, InstanceType, ServiceDemand
from tessera.domain.mig.integer_program import IntegerProgram
from tessera.domain.mig.pattern_pricing import ReplicaPattern

_MAX_NODES = 2_000


@dataclass(frozen=True, slots=True)
class DirectSolution:
    """An integer solution with its lower bound."""

    gpus: tuple[int, ...]
    """GPUs of each column, in the order of the columns."""
    replicas: Mapping[str, ReplicaPattern]
    bound: float


def solve_direct(
    services: Sequence[ServiceDemand],
    gpu_columns: Sequence[tuple[float, Sequence[tuple[InstanceType, int]]]],
    *,
    low: float,
    high: float,
    step: float,
) -> DirectSolution | None:
    """Return the best solution with a cost from `low` to `high`, within a step of cost.

    A GPU column has its price and its slices. None if the search finds no solution.
    """
    instance_types = sorted(
        {instance_type for service in services for instance_type in service.throughput}
    )
    type_rows = {instance_type: index for index, instance_type in enumerate(instance_types)}
    program = IntegerProgram()
    for _ in instance_types:
        program.add_row(0)
    for service in services:
        program.add_row(service.demand * (1 - DEMAND_TOLERANCE))
        program.add_row(service.required_replicas)
    cost_row = len(instance_types) + 2 * len(services)
    program.add_row(low, high)
    for price, slices in gpu_columns:
        entries = [
            *((type_rows[instance_type], count) for instance_type, count in slices),
            (cost_row, price),
        ]
        program.add_column(price, entries)
    owners = []
    for index, service in enumerate(services):
        demand_row = len(instance_types) + 2 * index
        for instance_type, speed in sorted(service.throughput.items()):
            program.add_column(
                0, [(type_rows[instance_type], -1), (demand_row, speed), (demand_row + 1, 1)]
            )
            owners.append((service.name, instance_type))
    solution = program.solve_integer(_MAX_NODES, step=step)
    if solution is None:
        return None
    replicas: dict[str, list[tuple[InstanceType, int]]] = {service.name: [] for service in services}
    columns = solution.columns
    for (name, instance_type), count in zip(owners, columns[len(gpu_columns) :], strict=True):
        if count:
            replicas[name].append((instance_type, count))
    patterns = {name: tuple(counts) for name, counts in replicas.items()}
    return DirectSolution(columns[: len(gpu_columns)], patterns, solution.bound)
