"""Replicas from their order until they are gone, by pool, and the nodes that are paid for them."""

import math
import random
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from tessera_lab.fleet.course import Lifetime
from tessera_lab.fleet.disturbance import Disturbance, within
from tessera_lab.fleet.model import FleetModel, NodePool, StartUp, Tier
from tessera_lab.fleet.simulated_replica import SimulatedReplica
from tessera_lab.fleet.spot import Preemption, SpotMarket


@dataclass(slots=True)
class _HeldNode:
    """A node without a replica that is paid until it is used or given back."""

    pool: NodePool
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
        self.longest_wait = 0.0
        """Seconds for which a replica waited for a node while another pool had one for it."""
        self.prompt_tokens = self.cached_tokens = self.promised_tokens = 0
        """Of replicas that are gone: looked up in their prefix caches, found there, and promised by
        the records of these."""
        self.output_tokens = 0
        """Of the same: given out."""
        self._fleet, self._disturbance, self._spot = fleet, disturbance, spot
        self._pools = fleet.node_pools
        self._ttft = ttft
        self._held: list[_HeldNode] = []
        self._refusing: set[str] = set()
        """Pools that had no node for the last replica that was to get one."""
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

    def bound(self, pool: NodePool) -> int:
        """Return the nodes of a pool that have, or start for, a replica."""
        return sum(each.pool is pool and math.isfinite(each.bound_at) for each in self.replicas)

    def foreign(self, moment: float) -> Mapping[str, int]:
        """Return the nodes that others use, by the pools that are always there."""
        return {
            pool.name: pool.nodes - self.bound(pool) if self._is_full(pool, moment) else 0
            for pool in self._pools
            if pool.nodes is not None
        }

    def resize(self, moment: float, targets: Mapping[str, int]) -> list[SimulatedReplica]:
        """Order and remove replicas until each pool has as many as its target, and give nodes to
        those that have none; return the replicas that got one."""
        for pool in self._pools:
            active = [replica for replica in self.active if replica.pool is pool]
            target = targets[pool.name]
            if self._fleet.pools and target > len(active):
                active += self._wanted_again(pool, target - len(active))
            for _ in range(target - len(active)):
                self.replicas.append(
                    SimulatedReplica(
                        self._fleet.on(pool), self._count, ordered_at=moment, pool=pool
                    )
                )
                self._count += 1
            # Those that still start go first, then the emptiest.
            active.sort(key=lambda each: (each.ready_at <= moment, each.load, -each.number))
            for replica in active[: max(0, len(active) - target)]:
                self._drain(replica, moment, moment + self._fleet.drain_timeout)
        pending = [replica for replica in self.active if math.isinf(replica.bound_at)]
        bound = [replica for replica in pending if self._bind(moment, replica)]
        self._count_waits(moment)
        return bound

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

    def record_activity(self, moment: float) -> None:
        """Note how busy the engines are, which have advanced to this moment."""
        for replica in self.replicas:
            if replica.bound_at <= moment:
                replica.record_activity(moment)

    def lose_oldest(self, moment: float) -> None:
        """Let the node of the oldest ready replica die."""
        if ready := self.ready(moment):
            self.lost_streams += ready[0].break_streams()
            self._remove(ready[0], moment)

    def preempt(self, moment: float, preemption: Preemption) -> None:
        """Drain the spot nodes that a preemption takes, at its notice; new ones die young."""
        spot = [replica for replica in self.active if replica.pool.tier is Tier.SPOT]
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

    def split(self, moment: float, desired: int) -> dict[str, int]:
        """Return the replicas of each pool for a number of all: the first pools are used first.

        Spot nodes are used as by SkyServe's fallback.
        """
        targets, rest = dict[str, int](), desired
        for pool in self._fleet.pools:
            targets[pool.name] = rest if pool.nodes is None else min(rest, pool.nodes)
            rest -= targets[pool.name]
        if targets:
            return targets
        purchase = self._fleet.purchase
        reserved = min(desired, purchase.reserved)
        burst = desired - reserved
        if not purchase.spot or self._spot is None:
            return {Tier.RESERVED: reserved, Tier.ON_DEMAND: burst, Tier.SPOT: 0}
        spot = [replica for replica in self.active if replica.pool.tier is Tier.SPOT]
        ready = sum(replica.ready_at <= moment for replica in spot)
        return {
            Tier.RESERVED: reserved,
            Tier.ON_DEMAND: max(0, burst - ready),
            Tier.SPOT: min(burst, self._spot.available(moment)),
        }

    def _wanted_again(self, pool: NodePool, count: int) -> list[SimulatedReplica]:
        """Let up to so many replicas that drain serve again, those that began last first."""
        draining = [each for each in self.replicas if each.draining and each.pool is pool]
        draining.sort(key=lambda each: (-each.drained_at, each.number))
        for replica in draining[:count]:
            replica.draining, replica.drained_at, replica.deadline = False, math.inf, math.inf
        return draining[:count]

    def _bind(self, moment: float, replica: SimulatedReplica) -> bool:
        fleet, pool = self._fleet, replica.pool
        node = next((node for node in reversed(self._held) if node.pool is pool), None)
        if node is None and not self._has_room(pool, moment):
            self._refusing.add(pool.name)
            return False
        self._refusing.discard(pool.name)
        start_up = fleet.start_up
        if fleet.held_start_up is not None and (node is not None or pool.tier is Tier.RESERVED):
            start_up = fleet.held_start_up
        if node is not None:
            self._release(node, moment)
        if moment <= 0:
            # The first replicas were ordered before the trace begins.
            replica.bind(moment, moment, moment)
            return True
        at = moment if node is not None or pool.nodes is not None else moment + pool.start_seconds
        replica.bind(moment, at, at + self._lead(start_up))
        return True

    def _is_full(self, pool: NodePool, moment: float) -> bool:
        disturbance = self._disturbance
        named = disturbance.full_pool in (None, pool.name)
        return named and moment > 0 and within(moment, disturbance.full_pools)

    def _has_room(self, pool: NodePool, moment: float) -> bool:
        """Return whether a pool has, or starts, one more node for a replica."""
        if self._is_full(pool, moment):
            return False
        return pool.nodes is None or self.bound(pool) < pool.nodes

    def _count_waits(self, moment: float) -> None:
        """Count how long replicas wait for a node while another pool has one for them.

        A node that is still to start is no better than one on its way, and none is known to come
        from a pool that refused the last one.
        """
        for replica in self.active:
            has_none = math.isinf(replica.bound_at)
            if replica.bound_at <= moment or not any(
                (pool.nodes is not None or (has_none and pool.name not in self._refusing))
                and self._has_room(pool, moment)
                for pool in self._pools
            ):
                replica.waits_since = None
                continue
            if replica.waits_since is None:
                replica.waits_since = moment
            self.longest_wait = max(self.longest_wait, moment - replica.waits_since)

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
        self.output_tokens += replica.engine.counts.generated_tokens
        if replica.paid_from > moment:
            return
        came = replica.bound_at <= moment
        if came:
            replica.record_activity(moment)
        self.lifetimes.append(
            Lifetime(
                replica.pool.tier,
                replica.paid_from,
                moment,
                replica.ready_at,
                tuple(replica.activity),
                replica.pool.size,
            )
        )
        if self._fleet.node_hold and came and replica.pool.tier is Tier.ON_DEMAND:
            self._held.append(_HeldNode(replica.pool, moment, moment + self._fleet.node_hold))

    def _release(self, node: _HeldNode, moment: float) -> None:
        self._held.remove(node)
        self.lifetimes.append(
            Lifetime(node.pool.tier, node.since, max(node.since, moment), size=node.pool.size)
        )
