"""Replicas from their order until they are gone, by tier, and the nodes that are paid for them."""

import math
import random
from array import array
from dataclasses import dataclass

from tessera_lab.fleet.course import Lifetime
from tessera_lab.fleet.disturbance import Disturbance, within
from tessera_lab.fleet.model import FleetModel, StartUp, Tier
from tessera_lab.fleet.simulated_replica import SimulatedReplica
from tessera_lab.fleet.spot import Preemption, SpotMarket


@dataclass(slots=True)
class _HeldNode:
    """A node without a replica that is paid until it is used or given back."""

    tier: Tier
    since: float
    until: float


class Nodes:
    """All replicas that are paid; numbers of replicas in, replicas that start and drain out."""

    def __init__(
        self,
        fleet: FleetModel,
        disturbance: Disturbance,
        spot: SpotMarket | None,
        seed: int,
        ttft: "array[float]",
    ) -> None:
        self.replicas: list[SimulatedReplica] = []
        self.lifetimes: list[Lifetime] = []
        self.broken_streams = 0
        """Requests that a removed replica had not finished in time."""
        self.lost_streams = 0
        """Requests of nodes that died."""
        self.prompt_tokens = self.cached_tokens = self.promised_tokens = 0
        """Of replicas that are gone: looked up in their prefix caches, found there, and promised by
        the records of these."""
        self._fleet, self._disturbance, self._spot = fleet, disturbance, spot
        self._ttft = ttft
        self._held: list[_HeldNode] = []
        self._count = 0
        self._rng = random.Random(seed)  # noqa: S311 - not a secret

    @property
    def active(self) -> list[SimulatedReplica]:
        """Return the replicas that start or serve."""
        return [replica for replica in self.replicas if not replica.draining]

    def ready(self, moment: float) -> list[SimulatedReplica]:
        """Return the replicas that take requests, those ready first in front."""
        ready = [replica for replica in self.active if replica.ready_at <= moment]
        return sorted(ready, key=lambda replica: (replica.ready_at, replica.number))

    def resize(self, moment: float, desired: int) -> None:
        """Order and remove replicas until `desired` of them are in effect."""
        targets = self._targets(moment, desired)
        for tier in Tier:
            active = [replica for replica in self.active if replica.tier is tier]
            for _ in range(targets[tier] - len(active)):
                if not self._order(moment, tier):
                    break
            # Those that still start go first, then the emptiest.
            active.sort(key=lambda each: (each.ready_at <= moment, each.load, -each.number))
            for replica in active[: max(0, len(active) - targets[tier])]:
                self._drain(replica, moment, moment + self._fleet.drain_timeout)

    def advance(self, moment: float) -> None:
        """Advance all engines, and let go those that are drained."""
        for replica in self.replicas:
            replica.advance(moment, self._ttft)
        for replica in [each for each in self.replicas if each.draining]:
            if replica.idle:
                self._remove(replica, max(replica.now, replica.drained_at))
            elif replica.deadline <= moment:
                self.broken_streams += replica.break_streams()
                self._remove(replica, replica.deadline)
        for node in [each for each in self._held if each.until <= moment]:
            self._release(node, node.until)

    def lose_oldest(self, moment: float) -> None:
        """Let the node of the oldest ready replica die."""
        if ready := self.ready(moment):
            self.lost_streams += ready[0].break_streams()
            self._remove(ready[0], moment)

    def preempt(self, moment: float, preemption: Preemption) -> None:
        """Drain the spot nodes that a preemption takes, at its notice; new ones die young."""
        spot = [replica for replica in self.active if replica.tier is Tier.SPOT]
        spot.sort(key=lambda each: (-each.ordered_at, -each.number))
        for replica in spot[: preemption.lost(len(spot))]:
            self._drain(replica, moment, preemption.at)

    def finish(self, end: float) -> float:
        """Run all engines empty, and return when the last request ended."""
        last = end
        for replica in self.replicas:
            replica.advance(math.inf, self._ttft)
            last = max(last, replica.now if replica.served else end)
        for replica in list(self.replicas):
            self._remove(replica, replica.now if replica.draining else last)
        for node in list(self._held):
            self._release(node, min(node.until, last))
        return last

    def _targets(self, moment: float, desired: int) -> dict[Tier, int]:
        """Return the replicas of each tier: SkyServe's fallback where spot nodes are used."""
        purchase = self._fleet.purchase
        reserved = min(desired, purchase.reserved)
        burst = desired - reserved
        if not purchase.spot or self._spot is None:
            return {Tier.RESERVED: reserved, Tier.ON_DEMAND: burst, Tier.SPOT: 0}
        spot = [replica for replica in self.active if replica.tier is Tier.SPOT]
        ready = sum(replica.ready_at <= moment for replica in spot)
        return {
            Tier.RESERVED: reserved,
            Tier.ON_DEMAND: max(0, burst - ready),
            Tier.SPOT: min(burst, self._spot.available(moment)),
        }

    def _order(self, moment: float, tier: Tier) -> bool:
        fleet = self._fleet
        node = next((node for node in reversed(self._held) if node.tier is tier), None)
        if node is None and within(moment, self._disturbance.full_pools) and moment > 0:
            return False
        start_up = fleet.start_up
        if fleet.held_start_up is not None and (node is not None or tier is Tier.RESERVED):
            start_up = fleet.held_start_up
        if node is not None:
            self._release(node, moment)
        # The first replicas were ordered before the trace begins.
        lead = 0.0 if moment <= 0 else self._lead(start_up)
        self.replicas.append(
            SimulatedReplica(
                fleet, self._count, ordered_at=moment, ready_at=moment + lead, tier=tier
            )
        )
        self._count += 1
        return True

    def _lead(self, start_up: StartUp) -> float:
        seconds = self._rng.triangular(start_up.low, start_up.high, start_up.mode)
        return seconds * self._disturbance.start_up_factor

    @staticmethod
    def _drain(replica: SimulatedReplica, moment: float, deadline: float) -> None:
        replica.draining, replica.drained_at, replica.deadline = True, moment, deadline

    def _remove(self, replica: SimulatedReplica, moment: float) -> None:
        self.replicas.remove(replica)
        self.prompt_tokens += replica.engine.counts.queried_tokens
        self.cached_tokens += replica.engine.counts.hit_tokens
        self.promised_tokens += replica.promised_tokens
        self.lifetimes.append(Lifetime(replica.tier, replica.ordered_at, moment))
        if self._fleet.node_hold and replica.tier is Tier.ON_DEMAND:
            self._held.append(_HeldNode(replica.tier, moment, moment + self._fleet.node_hold))

    def _release(self, node: _HeldNode, moment: float) -> None:
        self._held.remove(node)
        self.lifetimes.append(Lifetime(node.tier, node.since, max(node.since, moment)))
