"""What services have to keep, and which free slices can take the replacements of their pods.

The scheduler decides which pending pod gets a free slice. A service therefore only counts on the
slices that remain after every pending pod of another service has a slice.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tessera.api.ref import Ref
from tessera.domain.hardware.gpu_models import WHOLE_GPU
from tessera.domain.mig.demand import DEMAND_TOLERANCE
from tessera.domain.mig_backends.devices import profile_of
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.snapshot import Pod
from tessera.domain.repartition.actions import PoolService, Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceShortage:
    """A service that would fall below its required capacity."""

    service: PoolService
    pods: tuple[Ref, ...]
    """Its pods that would have to leave."""
    profile: str
    """The profile of the slices that it lacks."""
    missing: int
    """Slices that would have to be free in addition, including those that other services' pending
    pods would take."""


class _ReplicaLosses(NamedTuple):
    """The services that lose given pods, and how many slices are looked for then."""

    services: Sequence[PoolService]
    replicas: Mapping[Ref, Sequence[Replica]]
    """Displaced replicas by service."""
    counts: Counter[tuple[Ref, str]]
    """Displaced replicas by service and profile."""
    pending: dict[str, int]
    """Pods of all services that will look for a slice, by profile; filled on demand."""


class _ReplicaCounts(NamedTuple):
    total: int
    pending: int
    """Not scheduled yet, and not draining."""
    starting: int
    """Not ready, and not draining."""


class PoolCapacity:
    """The services of a pool and the free slices of its nodes."""

    def __init__(
        self,
        nodes: Sequence[MigNode],
        services: Iterable[PoolService],
        device_pods: Mapping[str, Sequence[Pod]],
    ) -> None:
        """Take all pods with devices by node: those that are no replica hold slices too."""
        self.services = tuple(sorted(services, key=lambda service: service.ref))
        self._counts: dict[tuple[Ref, str], _ReplicaCounts] = {}
        self._required = {service.ref: required_capacity(service) for service in self.services}
        # Replicas that start are counted: pods drain only after they are Ready.
        self._capacity_once_ready = {
            service.ref: capacity_of(service, filter(is_active, service.replicas))
            for service in self.services
        }
        self.replicas: dict[Ref, Replica] = {}
        self.owner: dict[Ref, PoolService] = {}
        self.replicas_by_node = defaultdict[str, list[Replica]](list)
        for service in self.services:
            for replica in service.replicas:
                self.replicas[replica.pod] = replica
                self.owner[replica.pod] = service
                if replica.node is not None and replica.profile is not None:
                    self.replicas_by_node[replica.node].append(replica)
        self.other_pods = {
            node.name: tuple(self._other_pods(node, device_pods.get(node.name, ())))
            for node in nodes
        }
        """Pods that are no replica, by node, each with the profile of a slice that it holds."""
        self._free = {
            node.name: _free_slices(
                node, self.replicas_by_node.get(node.name, ()), self.other_pods[node.name]
            )
            for node in nodes
        }
        self._all_free = sum(self._free.values(), Counter[str]())
        self._pending = Counter[str]()
        for service in self.services:
            for profile in _profiles(service):
                self._pending[profile] += self._pending_pods(service, profile, 0)

    def _other_pods(self, node: MigNode, pods: Iterable[Pod]) -> Iterator[tuple[Ref, str]]:
        for pod in pods:
            for resource, count in pod.devices.items():
                profile = profile_of(node.gpu_model, resource)
                if profile is not None and pod.ref not in self.owner:
                    yield from [(pod.ref, profile)] * count

    def has_replica(self, pod: Ref, node: str) -> bool:
        """Return whether a pod is a replica that may run on the node, whatever an agent says."""
        replica = self.replicas.get(pod)
        return replica is not None and replica.node in (None, node)

    def supply(self, excluded_nodes: Collection[str]) -> Counter[str]:
        """Return the free slices of all other nodes, by profile."""
        counts = self._all_free.copy()
        for name in excluded_nodes:
            counts.subtract(self.free_slices(name))
        return counts

    def waiting_pods(self, removed: Mapping[str, int] | None = None) -> Counter[str]:
        """Return the pods that find no free slice, by profile, once these are `removed`."""
        waiting = self._pending.copy()
        waiting.subtract(self._all_free)
        waiting.update(removed or {})
        return +waiting

    def free_slices(self, node: str) -> Mapping[str, int]:
        """Return the free slices of one node, by profile."""
        return self._free.get(node, {})

    def affected_services(self, displaced: Collection[Ref]) -> list[PoolService]:
        """Return the services that own one of these pods, sorted by name."""
        services = {self.owner[pod].ref: self.owner[pod] for pod in displaced if pod in self.owner}
        return [services[name] for name in sorted(services)]

    def shortages(
        self, displaced: Collection[Ref], supply: Mapping[str, int]
    ) -> list[SliceShortage]:
        """Return the services that could not keep their required capacity without these pods."""
        shortages, spare = [], Counter(supply)
        losses = self._replica_losses(displaced)
        for service in losses.services:
            active = filter(is_active, losses.replicas[service.ref])
            remaining = self._capacity_once_ready[service.ref] - capacity_of(service, active)
            lost, required, expected = self._replacements_needed(service, losses, supply, remaining)
            if expected >= required:
                continue
            profile = replacement_profile(service, lost)
            missing = required - expected
            # A service that changes its profile may surge on the previous one meanwhile.
            surge = _previous_profile_replicas(service, profile, missing)
            if surge and spare[service.previous_profile or ""] >= surge:
                spare[service.previous_profile or ""] -= surge
                continue
            pods = tuple(sorted(replica.pod for replica in lost))
            shortages.append(
                SliceShortage(service=service, pods=pods, profile=profile, missing=missing)
            )
        return shortages

    def surge_replicas(
        self, displaced: Collection[Ref], supply: Mapping[str, int]
    ) -> dict[Ref, int]:
        """Return the extra replicas on previous profiles that let these pods drain, by service."""
        surges, losses = {}, self._replica_losses(displaced)
        for service in losses.services:
            remaining = sum(
                replica_capacity(service, replica)
                for replica in service.replicas
                if replica.pod not in displaced
                # A surge replica that starts does not count yet, or its own existence would end
                # the surge before it is Ready.
                and (
                    is_serving(replica)
                    or (is_active(replica) and replica.profile in service.planned)
                )
            )
            lost, required, expected = self._replacements_needed(service, losses, supply, remaining)
            profile = replacement_profile(service, lost)
            surge = _previous_profile_replicas(service, profile, required - expected)
            if all(replica.profile == service.previous_profile for replica in lost):
                # One for one: a planned profile can be worth thousands of the previous one.
                surge = min(surge, len(lost))
            if surge > 0:
                surges[service.ref] = surge
        return surges

    def _replacements_needed(
        self,
        service: PoolService,
        losses: _ReplicaLosses,
        supply: Mapping[str, int],
        remaining: float,
    ) -> tuple[list[Replica], int, int]:
        """Return the serving replicas that it loses, and its required and expected replacements.

        `remaining` is its capacity without the lost replicas. Expected replacements are those that
        are certain to find a free slice.
        """
        lost = [replica for replica in losses.replicas[service.ref] if is_serving(replica)]
        missing = self._required[service.ref] - remaining
        if not lost or missing <= tolerance(service):
            return lost, 0, 0
        profile = replacement_profile(service, lost)
        per_replica = service.capacity.get(profile, 0.0)
        if not per_replica:
            # No known speed on that profile: no replacement can be counted on.
            return lost, len(lost), 0
        missing -= sum(
            self._certain_pods(service, other, losses, supply) * service.capacity.get(other, 0.0)
            for other in service.planned
            if other != profile
        )
        required = max(0, math.ceil(missing / per_replica - DEMAND_TOLERANCE))
        expected = self._certain_pods(service, profile, losses, supply)
        return lost, required, min(required, expected)

    def _certain_pods(
        self,
        service: PoolService,
        profile: str,
        losses: _ReplicaLosses,
        supply: Mapping[str, int],
    ) -> int:
        """Return how many of its pods that look for such a slice are certain to find one."""
        own_pending = self._pending_pods(service, profile, losses.counts[service.ref, profile])
        available = supply.get(profile, 0) - (self._total_pending(profile, losses) - own_pending)
        return max(0, min(own_pending, available))

    def replacement_expected(
        self, service: PoolService, displaced: Collection[Ref], supply: Mapping[str, int]
    ) -> bool:
        """Return whether a replacement starts already, or is certain to find a slice."""
        if any(
            is_active(replica) and not replica.ready and replica.pod not in displaced
            for replica in service.replicas
        ):
            return True
        losses = self._replica_losses(displaced)
        lost = losses.replicas[service.ref]
        return any(
            self._certain_pods(service, profile, losses, supply)
            for profile in service.planned or (replacement_profile(service, lost),)
        )

    def _replica_losses(self, displaced: Collection[Ref]) -> _ReplicaLosses:
        counts, replicas = Counter[tuple[Ref, str]](), defaultdict[Ref, list[Replica]](list)
        for pod in displaced:
            replica = self.replicas.get(pod)
            if replica is None:
                continue
            service = self.owner[pod].ref
            replicas[service].append(replica)
            if replica.profile is not None:
                counts[service, replica.profile] += 1
        return _ReplicaLosses(self.affected_services(displaced), replicas, counts, {})

    def _total_pending(self, profile: str, losses: _ReplicaLosses) -> int:
        """Return how many pods of all services look for such a slice once the lost are replaced."""
        if profile not in losses.pending:
            losses.pending[profile] = self._pending[profile] + sum(
                self._pending_pods(service, profile, losses.counts[service.ref, profile])
                - self._pending_pods(service, profile, 0)
                for service in losses.services
            )
        return losses.pending[profile]

    def _pending_pods(self, service: PoolService, profile: str, displaced_count: int) -> int:
        """Return how many of its pods look for such a slice once so many displaced are replaced."""
        key = service.ref, profile
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = _count_replicas(service, profile)
        # Pods that Deployments have yet to create are counted like pending ones: the scheduler may
        # give them any free slice.
        if not service.planned:
            to_create = displaced_count - counts.starting
        elif profile in service.planned:
            to_create = service.planned[profile] + displaced_count - counts.total
        else:
            to_create = 0
        return counts.pending + max(0, to_create)


def is_serving(replica: Replica) -> bool:
    """Return whether the replica takes new requests."""
    return replica.ready and not replica.draining


def is_active(replica: Replica) -> bool:
    """Return whether the replica serves or starts on its node."""
    return replica.node is not None and not replica.draining


def replica_capacity(service: PoolService, replica: Replica) -> float:
    """Return the capacity of one replica, in the unit of `min_capacity`."""
    return service.capacity.get(replica.profile or WHOLE_GPU, 0.0)


def capacity_of(service: PoolService, replicas: Iterable[Replica]) -> float:
    """Return the capacity of these replicas, in the unit of `min_capacity`."""
    return sum(replica_capacity(service, replica) for replica in replicas)


def tolerance(service: PoolService) -> float:
    """Return how far a sum of capacities may be below its limit: float sums are not exact."""
    return DEMAND_TOLERANCE * (1 + service.min_capacity)


def serving_capacity(service: PoolService) -> float:
    """Return the capacity that serves now."""
    return capacity_of(service, filter(is_serving, service.replicas))


def required_capacity(service: PoolService) -> float:
    """Return the capacity that has to stay: `min_capacity`, or less while less serves."""
    return 0.0 if service.allows_downtime else min(serving_capacity(service), service.min_capacity)


def planned_capacity(service: PoolService) -> float:
    """Return the capacity of its planned replicas, in the unit of `min_capacity`."""
    return sum(
        count * service.capacity.get(profile, 0.0) for profile, count in service.planned.items()
    )


def replacement_profile(service: PoolService, lost: Sequence[Replica]) -> str:
    """Return the profile of the replacements: the planned one, else the one that is lost.

    Of several planned ones it is the one that lacks most replicas without the lost ones.
    """
    if not service.planned:
        return min((replica.profile or WHOLE_GPU for replica in lost), default=WHOLE_GPU)
    lacking = _lacking_replicas(service, lost) if len(service.planned) > 1 else service.planned
    return max(sorted(lacking), key=lambda profile: lacking[profile])


def replacement_profiles(service: PoolService, lost: Sequence[Replica]) -> set[str]:
    """Return the profiles that replacements may have."""
    lacking = _lacking_replicas(service, lost)
    several = {profile for profile in lacking if lacking[profile] > 0 and len(lacking) > 1}
    return several | {replacement_profile(service, lost)}


def _lacking_replicas(service: PoolService, lost: Sequence[Replica]) -> Mapping[str, int]:
    """Return how many replicas each planned profile lacks without the lost ones."""
    pods = {replica.pod for replica in lost}
    existing = Counter(
        replica.profile
        for replica in service.replicas
        if is_active(replica) and replica.pod not in pods
    )
    return {profile: count - existing[profile] for profile, count in service.planned.items()}


def _previous_profile_replicas(service: PoolService, profile: str, replicas: int) -> int:
    """Return how many replicas of its previous profile equal so many; 0 where it has none."""
    per_replica = service.capacity.get(service.previous_profile or "", 0.0)
    if service.previous_profile is None or not per_replica:
        return 0
    return math.ceil(replicas * service.capacity.get(profile, 0.0) / per_replica - DEMAND_TOLERANCE)


def _count_replicas(service: PoolService, profile: str) -> _ReplicaCounts:
    matching = [replica for replica in service.replicas if replica.profile == profile]
    pending = sum(replica.node is None and not replica.draining for replica in matching)
    starting = sum(not replica.ready and not replica.draining for replica in matching)
    return _ReplicaCounts(total=len(matching), pending=pending, starting=starting)


def _profiles(service: PoolService) -> set[str]:
    profiles = {replica.profile for replica in service.replicas} | service.planned.keys()
    return {profile for profile in profiles if profile is not None}


def _free_slices(
    node: MigNode, replicas: Sequence[Replica], other_pods: Sequence[tuple[Ref, str]]
) -> Counter[str]:
    """Return the slices that a pod could be scheduled on now, by profile."""
    if not node.ready or node.inconsistency:
        return Counter()
    known = node.located_pods
    free = Counter(
        instance.placement.profile
        for gpu in node.gpus
        for instance in gpu.instances
        if gpu.fault is None and not instance.holders and not instance.processes
    )
    # A pod whose slice the agent has not reported yet holds one of its profile.
    free.subtract(
        replica.profile for replica in replicas if replica.profile and replica.pod not in known
    )
    free.subtract(profile for pod, profile in other_pods if pod not in known)
    return +free
