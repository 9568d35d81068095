"""A planned layout is carried out unit by unit, and no service falls below what it has to keep.

A unit is some GPUs of one node. Its node takes no new pods, its pods leave when others serve in
their place, then the backend cuts, and the node is open again when it offers what was planned.
Nothing is remembered but the units in the pool's status, which are written before anything else:
every turn looks at what there is, so that any of its writes may be lost or repeated.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.mig import GpuTarget, Mig, MigPlan, MigStatus, Phase, Unit
from tessera.api.reasons import LayoutReady, StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.mig_backends.backend import BackendRequest, GeometryBackend
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.repartition.capacity import PoolCapacity, SliceShortage, replacement_profile
from tessera.domain.repartition.evictions import (
    displaced_by_profile,
    needs_extra_replica,
    pods_to_drain,
    wrong_profile_pods,
)
from tessera.domain.repartition.goals import NodeGoal, node_goals
from tessera.domain.repartition.messages import (
    backend_failed,
    no_surge_capacity,
    progress_message,
    surge_message,
    temporary_layout_ended,
    truncate,
    wait_message,
)
from tessera.domain.repartition.orders import PoolActions, PoolService
from tessera.domain.repartition.temporary_layouts import BlockedUnit, find_temporary_layout
from tessera.domain.repartition.units import (
    NodeRepartition,
    blocker,
    node_blocker,
    node_repartition,
    plan_blocker,
)
from tessera.domain.repartition.window import closed_reason

# So often a backend is asked for the same.
MAX_ATTEMPTS = 5
# A pod that was bound before the taint is seen by then.
SETTLE_PERIOD = timedelta(seconds=5)
# Replacements that do not become Ready are waited for so long, where the floor is kept without
# them; a unit whose room was taken by others is given up after it.
REPLACEMENT_TIMEOUT = timedelta(minutes=10)


# What is seen for a moment after a pod ended, until the agent has seen that too.
_TRANSIENT = frozenset(
    {LayoutReady.UNMANAGED_POD, LayoutReady.GPU_IN_USE, LayoutReady.REPARTITIONING}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutInputs:
    """All that a rollout looks at."""

    pool: str
    mig: Mig
    status: MigStatus
    """As it was written last."""
    nodes: Sequence[MigNode]
    services: Sequence[PoolService]
    backend: GeometryBackend
    own_pods: Collection[Ref]
    """Pods that Tessera made; others are nobody's to move."""
    at: datetime


def advance_rollout(inputs: RolloutInputs) -> PoolActions:
    """What this turn does for the plan of the status.

    The status that comes out is to be written before the rest.
    """
    plan = inputs.status.target
    if plan is None:
        verdict = StatusVerdict(LayoutReady.PLANNING, f"the pool {inputs.pool} has no plan yet")
        status = inputs.status.model_copy(update={"units": ()})
        displaced, draining = displaced_by_profile(inputs.services)
        return PoolActions(verdict=verdict, status=status, displaced=displaced, draining=draining)
    return _RolloutCycle(inputs, plan).actions()


@dataclass(frozen=True, slots=True, kw_only=True)
class _ActiveUnit:
    """A unit in work."""

    unit: Unit
    repartition: NodeRepartition
    """Of its GPUs that are not as they should be."""
    problem: StatusVerdict[LayoutReady] | None = None
    surging: bool = False
    """Its node takes pods until the replacements, which have room there alone, have slices."""

    @property
    def is_temporary(self) -> bool:
        """Its node is open to pods meanwhile."""
        return self.unit.phase == "Lending"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A unit that may be begun."""

    repartition: NodeRepartition
    services_with_downtime: int = 0
    """Services that allowed to be harmed, and would be."""

    @property
    def rank(self) -> tuple[int, int, str]:
        return self.services_with_downtime, len(self.repartition.pods), self.repartition.node.name


class _RolloutCycle:
    def __init__(self, inputs: RolloutInputs, plan: MigPlan) -> None:
        self._mig, self._status, self._at = inputs.mig, inputs.status, inputs.at
        self._backend, self._capabilities = inputs.backend, inputs.backend.capabilities
        self._own_pods = frozenset(inputs.own_pods)
        self._since = plan.at
        self._units = sorted(inputs.status.units, key=lambda unit: unit.node)
        self._goals = node_goals(
            plan, self._units, inputs.nodes, pinned=self._capabilities.pinned_starts
        )
        self._capacity = PoolCapacity(inputs.nodes, inputs.services)
        self._repartitions: dict[tuple[str, tuple[int, ...]], NodeRepartition] = {}
        self._blockers: dict[tuple[str, int], StatusVerdict[LayoutReady] | None] = {}
        self._active: dict[str, _ActiveUnit] = {}
        self._requests: dict[str, BackendRequest] = {}
        self._blocked: list[StatusVerdict[LayoutReady]] = []
        self._blocked_units: list[BlockedUnit] = []

    def actions(self) -> PoolActions:
        for unit in self._units:
            if (continued := self._continue_unit(unit)) is not None:
                self._active[unit.node] = continued
        closed = closed_reason(self._mig.maintenance_window, self._at)
        self._start_units(closed)
        self._reassert()
        wrong_profile = wrong_profile_pods(self._capacity.services)
        displaced = self._displaced() | wrong_profile
        draining = self._draining(displaced, wrong_profile)
        replicas = self._capacity.replicas
        evictions = {
            pod: replicas[pod].uid
            for pod in sorted(draining)
            if replicas[pod].draining and replicas[pod].drained
        }
        units = tuple(
            self._with_message(active, draining, evictions)
            for _, active in sorted(self._active.items())
        )
        done = sum(self._count_done(goal) for goal in self._goals.values())
        total = sum(len(goal.desired) + len(goal.infeasible) for goal in self._goals.values())
        changes = {"units": units, "done": done, "total": total}
        return PoolActions(
            verdict=self._verdict(units, f"{done} of {total} GPUs are as planned", closed),
            status=self._status.model_copy(update=changes),
            tainted_nodes=self._closed_nodes(),
            displaced=frozenset(pod for pod in displaced if needs_extra_replica(replicas[pod])),
            surge_replicas=self._capacity.surge_replicas(
                self._displaced(), self._capacity.supply(self._closed_nodes())
            ),
            draining=draining,
            evictions=evictions,
            requests=self._requests,
        )

    def _count_done(self, goal: NodeGoal) -> int:
        pending = {*goal.mismatched, *goal.missing, *goal.temporary}
        return sum(gpu not in pending for gpu in goal.desired)

    def _closed_nodes(self) -> frozenset[str]:
        """Nodes that take no new pods."""
        return frozenset(
            name
            for name, active in self._active.items()
            if not (active.is_temporary or active.surging)
        )

    def _count_in_progress(self) -> int:
        return sum(not active.is_temporary for active in self._active.values())

    # What is in work

    def _continue_unit(self, unit: Unit) -> _ActiveUnit | None:
        """The unit a turn later; None when it is over."""
        goal = self._goals.get(unit.node)
        if goal is None:
            return None
        gpus = tuple(gpu for gpu in unit.gpus if gpu in goal.desired)
        mismatched = tuple(gpu for gpu in gpus if gpu in goal.mismatched)
        if not gpus:
            return None
        if unit.phase in {"Applying", "Verifying"}:
            return self._apply(unit, goal, gpus, mismatched)
        return self._drain(unit, goal, mismatched) if mismatched else self._finish(unit, goal)

    def _finish(self, unit: Unit, goal: NodeGoal) -> _ActiveUnit | None:
        """What is cut for a while stays until it is taken back."""
        if not unit.instead:
            return None
        since = unit.since if unit.phase == "Lending" else self._at
        temporary = unit.model_copy(update={"phase": "Lending", "since": since})
        return _ActiveUnit(unit=temporary, repartition=self._repartition(goal, ()))

    def _drain(self, unit: Unit, goal: NodeGoal, gpus: tuple[int, ...]) -> _ActiveUnit | None:
        repartition = self._repartition(goal, gpus)
        draining = any(self._capacity.replicas[pod].draining for pod in repartition.pods)
        since = self._at if unit.phase != "Emptying" else unit.since
        updated = unit.model_copy(update={"gpus": gpus, "phase": "Emptying", "since": since})
        configs = self._backend.request(repartition.node, repartition.desired, unit.attempt).configs
        if configs:  # a file takes a while to reach the node
            self._requests[unit.node] = BackendRequest(configs=configs)
        overdue = self._at - since >= REPLACEMENT_TIMEOUT
        if problem := self._find_blocker(goal, gpus):
            transient = problem.reason in _TRANSIENT and not overdue
            active = _ActiveUnit(
                unit=updated, repartition=repartition, problem=None if transient else problem
            )
            return active if draining or transient else None
        if repartition.free and goal.node.tainted and self._at - since >= SETTLE_PERIOD:
            return self._request(updated, repartition, "Applying")
        surging = not draining and self._needs_surge(repartition)
        if overdue and not draining and not surging and self._shortages(repartition):
            return None
        return _ActiveUnit(unit=updated, repartition=repartition, surging=surging)

    def _find_blocker(
        self, goal: NodeGoal, gpus: Sequence[int]
    ) -> StatusVerdict[LayoutReady] | None:
        """Why these GPUs cannot be cut, whatever room there is."""
        if verdict := node_blocker(goal):
            return verdict
        blockers = (self._gpu_blocker(goal, gpu) for gpu in gpus)
        return next((blocker for blocker in blockers if blocker is not None), None)

    def _apply(
        self, unit: Unit, goal: NodeGoal, gpus: tuple[int, ...], mismatched: tuple[int, ...]
    ) -> _ActiveUnit | None:
        """Asked until it is done. Somebody who came nevertheless has to leave first."""
        node = goal.node
        repartition = self._repartition(goal, mismatched)
        updated = unit.model_copy(update={"gpus": gpus})
        if not repartition.free:
            draining = {"phase": "Emptying", "since": self._at}
            return _ActiveUnit(unit=updated.model_copy(update=draining), repartition=repartition)
        desired = {gpu: goal.desired[gpu] for gpu in gpus}
        requested = replace(repartition, desired=desired)
        status = self._backend.status(node, desired, unit.attempt, unit.since, self._at)
        if status.done:
            return self._finish(unit, goal)
        if status.retry and unit.attempt < MAX_ATTEMPTS:
            next_attempt = {"attempt": unit.attempt + 1, "since": self._at}
            return self._request(updated.model_copy(update=next_attempt), requested, "Applying")
        failure = backend_failed(node.name, gpus, MAX_ATTEMPTS) if status.retry else None
        phase: Phase = unit.phase if mismatched or goal.missing else "Verifying"
        return replace(self._request(updated, requested, phase), problem=status.problem or failure)

    def _request(self, unit: Unit, repartition: NodeRepartition, phase: Phase) -> _ActiveUnit:
        since = unit.since if unit.phase == phase else self._at
        self._requests[unit.node] = self._backend.request(
            repartition.node, repartition.desired, unit.attempt
        )
        return _ActiveUnit(
            unit=unit.model_copy(update={"phase": phase, "since": since}), repartition=repartition
        )

    def _reassert(self) -> None:
        """What keeps a finished node so is asked for where it is not there."""
        for name, goal in self._goals.items():
            if name in self._active or goal.mismatched or node_blocker(goal) or plan_blocker(goal):
                continue
            if not self._backend.status(goal.node, goal.desired, 1, self._since, self._at).done:
                self._requests[name] = self._backend.request(goal.node, goal.desired, 1)

    # What begins

    def _start_units(self, closed: str | None) -> None:
        """As much as may be in work; what lends is over when nothing goes on with it."""
        if self._count_in_progress() and not self._may_start():
            return
        candidates = self._candidates()
        while candidates and not closed and self._may_start():
            first = min(candidates, key=lambda candidate: candidate.rank)
            self._start(first.repartition)
            candidates = self._candidates() if self._may_start() else []
        if candidates or self._count_in_progress():
            return
        if self._active:
            self._active.clear()
            self._blocked.append(temporary_layout_ended())
        elif self._blocked_units and not closed:
            self._start_temporary()

    def _may_start(self) -> bool:
        """A node that is stuck hinders others only when too many are."""
        stuck = sum(active.problem is not None for active in self._active.values())
        return (
            self._count_in_progress() - stuck < self._mig.max_concurrent
            and stuck <= self._mig.max_concurrent
        )

    def _start(self, repartition: NodeRepartition, temporary: tuple[GpuTarget, ...] = ()) -> None:
        node = repartition.node.name
        unit = Unit(
            node=node, gpus=repartition.gpus, phase="Emptying", since=self._at, instead=temporary
        )
        self._active[node] = _ActiveUnit(
            unit=unit, repartition=repartition, surging=self._needs_surge(repartition)
        )

    def _start_temporary(self) -> None:
        available = [goal for goal in self._goals.values() if not node_blocker(goal)]
        temporary = find_temporary_layout(
            self._blocked_units, available, self._capacity, self._capabilities
        )
        if temporary is not None:
            repartition = replace(
                self._repartition(temporary.goal, temporary.gpus), pods=frozenset()
            )
            self._start(repartition, temporary.targets)

    def _candidates(self) -> list[_Candidate]:
        """At most one of each node; what cannot be begun is told."""
        self._blocked, self._blocked_units = [], []
        candidates: list[_Candidate] = []
        for name, goal in self._goals.items():
            if verdict := plan_blocker(goal):
                self._blocked.append(verdict)
            if name in self._active or not (goal.mismatched or goal.node.inconsistency):
                continue
            if verdict := node_blocker(goal):
                self._blocked.append(verdict)
            else:
                candidates += self._node_candidates(goal)
        return candidates

    def _node_candidates(self, goal: NodeGoal) -> Iterator[_Candidate]:
        """GPUs that nobody has to leave go alone, since they free room; then as many as can."""
        blockers = {gpu: self._gpu_blocker(goal, gpu) for gpu in goal.mismatched}
        self._blocked += [blocker for blocker in blockers.values() if blocker is not None]
        free = [gpu for gpu, blocker in blockers.items() if blocker is None]
        if not (self._capabilities.knows_pods and goal.node.reports_pods):
            if len(free) == len(goal.mismatched):
                yield from self._feasible_candidates(goal, [free])
            return
        repartitions = {gpu: self._repartition(goal, (gpu,)) for gpu in free}
        if idle := [gpu for gpu in free if not repartitions[gpu].pods]:
            yield _Candidate(repartition=self._repartition(goal, idle))
            return
        ordered = sorted(free, key=lambda gpu: (len(repartitions[gpu].pods), gpu))
        yield from self._feasible_candidates(goal, [(gpu,) for gpu in ordered])

    def _feasible_candidates(
        self, goal: NodeGoal, parts: Sequence[Sequence[int]]
    ) -> Iterator[_Candidate]:
        """All parts of the node that can be cut at once."""
        chosen, blocked = self._repartition(goal, ()), list[BlockedUnit]()
        for part in parts:
            extended = self._repartition(goal, (*chosen.gpus, *part))
            shortages = self._shortages(extended)
            if not shortages or self._fits_on_node(extended):
                chosen = extended
            elif not chosen.gpus:
                blocked.append(BlockedUnit(repartition=extended, shortages=shortages))
        if chosen.gpus:
            yield _Candidate(
                repartition=chosen, services_with_downtime=self._count_downtime(chosen)
            )
            return
        self._blocked_units += blocked
        self._blocked += [
            no_surge_capacity(unit.repartition, shortage)
            for unit in blocked
            for shortage in unit.shortages
        ]

    def _repartition(self, goal: NodeGoal, gpus: Sequence[int]) -> NodeRepartition:
        """The same for the whole turn, in which it is looked at more than once."""
        key = goal.node.name, tuple(gpus)
        if key not in self._repartitions:
            self._repartitions[key] = node_repartition(
                goal.node, goal.desired, gpus, self._capacity, self._capabilities
            )
        return self._repartitions[key]

    def _gpu_blocker(self, goal: NodeGoal, gpu: int) -> StatusVerdict[LayoutReady] | None:
        key = goal.node.name, gpu
        if key not in self._blockers:
            self._blockers[key] = blocker(
                goal, gpu, self._capacity, self._capabilities, self._own_pods
            )
        return self._blockers[key]

    def _shortages(
        self, repartition: NodeRepartition, *, use_own_node: bool = False
    ) -> list[SliceShortage]:
        """Who would fall short if this were cut besides all that is in work.

        `beside` counts on the free slices of its own node.
        """
        closed = self._closed_nodes() - {repartition.node.name}
        supply = self._capacity.supply(closed if use_own_node else {*closed, repartition.node.name})
        return self._capacity.shortages(self._displaced() | repartition.pods, supply)

    def _needs_surge(self, repartition: NodeRepartition) -> bool:
        """Whether the replacements have room on the same node alone, and surely get that."""
        return bool(self._shortages(repartition)) and self._fits_on_node(repartition)

    def _fits_on_node(self, repartition: NodeRepartition) -> bool:
        """They surely get it where none of them can take a slice that goes."""
        node = repartition.node
        if not (
            self._capabilities.knows_pods and node.reports_pods and self._capacity.free(node.name)
        ):
            return False
        profiles = {
            replacement_profile(
                service,
                [replica for replica in service.replicas if replica.pod in repartition.pods],
            )
            for service in self._capacity.affected_services(repartition.pods)
        }
        return not (
            profiles & repartition.unused_profiles
            or self._shortages(repartition, use_own_node=True)
        )

    def _count_downtime(self, repartition: NodeRepartition) -> int:
        return sum(
            service.allows_downtime
            for service in self._capacity.affected_services(repartition.pods)
        )

    # Who leaves

    def _displaced(self) -> frozenset[Ref]:
        return frozenset[Ref]().union(
            *(active.repartition.pods for active in self._active.values())
        )

    def _draining(self, displaced: frozenset[Ref], wrong_profile: frozenset[Ref]) -> frozenset[Ref]:
        """Those of a unit leave only once its node takes no new ones."""
        unit_pods = self._displaced()
        ready, overdue = set[Ref](), set[Ref]()
        for active in self._active.values():
            if active.repartition.node.tainted:
                ready |= active.repartition.pods
                if self._at - active.unit.since >= REPLACEMENT_TIMEOUT:
                    overdue |= active.repartition.pods
        mismatched_pods = frozenset[Ref]().union(
            *(self._repartition(goal, goal.mismatched).pods for goal in self._goals.values())
        )
        return pods_to_drain(
            self._capacity,
            displaced,
            self._capacity.supply(self._closed_nodes()),
            ready=ready | (wrong_profile - unit_pods),
            on_removed_slices=unit_pods | mismatched_pods if mismatched_pods else displaced,
            overdue=overdue,
        )

    # What is said

    def _with_message(
        self, active: _ActiveUnit, draining: Collection[Ref], evictions: Collection[Ref]
    ) -> Unit:
        problem = active.problem.message if active.problem else ""
        message = problem or (
            surge_message(active.repartition)
            if active.surging
            else wait_message(active.unit, active.repartition, draining, evictions)
        )
        return active.unit.model_copy(update={"message": truncate(message)})

    def _verdict(
        self, units: Sequence[Unit], progress: str, closed: str | None
    ) -> StatusVerdict[LayoutReady]:
        problem = next((active.problem for active in self._active.values() if active.problem), None)
        if problem is not None:
            return StatusVerdict(problem.reason, f"{problem.message}; {progress}")
        if units:
            return StatusVerdict(
                LayoutReady.REPARTITIONING, f"{progress_message(units)}; {progress}"
            )
        if closed and any(goal.mismatched for goal in self._goals.values()):
            return StatusVerdict(LayoutReady.OUTSIDE_MAINTENANCE_WINDOW, f"{closed}; {progress}")
        if self._blocked:
            first = min(self._blocked, key=lambda verdict: (verdict.reason.value, verdict.message))
            return StatusVerdict(first.reason, f"{first.message}; {progress}")
        return StatusVerdict(LayoutReady.AS_PLANNED, progress)
