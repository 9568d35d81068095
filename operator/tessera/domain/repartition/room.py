"""Who could move where: what services have to keep, and the slices that are free for others.

Which of the waiting pods gets a free slice is the scheduler's choice, so a service counts on those
alone that are left when everybody else who looks for one has got his.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tessera.domain.mig.boards import WHOLE_GPU
from tessera.domain.mig.demand import DEMAND_TOLERANCE
from tessera.domain.ref import Ref
from tessera.domain.repartition.facts import Ground
from tessera.domain.repartition.orders import Replica, Tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A service that would fall below what it has to keep."""

    tenant: Tenant
    pods: tuple[Ref, ...]
    """Those of its pods that would have to leave."""
    profile: str
    """Of the slices that it lacks."""
    missing: int
    """So many of them would have to be free besides; those that others wait for are among them."""


class _Crowd(NamedTuple):
    """Services that lose pods, and what that means for everybody."""

    concerned: Sequence[Tenant]
    gone: Mapping[Ref, Sequence[Replica]]
    """What leaves of each of them."""
    going: Counter[tuple[Ref, str]]
    """Pods that leave, by service and profile."""
    seekers: dict[str, int]
    """Pods that look for a slice then, by profile, as far as it was asked."""


class _Tally(NamedTuple):
    """Replicas of a service on slices of one profile."""

    there: int
    waiting: int
    """For a slice."""
    starting: int
    """Not ready, and not on their way out."""


class Room:
    """The services of a pool, and the free slices of its nodes."""

    def __init__(self, grounds: Iterable[Ground], tenants: Iterable[Tenant]) -> None:
        self.tenants = tuple(sorted(tenants, key=lambda one: one.service))
        self._tallies: dict[tuple[Ref, str], _Tally] = {}
        self._kept: dict[Ref, float] = {}
        self._up: dict[Ref, float] = {}
        self.replica = {one.pod: one for tenant in self.tenants for one in tenant.replicas}
        self.owner = {replica.pod: tenant for tenant in self.tenants for replica in tenant.replicas}
        on_nodes: dict[str, list[Replica]] = {}
        for tenant in self.tenants:
            for replica in tenant.replicas:
                if replica.node is not None and replica.profile is not None:
                    on_nodes.setdefault(replica.node, []).append(replica)
        self.on_nodes: Mapping[str, Sequence[Replica]] = on_nodes
        self._free = {
            ground.name: _free(ground, on_nodes.get(ground.name, ())) for ground in grounds
        }
        self._all_free = Counter[str]()
        for free in self._free.values():
            self._all_free.update(free)
        self._looking = Counter[str]()
        for tenant in self.tenants:
            for profile in _profiles(tenant):
                self._looking[profile] += self._newcomers(tenant, profile, 0)

    def supply(self, shut: Collection[str]) -> Counter[str]:
        """Free slices by profile, but for those of nodes that take no new pods."""
        found = self._all_free.copy()
        for name in shut:
            found.subtract(self.free(name))
        return found

    def free(self, node: str) -> Mapping[str, int]:
        """Free slices of one node, by profile."""
        return self._free.get(node, {})

    def concerned(self, doomed: Collection[Ref]) -> list[Tenant]:
        """Services that lose a pod, by name."""
        found = {self.owner[pod].service: self.owner[pod] for pod in doomed if pod in self.owner}
        return [found[name] for name in sorted(found)]

    def shortages(self, doomed: Collection[Ref], supply: Mapping[str, int]) -> list[Shortage]:
        """Who could not keep what it has to when these pods leave.

        What nothing planned is free for may start on a former profile.
        """
        found, refuge = [], Counter(supply)
        crowd = self._crowd(doomed)
        for tenant in crowd.concerned:
            going = sum(speed(tenant, one) for one in crowd.gone[tenant.service] if up(one))
            rest = self._has_up(tenant) - going
            lost, number, coming = self._lacks(tenant, crowd, supply, rest)
            if coming >= number:
                continue
            profile = successor(tenant, lost)
            missing = number - coming
            needed = _as_former(tenant, profile, missing)
            if needed and refuge[tenant.former or ""] >= needed:
                refuge[tenant.former or ""] -= needed
                continue
            pods = tuple(sorted(one.pod for one in lost))
            found.append(Shortage(tenant=tenant, pods=pods, profile=profile, missing=missing))
        return found

    def surges(self, doomed: Collection[Ref], supply: Mapping[str, int]) -> dict[Ref, int]:
        """How many replicas services need on former profiles until these pods may leave; one that
        starts counts until it serves."""
        found, crowd = {}, self._crowd(doomed)
        for tenant in crowd.concerned:
            rest = sum(
                speed(tenant, one)
                for one in tenant.replicas
                if one.pod not in doomed
                and (serves(one) or (up(one) and one.profile == tenant.profile))
            )
            lost, number, coming = self._lacks(tenant, crowd, supply, rest)
            needed = _as_former(tenant, successor(tenant, lost), number - coming)
            if needed > 0:
                found[tenant.service] = needed
        return found

    def _lacks(
        self, tenant: Tenant, crowd: _Crowd, supply: Mapping[str, int], rest: float
    ) -> tuple[list[Replica], int, int]:
        """What it loses, the replacements that it needs of the successor's profile beside the rest
        that it has, and those of them that find a slice."""
        lost = [one for one in crowd.gone[tenant.service] if serves(one)]
        lack = self._keeps(tenant) - rest
        if not lost or lack <= slack(tenant):
            return lost, 0, 0
        profile = successor(tenant, lost)
        each = tenant.capacity.get(profile, 0.0)
        if not each:
            return lost, len(lost), 0
        number = math.ceil(lack / each - DEMAND_TOLERANCE)
        mine = self._newcomers(tenant, profile, crowd.going[tenant.service, profile])
        left = supply.get(profile, 0) - (self._seekers(profile, crowd) - mine)
        return lost, number, max(0, min(number, mine, left))

    def hoped(self, tenant: Tenant, doomed: Collection[Ref], supply: Mapping[str, int]) -> bool:
        """Whether a replacement starts, or will for certain."""
        if any(up(one) and not one.ready and one.pod not in doomed for one in tenant.replicas):
            return True
        crowd = self._crowd(doomed)
        profile = successor(tenant, crowd.gone[tenant.service])
        mine = self._newcomers(tenant, profile, crowd.going[tenant.service, profile])
        return mine > 0 and supply.get(profile, 0) > self._seekers(profile, crowd) - mine

    def _crowd(self, doomed: Collection[Ref]) -> _Crowd:
        going, gone = Counter[tuple[Ref, str]](), defaultdict[Ref, list[Replica]](list)
        for pod in doomed:
            one = self.replica.get(pod)
            if one is None:
                continue
            service = self.owner[pod].service
            gone[service].append(one)
            if one.profile is not None:
                going[service, one.profile] += 1
        return _Crowd(self.concerned(doomed), gone, going, {})

    def _seekers(self, profile: str, crowd: _Crowd) -> int:
        """Pods that look for such a slice, or will once those that go are to be replaced."""
        if profile not in crowd.seekers:
            crowd.seekers[profile] = self._looking[profile] + sum(
                self._newcomers(one, profile, crowd.going[one.service, profile])
                - self._newcomers(one, profile, 0)
                for one in crowd.concerned
            )
        return crowd.seekers[profile]

    def _newcomers(self, tenant: Tenant, profile: str, going: int) -> int:
        """Pods of it that look for a slice of the profile, or will once so many are replaced."""
        key = tenant.service, profile
        known = self._tallies.get(key)
        if known is None:
            known = self._tallies[key] = _tally(tenant, profile)
        if tenant.profile is None:
            coming = going - known.starting
        elif tenant.profile == profile:
            coming = tenant.wanted + going - known.there
        else:
            coming = 0
        return known.waiting + max(0, coming)

    def _has_up(self, tenant: Tenant) -> float:
        """What it has once all that starts serves."""
        if tenant.service not in self._up:
            self._up[tenant.service] = sum(speed(tenant, one) for one in tenant.replicas if up(one))
        return self._up[tenant.service]

    def _keeps(self, tenant: Tenant) -> float:
        if tenant.service not in self._kept:
            self._kept[tenant.service] = keeps(tenant)
        return self._kept[tenant.service]


def serves(replica: Replica) -> bool:
    """It is part of what its service has."""
    return replica.ready and not replica.leaving


def up(replica: Replica) -> bool:
    """It serves or starts."""
    return replica.node is not None and not replica.leaving


def speed(tenant: Tenant, replica: Replica) -> float:
    """Of one replica, in the unit of the floor."""
    return tenant.capacity.get(replica.profile or WHOLE_GPU, 0.0)


def slack(tenant: Tenant) -> float:
    """Sums of floats are not exact."""
    return DEMAND_TOLERANCE * (1 + tenant.floor)


def has(tenant: Tenant) -> float:
    """What it serves with now."""
    return sum(speed(tenant, one) for one in tenant.replicas if serves(one))


def keeps(tenant: Tenant) -> float:
    """What it has to keep: its floor, as far as that is there."""
    return 0.0 if tenant.downtime else min(has(tenant), tenant.floor)


def successor(tenant: Tenant, lost: Sequence[Replica]) -> str:
    """The profile on which those that leave are replaced."""
    return tenant.profile or min((one.profile or WHOLE_GPU for one in lost), default=WHOLE_GPU)


def _as_former(tenant: Tenant, profile: str, number: int) -> int:
    """Replicas of its former profile that give as much; 0 where it has none."""
    each = tenant.capacity.get(tenant.former or "", 0.0)
    if tenant.former is None or not each:
        return 0
    return math.ceil(number * tenant.capacity.get(profile, 0.0) / each - DEMAND_TOLERANCE)


def _tally(tenant: Tenant, profile: str) -> _Tally:
    mine = [one for one in tenant.replicas if one.profile == profile]
    return _Tally(
        there=len(mine),
        waiting=sum(one.node is None and not one.leaving for one in mine),
        starting=sum(not one.ready and not one.leaving for one in mine),
    )


def _profiles(tenant: Tenant) -> set[str]:
    profiles = {one.profile for one in tenant.replicas} | {tenant.profile}
    return {profile for profile in profiles if profile is not None}


def _free(ground: Ground, replicas: Sequence[Replica]) -> Counter[str]:
    """Slices that a pod could take now. A replica of which no tile is told may sit on any."""
    if not ground.ready or ground.disagrees:
        return Counter()
    told = {pod for card in ground.cards for tile in card.tiles for pod in tile.holders}
    free = Counter(
        tile.spot.profile
        for card in ground.cards
        for tile in card.tiles
        if card.fault is None and not tile.holders and not tile.processes
    )
    free.subtract(one.profile for one in replicas if one.profile and one.pod not in told)
    return +free
