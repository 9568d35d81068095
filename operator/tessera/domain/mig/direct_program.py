"""The integer program of the mix with a variable for every service and instance type.

It covers every combination of replicas, but suits small fleets only. Its bound is weaker than that
of the decomposed program, so the latter goes in as a constraint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.domain.mig.demand import (
    DEMAND_TOLERANCE,
    ServiceDemand,
    instance_types_of,
)
from tessera.domain.mig.integer_program import Coefficients, IntegerProgram
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
    gpu_columns: Sequence[tuple[float, Coefficients]],
    *,
    low: float,
    high: float,
    step: float,
) -> DirectSolution | None:
    """Return the best solution with a cost from `low` to `high`, within a step of cost.

    A GPU column has its price, and its slices as entries of rows (`slices`, instance type). None if
    the search finds no solution.
    """
    program = IntegerProgram()
    for instance_type in instance_types_of(services):
        program.add_row(0, name=("slices", instance_type))
    for service in services:
        program.add_row(service.demand * (1 - DEMAND_TOLERANCE), name=("demand", service.name))
        program.add_row(service.required_replicas, name=("replicas", service.name))
    program.add_row(low, high, name="cost")
    for price, slices in gpu_columns:
        program.add_column(price, [*slices, ("cost", price)])
    owners = []
    for service in services:
        served = ("demand", service.name), ("replicas", service.name)
        for instance_type, speed in sorted(service.throughput.items()):
            taken = ("slices", instance_type), -1
            program.add_column(0, [taken, (served[0], speed), (served[1], 1)])
            owners.append((service.name, instance_type))
    solution = program.solve_integer(_MAX_NODES, step=step)
    if solution is None:
        return None
    columns = solution.columns
    replicas: dict[str, ReplicaPattern] = {service.name: () for service in services}
    for (name, instance_type), count in zip(owners, columns[len(gpu_columns) :], strict=True):
        if count:
            replicas[name] += ((instance_type, count),)
    return DirectSolution(columns[: len(gpu_columns)], replicas, solution.bound)
