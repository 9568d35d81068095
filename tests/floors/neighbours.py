"""Three tenants on one pool of slices and whole GPUs: whose price rises while it stays the same.

A service is unchanged from one event to the next, unless the event is its own. Its price is read
while it has as many replicas as it wants, all of them on devices: the second replica of a move,
which may be on a dearer place until its slice is made, is no raise.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tessera.api.ref import Ref
from tessera.domain.hardware.pools import weight_of
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tessera.domain.observed.node_layout import APPROVAL
from tessera.domain.observed.snapshot import Pod
from tessera.resources.manifest import ObjectKey
from tests.builders import A100, MEDIUM, SMALL
from tests.repartition.simulation import BACKENDS, RepartitionSimulation

TINY = "hf://Qwen/Qwen2.5-0.5B-Instruct"
TENANTS = ("team-a", "team-b", "team-c")
_EVENTS = 6
# Ticks after an event, in which GPUs are repartitioned and replicas move.
_TICKS = 40
_LAYOUTS = (
    [*(("1g.10gb", at) for at in range(4)), ("3g.40gb", 4)],
    [("1g.10gb", at) for at in range(7)],
    [("2g.20gb", 0), ("2g.20gb", 2), ("3g.40gb", 4)],
    [("3g.40gb", 0), ("3g.40gb", 4)],
    [("7g.80gb", 0)],
    None,
    None,
)


@dataclass(slots=True, kw_only=True)
class NeighbourFleet:
    """A drawn fleet under the whole operator, with the prices of its services."""

    rng: random.Random
    simulation: RepartitionSimulation
    mode: str
    raises: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    _changing: set[Ref] = field(default_factory=set)
    _prices: dict[Ref, float] = field(default_factory=dict)

    @classmethod
    def draw(cls, seed: int) -> "NeighbourFleet":
        rng = random.Random(seed)  # noqa: S311 - no secret
        gpus = [rng.choice(_LAYOUTS) for _ in range(rng.choice((2, 3, 4)))]
        backend = BACKENDS[rng.choice(("agent", "agent", "mig-manager, with agents that look"))]
        simulation = RepartitionSimulation.of(backend, [gpus[:2], gpus[2:]] if gpus[2:] else [gpus])
        simulation.gateways = rng.random() < 0.75
        mode = rng.choice(("Auto", "Propose"))
        simulation.pool(mode=mode)
        fleet = cls(rng=rng, simulation=simulation, mode=mode)
        for _ in range(rng.randint(3, 5)):
            fleet.add_service()
        return fleet

    async def play(self) -> Sequence[str]:
        """Return the raises of all events."""
        await self._run(2 * _TICKS)
        for _ in range(_EVENTS):
            self._changing.clear()
            self._prices.clear()
            self._look()
            await self._change()
            await self._run(_TICKS)
        await self.simulation.close()
        return self.raises

    async def _run(self, ticks: int) -> None:
        for _ in range(ticks):
            await self.simulation.tick()
            self._look()
            if self.rng.random() < 0.05:
                self._approve()

    # Users

    def add_service(self) -> None:
        tenant = self.rng.choice(TENANTS)
        name = f"{tenant[-1]}{len(self.simulation.min_replicas)}-{len(self.events)}"
        uri = self.rng.choice((TINY, TINY, SMALL, MEDIUM))
        mig = "Existing" if self.rng.random() < 0.15 else "Auto"
        self._serve(Ref(tenant, name), uri, self.rng.choice((1, 1, 2)), mig)

    def _serve(self, ref: Ref, uri: str, replicas: int, mig: str) -> None:
        self.events.append(f"serve {ref} {replicas}x {uri} {mig}")
        self._changing.add(ref)
        self.simulation.serve(ref.name, uri, replicas, ref.namespace, placement={"mig": mig})

    async def _change(self) -> None:
        names = sorted(self.simulation.min_replicas)
        what = self.rng.choice(("scale", "scale", "scale", "add", "remove", "restart"))
        if what == "add" or len(names) < 2:
            self.add_service()
            return
        ref = self.rng.choice(names)
        if what == "scale":
            body = self.simulation.kube.objects[ObjectKey("inferenceservices", *ref)]["spec"]
            replicas = max(1, self.simulation.min_replicas[ref] + self.rng.choice((-1, 1, 1, 2)))
            self._serve(ref, body["model"]["uri"], replicas, body["placement"]["mig"])
        elif what == "remove":
            self.events.append(f"remove {ref}")
            self._changing.add(ref)
            await self.simulation.remove(ref.name, ref.namespace)
        else:
            pods = [key for key, pod in self.simulation.kube.pods() if pod.service == ref]
            if pods:
                self.events.append(f"restart {pods[0].name}")
                self.simulation.kube.begin_deletion(pods[0])

    def _approve(self) -> None:
        proposed = self.simulation.mig.proposed
        if self.mode == "Propose" and proposed is not None:
            self.events.append(f"approve {proposed.name}")
            pool = ObjectKey(ACCELERATOR_POOLS.plural, "", "a100")
            self.simulation.kube.set(pool, "metadata", annotations={APPROVAL: proposed.name})

    # Prices

    def _look(self) -> None:
        """Compare what services cost with what they cost before, and remember it."""
        pods: dict[Ref, list[Pod]] = {}
        for _, pod in self.simulation.kube.pods():
            if not pod.terminating:
                pods.setdefault(pod.service, []).append(pod)
        for ref, wanted in sorted(self.simulation.min_replicas.items()):
            if ref in self._changing:
                continue
            own = pods.get(ref, [])
            bound = [pod for pod in own if pod.node is not None]
            waiting = [pod for pod in own if pod.node is None]
            if len(bound) < wanted and not all(map(self._finds_device, waiting)):
                self._changing.add(ref)  # somebody else took its device
            if len(bound) != wanted or waiting or ref in self._changing:
                continue
            price = round(sum(map(_price, bound)), 9)
            before = self._prices.get(ref)
            if before is not None and price > before:
                self.raises.append(f"{ref} {before} -> {price}, after {self.events[-1]}")
            self._prices[ref] = price

    def _finds_device(self, pod: Pod) -> bool:
        taken, offered = Counter[str](), Counter[str]()
        for _, other in self.simulation.kube.pods():
            if other.node is not None:
                taken.update(other.devices)
        for machine in self.simulation.machines:
            offered.update({name: int(count) for name, count in machine.allocatable.items()})
        return all(taken[resource] < offered[resource] for resource in pod.devices)


def _price(pod: Pod) -> float:
    return float(2 * sum(weight_of(A100, each) * count for each, count in pod.devices.items()))


async def raises_of(seeds: Iterable[int]) -> Sequence[str]:
    """Return the raises in drawn fleets, each with its seed."""
    raises = []
    for seed in seeds:
        raises += [f"{seed}: {each}" for each in await NeighbourFleet.draw(seed).play()]
    return raises


def neighbour_raises(fleets: int, first: int = 0) -> int:
    """Return how often an unchanged service became dearer in so many drawn fleets."""
    return len(asyncio.run(raises_of(range(first, first + fleets))))
