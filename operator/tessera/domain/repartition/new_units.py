"""The units that begin in a cycle: those that displace the fewest pods, or a temporary layout."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tessera.api.mig import GpuTarget, Unit
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.domain.mig.layout_changes import repartition_rank
from tessera.domain.repartition import messages
from tessera.domain.repartition.goals import NodeGoal
from tessera.domain.repartition.rollout_state import ActiveUnit, RolloutState
from tessera.domain.repartition.temporary_layouts import BlockedUnit, find_temporary_layout
from tessera.domain.repartition.units import NodeRepartition, node_blocker, plan_blocker


@dataclass(slots=True, kw_only=True)
class NewUnits:
    """Begins units in the state of a cycle, up to `spec.mig.maxConcurrent`."""

    state: RolloutState
    max_concurrent: int
    blocked: list[StatusVerdict[LayoutReady]] = field(default_factory=list)
    """Why other units cannot begin."""
    _blocked_units: list[BlockedUnit] = field(default_factory=list)

    def start(self, window_closed: str | None) -> None:
        """Begin units, or begin or end a temporary layout."""
        if self._count_in_progress() and not self._may_start():
            return
        candidates = self._candidates()
        while candidates and not window_closed and self._may_start():
            self._start(min(candidates, key=self._rank))
            # A begun unit takes free slices: the others are judged again with it.
            candidates = self._candidates() if self._may_start() else []
        if candidates or self._count_in_progress():
            return
        if self.state.active:
            # Temporary layouts alone are left and help no unit any more: without their units,
            # their GPUs are mismatched and get the planned layout from the next cycle on.
            self.state.active.clear()
            self.blocked.append(messages.temporary_layout_ended())
        elif self._blocked_units and not window_closed:
            self._start_temporary()

    def _may_start(self) -> bool:
        # A node with a problem does not count against maxConcurrent, or one broken node would stop
        # the rollout; more broken nodes than maxConcurrent do stop it.
        stuck = sum(active.problem is not None for active in self.state.active.values())
        return (
            self._count_in_progress() - stuck < self.max_concurrent and stuck <= self.max_concurrent
        )

    def _count_in_progress(self) -> int:
        return sum(not active.is_temporary for active in self.state.active.values())

    def _start(self, repartition: NodeRepartition, temporary: tuple[GpuTarget, ...] = ()) -> None:
        node = repartition.node.name
        unit = Unit(
            node=node,
            gpus=repartition.gpus,
            phase="Draining",
            since=self.state.at,
            temporary_layout=temporary,
        )
        surging = self.state.needs_surge(repartition)
        self.state.active[node] = ActiveUnit(unit=unit, repartition=repartition, surging=surging)

    def _start_temporary(self) -> None:
        available = [goal for goal in self.state.goals.values() if not node_blocker(goal)]
        temporary = find_temporary_layout(
            self._blocked_units, available, self.state.capacity, self.state.capabilities
        )
        if temporary is not None:
            # The goal is the planned layout, whose pods have to leave; a temporary layout keeps
            # every slice that is in use.
            repartition = replace(
                self.state.repartition(temporary.goal, temporary.gpus), pods=frozenset()
            )
            self._start(repartition, temporary.targets)

    def _rank(self, repartition: NodeRepartition) -> tuple[int, int, str]:
        services = self.state.capacity.affected_services(repartition.pods)
        downtime = sum(service.allows_downtime for service in services)
        return repartition_rank(len(repartition.pods), repartition.node.name, downtime)

    def _candidates(self) -> list[NodeRepartition]:
        """Return at most one unit per node, and record why others cannot begin."""
        self.blocked, self._blocked_units = [], []
        candidates: list[NodeRepartition] = []
        for name, goal in self.state.goals.items():
            if verdict := plan_blocker(goal):
                self.blocked.append(verdict)
            node = goal.node
            unusable = node.inconsistency or (node.unavailable and node.ready)
            if name in self.state.active or not (goal.mismatched or unusable):
                continue
            if (canceled := self.state.canceled.get(name)) is not None:
                self.blocked.append(messages.drain_deadline_exceeded(canceled))
                continue
            if verdict := node_blocker(goal):
                self.blocked.append(verdict)
            else:
                candidates += self._node_candidates(goal)
        return candidates

    def _node_candidates(self, goal: NodeGoal) -> Iterator[NodeRepartition]:
        """Yield the unit that may begin on one node."""
        blockers = {gpu: self.state.gpu_blocker(goal, gpu) for gpu in goal.mismatched}
        self.blocked += [blocker for blocker in blockers.values() if blocker is not None]
        free = [gpu for gpu, blocker in blockers.items() if blocker is None]
        # Without an agent it is not known which pod is on which GPU: drain the whole node or
        # nothing.
        if not (self.state.capabilities.knows_pods and goal.node.reports_pods):
            if len(free) == len(goal.mismatched):
                yield from self._feasible_candidates(goal, [free])
            return
        repartitions = {gpu: self.state.repartition(goal, (gpu,)) for gpu in free}
        # GPUs without pods go by themselves: their new slices take the replacements of the others.
        if idle := [gpu for gpu in free if not repartitions[gpu].pods]:
            yield self.state.repartition(goal, idle)
            return
        ordered = sorted(free, key=lambda gpu: (len(repartitions[gpu].pods), gpu))
        yield from self._feasible_candidates(goal, [(gpu,) for gpu in ordered])

    def _feasible_candidates(
        self, goal: NodeGoal, parts: Sequence[Sequence[int]]
    ) -> Iterator[NodeRepartition]:
        """Yield the parts of the node that can be partitioned at once, as one unit.

        Each part is added if all services keep their minimum capacity while the pods of all parts
        so far are displaced.
        """
        chosen, blocked = self.state.repartition(goal, ()), list[BlockedUnit]()
        for part in parts:
            extended = self.state.repartition(goal, (*chosen.gpus, *part))
            shortages = self.state.shortages(extended)
            if not shortages or self.state.fits_on_node(extended):
                chosen = extended
            elif not chosen.gpus:
                blocked.append(BlockedUnit(repartition=extended, shortages=shortages))
        if chosen.gpus:
            yield chosen
            return
        self._blocked_units += blocked
        self.blocked += [
            messages.no_surge_capacity(unit.repartition, shortage)
            for unit in blocked
            for shortage in unit.shortages
        ]
