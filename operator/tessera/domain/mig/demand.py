"""What is asked of the planner: services with what they need, and GPUs with what they cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.mig.boards import Board
from tessera.domain.mig.layouts import Geometry

NEARLY = 1e-9
"""Demand counts as met up to this share of it: sums of floats are not exact."""


class Kind(NamedTuple):
    """What one instance may stand on: a slice of a board, or the whole (`full`)."""

    board: str
    profile: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service; demand and throughput in the same unit, whichever it is."""

    name: str
    demand: float
    floor: int = 0
    """Least number of instances."""
    throughput: Mapping[Kind, float]
    """Of one instance. A kind that is absent cannot hold the service."""
    gpus: int = 1
    """On so many different GPUs its instances stand at least."""
    nodes: int = 1
    """And on so many different nodes."""
    alike: bool = False
    """All of its instances are of one kind."""

    @property
    def instances(self) -> int:
        """At least so many, for the floor and the spread."""
        spread = max(self.gpus, self.nodes)
        return max(self.floor, spread if spread > 1 else 0, 1 if self.demand > 0 else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """GPUs of one board that can be had."""

    board: Board
    price: int
    """Of a whole GPU for an hour, in nano-units of one currency; any other unit does as well."""
    most: int | None = None
    per_node: int = 8
    """GPUs of a node, where nodes are not there yet."""
    sibling_safe: bool = True
    """A slice can be cut while others on its GPU are in use; otherwise a GPU is cut anew as a
    whole, or left as it is."""
    by_node: bool = False
    """Whoever sits on a node has to leave it before any of its GPUs is cut."""


class Corner(NamedTuple):
    """What can be cut on GPUs that are in use whatever is planned, so that it costs nothing."""

    board: str
    ways: tuple[Geometry, ...]
    gpus: int


def needed(service: Service, speed: float) -> int:
    """Instances of one speed that serve it alone."""
    return max(math.ceil(service.demand * (1 - NEARLY) / speed), service.instances)


def met(service: Service, got: Mapping[Kind, int]) -> bool:
    """Whether instances of these kinds serve it."""
    served = sum(service.throughput[kind] * count for kind, count in got.items())
    return served >= service.demand * (1 - NEARLY) and sum(got.values()) >= service.instances
