"""Boards, services and GPUs of the planner of layouts, with defaults."""

from collections.abc import Mapping

from tessera.domain.mig.boards import boards
from tessera.domain.mig.demand import Kind, Offer, Service
from tessera.domain.mig.fleet import Gpu, Slice

A100 = boards()["A100-80GB"]
ONE = (Offer(board=A100, price=1),)


def a_service(
    name: str = "a",
    demand: float = 0.0,
    speeds: Mapping[str, float] | None = None,
    floor: int = 0,
    like: Service | None = None,
) -> Service:
    """On slices of an A100; or a namesake of another."""
    if like is not None:
        return Service(name=name, demand=like.demand, floor=like.floor, throughput=like.throughput)
    given = {"1g.10gb": 1.0} if speeds is None else speeds
    throughput = {Kind(A100.name, profile): speed for profile, speed in given.items()}
    return Service(name=name, demand=demand, floor=floor, throughput=throughput)


def a_gpu(name: str, *slices: str) -> Gpu:
    """`3g.40gb@4=chat`, or without a service when it is idle."""
    made = []
    for text in slices:
        spot, _, service = text.partition("=")
        profile, _, start = spot.partition("@")
        made.append(Slice(int(start), profile, service or None))
    return Gpu(name=name, board=A100.name, slices=tuple(sorted(made, key=lambda one: one.spot)))
