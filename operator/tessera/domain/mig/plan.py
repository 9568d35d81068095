"""The plan of layouts: what to cut, who sits where, how far that is from the best."""

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.mig.deal import deal
from tessera.domain.mig.demand import Offer, Service
from tessera.domain.mig.fleet import Gpu
from tessera.domain.mig.mix import cheapest_mix


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """GPUs in use and idle ones that were there before, by name."""

    gpus: tuple[Gpu, ...]
    cost: int
    bound: int
    """No layouts that serve the same services cost less."""
    unmet: tuple[str, ...]
    """Services that no GPU on offer can hold."""

    @property
    def used(self) -> int:
        """GPUs that somebody sits on."""
        return sum(gpu.used for gpu in self.gpus)

    @property
    def gap(self) -> float:
        """How far it may be from the optimum, as a share of its cost."""
        return (self.cost - self.bound) / self.cost if self.cost else 0.0


def plan_layouts(services: Iterable[Service], offers: Iterable[Offer]) -> LayoutPlan:
    """From nothing, at least cost. Equal input in any order gives equal plans."""
    offered = tuple(offers)
    mix = cheapest_mix(services, offered)
    return LayoutPlan(
        gpus=deal(mix, {offer.board.name: offer.board for offer in offered}),
        cost=mix.cost,
        bound=mix.bound,
        unmet=mix.unmet,
    )
