"""What one cycle knows of a pool's rollout: goals, capacity, and the units under way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tessera.api.mig import Unit
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.mig_backends.backend import Capabilities
from tessera.domain.repartition.capacity import PoolCapacity, SliceShortage, replacement_profiles
from tessera.domain.repartition.goals import NodeGoal
from tessera.domain.repartition.units import (
    NodeRepartition,
    blocker,
    node_blocker,
    node_repartition,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveUnit:
    """A unit of the status in this cycle."""

    unit: Unit
    repartition: NodeRepartition
    """Those of its GPUs that do not have their layout yet."""
    problem: StatusVerdict[LayoutReady] | None = None
    surging: bool = False
    """Replacements fit on its own node alone, so the node is not tainted until they have slices."""

    @property
    def is_temporary(self) -> bool:
        """Whether its GPUs have a temporary layout, which is there for pods to be scheduled on."""
        return self.unit.phase == "Temporary"


@dataclass(slots=True, kw_only=True)
class RolloutState:
    """The state of one cycle; shortages are always computed for all active units together."""

    goals: Mapping[str, NodeGoal]
    capacity: PoolCapacity
    capabilities: Capabilities
    own_pods: frozenset[Ref]
    at: datetime
    active: dict[str, ActiveUnit] = field(default_factory=dict)
    """By node: starts with the units of the status and grows by those that begin."""
    canceled: dict[str, Unit] = field(default_factory=dict)
    """By node: units that were not free in time, and begin again later."""
    _repartitions: dict[tuple[str, tuple[int, ...]], NodeRepartition] = field(default_factory=dict)
    _blockers: dict[tuple[str, int], StatusVerdict[LayoutReady] | None] = field(
        default_factory=dict
    )

    def nodes_to_taint(self) -> frozenset[str]:
        """Return the nodes of units that keep new pods away."""
        return frozenset(
            name
            for name, active in self.active.items()
            if not (active.is_temporary or active.surging)
        )

    def unit_pods(self) -> frozenset[Ref]:
        """Return the pods on slices that the active units take away."""
        return frozenset[Ref]().union(*(active.repartition.pods for active in self.active.values()))

    def find_blocker(
        self, goal: NodeGoal, gpus: Sequence[int]
    ) -> StatusVerdict[LayoutReady] | None:
        """Return why these GPUs cannot be partitioned, however many slices are free elsewhere."""
        if verdict := node_blocker(goal):
            return verdict
        blockers = (self.gpu_blocker(goal, gpu) for gpu in gpus)
        return next((blocker for blocker in blockers if blocker is not None), None)

    def repartition(self, goal: NodeGoal, gpus: Sequence[int]) -> NodeRepartition:
        """Return what it takes to give these GPUs of the node their desired layouts."""
        # Computed once per cycle: candidates are compared again whenever a unit begins.
        key = goal.node.name, tuple(gpus)
        if key not in self._repartitions:
            self._repartitions[key] = node_repartition(
                goal.node, goal.desired, gpus, self.capacity, self.capabilities
            )
        return self._repartitions[key]

    def gpu_blocker(self, goal: NodeGoal, gpu: int) -> StatusVerdict[LayoutReady] | None:
        """Return why this GPU cannot get its layout, however many slices are free elsewhere."""
        key = goal.node.name, gpu
        if key not in self._blockers:
            self._blockers[key] = blocker(
                goal, gpu, self.capacity, self.capabilities, self.own_pods
            )
        return self._blockers[key]

    def shortages(
        self, repartition: NodeRepartition, *, use_own_node: bool = False
    ) -> list[SliceShortage]:
        """Return the services that would fall short if this began beside all active units.

        Replacements go to nodes without the taint; with `use_own_node` also to the free slices of
        the unit's own node.
        """
        others = self.nodes_to_taint() - {repartition.node.name}
        excluded = others if use_own_node else {*others, repartition.node.name}
        displaced = self.unit_pods() | repartition.pods
        return self.capacity.shortages(displaced, self.capacity.supply(excluded))

    def needs_surge(self, repartition: NodeRepartition) -> bool:
        """Return whether the replacements fit on the unit's own node and nowhere else."""
        return bool(self.shortages(repartition)) and self.fits_on_node(repartition)

    def fits_on_node(self, repartition: NodeRepartition) -> bool:
        """Return whether the node's free slices that stay are certain to take the replacements."""
        node = repartition.node
        if not (
            self.capabilities.knows_pods
            and node.reports_pods
            and self.capacity.free_slices(node.name)
        ):
            return False
        services = self.capacity.affected_services(repartition.pods)
        profiles = {
            profile
            for service in services
            for profile in replacement_profiles(
                service,
                [replica for replica in service.replicas if replica.pod in repartition.pods],
            )
        }
        # Where no slice of the planned profile is free, replacements start on the previous one.
        supply = self.capacity.supply(self.nodes_to_taint() - {node.name})
        surging = self.capacity.surge_replicas(self.unit_pods() | repartition.pods, supply)
        profiles |= {
            service.previous_profile or "" for service in services if service.ref in surging
        }
        # The scheduler picks any free slice of the profile: if one of those that go has it, a
        # replacement could land there and block the unit.
        return not (
            profiles & repartition.unused_profiles or self.shortages(repartition, use_own_node=True)
        )
