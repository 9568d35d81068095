"""Carry out a planned layout unit by unit, while every service keeps its minimum capacity.

A unit is some GPUs of one node. Its phases:

1. Drain: a taint keeps new pods off the node. Every pod on a slice that goes is displaced: it is
   replaced elsewhere first, then takes no new requests, and is evicted after its last one.
2. Partition: nothing holds the slices any more, and the backend is asked for the new layout.
3. Verify: the GPUs have the layout, and the node has to offer the new slices to pods.

Then the taint goes and the next unit begins (`new_units`). Where every unit waits for a slice that
only another unit would free, unused GPUs get a temporary layout.

The units in the pool's status are the only memory. They are written before anything else, and every
cycle compares them with what is observed, so each write may be lost or repeated.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tessera.api.mig import Mig, MigPlan, MigStatus, Phase, Unit
from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.domain.mig_backends.backend import BackendRequest, GeometryBackend
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.observed.snapshot import Pod
from tessera.domain.repartition import messages
from tessera.domain.repartition.actions import PoolActions, PoolService
from tessera.domain.repartition.capacity import PoolCapacity
from tessera.domain.repartition.completion import unfinished
from tessera.domain.repartition.evictions import (
    BlockedEviction,
    displaced_by_profile,
    needs_extra_replica,
    pods_to_drain,
    wrong_profile_pods,
)
from tessera.domain.repartition.goals import NodeGoal, node_goals
from tessera.domain.repartition.new_units import NewUnits
from tessera.domain.repartition.rollout_state import ActiveUnit, RolloutState
from tessera.domain.repartition.units import NodeRepartition, node_blocker, plan_blocker
from tessera.domain.repartition.window import closed_reason

# Attempts of a backend to give one unit its layout.
MAX_ATTEMPTS = 5
# Replicas that a unit tells to leave for each of its slices, before it surges no more.
MAX_REPLACEMENTS = 3
# A pod that the scheduler bound before it saw the taint is observed within this time.
SETTLE_PERIOD = timedelta(seconds=5)
# How long a unit waits for replacements. After that its services may go down to minReplicas, and a
# unit whose free slices were taken by other pods is dropped.
REPLACEMENT_TIMEOUT = timedelta(minutes=10)
# After that a unit whose replacements are not scheduled says so, and waits on.
PLACEMENT_TIMEOUT = timedelta(minutes=3)

# After a pod ended, the agent still reports it for a moment.
_TRANSIENT = frozenset(
    {LayoutReady.UNMANAGED_POD, LayoutReady.GPU_IN_USE, LayoutReady.REPARTITIONING}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutInputs:
    """Everything that a rollout decides from."""

    pool: str
    mig: Mig
    status: MigStatus
    """The status as it was written last."""
    nodes: Sequence[MigNode]
    services: Sequence[PoolService]
    backend: GeometryBackend
    own_pods: Collection[Ref] = field(compare=False)
    """Pods that Tessera created; no other pod is ever moved."""
    device_pods: Mapping[str, Sequence[Pod]] = field(default_factory=dict)
    """All pods that hold devices, by node, also those of other controllers."""
    blocked_evictions: Mapping[Ref, BlockedEviction] = field(default_factory=dict)
    at: datetime = field(compare=False)


def advance_rollout(inputs: RolloutInputs) -> PoolActions:
    """Return what this cycle does for the plan in the pool's status.

    The returned status has to be written before the other actions are carried out.
    """
    plan = inputs.status.target
    if plan is None:
        message = f"AcceleratorPool/{inputs.pool} has no layout plan yet"
        verdict = StatusVerdict(LayoutReady.PLANNING, message)
        status = inputs.status.model_copy(update={"units": ()})
        displaced, draining = displaced_by_profile(inputs.services)
        return PoolActions(verdict=verdict, status=status, displaced=displaced, draining=draining)
    return _RolloutCycle(inputs, plan).decide()


class _RolloutCycle:
    """The decisions of one cycle for one pool."""

    def __init__(self, inputs: RolloutInputs, plan: MigPlan) -> None:
        self._mig, self._status, self._at = inputs.mig, inputs.status, inputs.at
        self._backend, self._plan = inputs.backend, plan
        self._blocked_evictions = inputs.blocked_evictions
        self._units = sorted(inputs.status.units, key=lambda unit: unit.node)
        nodes, capabilities = inputs.nodes, inputs.backend.capabilities
        self._state = RolloutState(
            goals=node_goals(plan, self._units, nodes, pinned=capabilities.pinned_starts),
            capacity=PoolCapacity(nodes, inputs.services, inputs.device_pods),
            capabilities=capabilities,
            own_pods=frozenset(inputs.own_pods),
            at=inputs.at,
        )
        self._new_units = NewUnits(state=self._state, max_concurrent=inputs.mig.max_concurrent)
        self._requests: dict[str, BackendRequest] = {}

    def decide(self) -> PoolActions:
        """Continue the units of the status, begin others, and return all actions for the pool."""
        # Units under way go first and even outside the maintenance window: a drained node that
        # waits for the window would be lost to its services.
        for unit in self._units:
            if (continued := self._continue_unit(unit)) is None:
                continue
            if continued.unit.phase == "Canceled":
                self._state.canceled[unit.node] = continued.unit
            else:
                self._state.active[unit.node] = continued
        window_closed = closed_reason(self._mig.maintenance_window, self._at)
        self._new_units.start(window_closed)
        self._reassert()
        wrong_profile = wrong_profile_pods(self._state.capacity.services)
        displaced = self._state.unit_pods() | wrong_profile
        draining = self._draining(displaced, wrong_profile)
        replicas = self._state.capacity.replicas
        # Draining is read back from the pod before it is evicted: a pod marked in this cycle
        # may not have stopped yet.
        evictions = {
            pod: replicas[pod].uid
            for pod in sorted(draining)
            if replicas[pod].draining and replicas[pod].drained and not replicas[pod].terminating
        }
        units = tuple(
            self._with_message(active, draining, evictions)
            for _, active in sorted(self._state.active.items())
        )
        all_units = tuple(
            sorted((*units, *self._state.canceled.values()), key=lambda unit: unit.node)
        )
        done = sum(self._count_done(goal) for goal in self._state.goals.values())
        total = sum(len(goal.desired) + len(goal.infeasible) for goal in self._state.goals.values())
        changes = {"units": all_units, "done": done, "total": total}
        progress = f"planned layout on {done} of {counted(total, 'GPU')}"
        return PoolActions(
            verdict=self._verdict(units, progress, window_closed),
            status=self._status.model_copy(update=changes),
            tainted_nodes=self._state.nodes_to_taint(),
            displaced=frozenset(pod for pod in displaced if needs_extra_replica(replicas[pod])),
            surge_replicas=self._state.capacity.surge_replicas(
                self._state.unit_pods(), self._state.capacity.supply(self._state.nodes_to_taint())
            ),
            draining=draining,
            evictions=evictions,
            deletions={pod: replicas[pod].uid for pod in sorted(draining & self._expired_pods())},
            requests=self._requests,
        )

    def _count_done(self, goal: NodeGoal) -> int:
        pending = {*goal.mismatched, *goal.missing, *goal.temporary}
        return sum(gpu not in pending for gpu in goal.desired)

    # Units under way

    def _continue_unit(self, unit: Unit) -> ActiveUnit | None:
        """Return the unit in its next state, None when it is complete or dropped."""
        goal = self._state.goals.get(unit.node)
        if goal is None:
            return None  # the node left the pool or the plan
        gpus = tuple(gpu for gpu in unit.gpus if gpu in goal.desired)
        mismatched = tuple(gpu for gpu in gpus if gpu in goal.mismatched)
        if not gpus:
            return None
        if unit.phase == "Canceled":
            waits = mismatched and self._at - unit.since < self._mig.drain_deadline
            return (
                ActiveUnit(unit=unit, repartition=self._state.repartition(goal, ()))
                if waits
                else None
            )
        if unit.phase in {"Partitioning", "Verifying"}:
            return self._partition(unit, goal, gpus, mismatched)
        return self._drain(unit, goal, mismatched) if mismatched else self._finish(unit, goal)

    def _finish(self, unit: Unit, goal: NodeGoal) -> ActiveUnit | None:
        """Complete the unit, unless its layout is temporary: that one stays until it is ended."""
        if not unit.temporary_layout:
            return None
        since = unit.since if unit.phase == "Temporary" else self._at
        temporary = unit.model_copy(update={"phase": "Temporary", "since": since})
        return ActiveUnit(unit=temporary, repartition=self._state.repartition(goal, ()))

    def _drain(self, unit: Unit, goal: NodeGoal, gpus: tuple[int, ...]) -> ActiveUnit | None:
        """Wait until nothing is on the slices that go, then ask the backend.

        A unit that cannot go on is dropped only while none of its pods drains: pods that drain
        are lost to their service already.
        """
        repartition = self._state.repartition(goal, gpus)
        draining = any(self._state.capacity.replicas[pod].draining for pod in repartition.pods)
        since = self._at if unit.phase != "Draining" else unit.since
        updated = unit.model_copy(update={"gpus": gpus, "phase": "Draining", "since": since})
        if self._mig.on_deadline == "Cancel" and self._is_overdue(updated):
            return ActiveUnit(unit=self._cancel(updated), repartition=repartition)
        configs = self._backend.request(
            repartition.node, repartition.desired, unit.attempt, self._at
        ).configs
        if configs:
            # The kubelet takes up to a minute to update a mounted ConfigMap: write it while the
            # pods drain.
            self._requests[unit.node] = BackendRequest(configs=configs)
        overdue = self._at - since >= REPLACEMENT_TIMEOUT
        if problem := self._state.find_blocker(goal, gpus):
            transient = problem.reason in _TRANSIENT and not overdue
            active = ActiveUnit(
                unit=updated, repartition=repartition, problem=None if transient else problem
            )
            return active if draining or transient else None
        # Without the taint, or just after it, a pod may still be bound to one of these slices.
        if repartition.free and goal.node.tainted and self._at - since >= SETTLE_PERIOD:
            return self._request(updated, repartition, "Partitioning")
        if self._is_overdue(updated):
            return ActiveUnit(unit=updated, repartition=repartition)
        # Replacements that start on the slices to remove would be replaced without end.
        repeated = self._is_repeated(unit, repartition)
        surging = not (draining or repeated) and self._state.needs_surge(repartition)
        # The slices that were free for the replacements when the unit began went to other pods.
        if (
            overdue
            and not (draining or surging)
            and (repeated or self._state.shortages(repartition))
        ):
            return None
        problem = messages.repeated_replacement(updated, repartition) if repeated else None
        if problem is None and not draining and self._at - since >= PLACEMENT_TIMEOUT:
            problem = self._unplaced_replacements(repartition)
        return ActiveUnit(unit=updated, repartition=repartition, surging=surging, problem=problem)

    def _is_overdue(self, unit: Unit) -> bool:
        """Return whether the time is over in which the slices of the unit had to become free."""
        return self._at - unit.since >= self._mig.drain_deadline

    def _cancel(self, unit: Unit) -> Unit:
        """Return the unit that leaves its pods where they are, and its node to new ones."""
        message = messages.canceled_message(unit, self._mig.drain_deadline, self._at)
        return unit.model_copy(update={"phase": "Canceled", "since": self._at, "message": message})

    def _unplaced_replacements(
        self, repartition: NodeRepartition
    ) -> StatusVerdict[LayoutReady] | None:
        services = self._state.capacity.affected_services(repartition.pods)
        pods = [
            f"Pod/{replica.pod}"
            for service in services
            for replica in service.replicas
            if replica.node is None and not replica.draining
        ]
        return messages.unplaced_replacements(repartition, sorted(pods)) if pods else None

    @staticmethod
    def _is_repeated(unit: Unit, repartition: NodeRepartition) -> bool:
        return unit.replacements >= MAX_REPLACEMENTS * repartition.slices > 0

    def _partition(
        self, unit: Unit, goal: NodeGoal, gpus: tuple[int, ...], mismatched: tuple[int, ...]
    ) -> ActiveUnit | None:
        """Repeat the request to the backend until the node offers the layout."""
        node = goal.node
        repartition = self._state.repartition(goal, mismatched)
        updated = unit.model_copy(update={"gpus": gpus})
        # A pod that tolerates the taint may have come: it has to be drained first.
        if not repartition.free:
            draining = {"phase": "Draining", "since": self._at}
            return ActiveUnit(unit=updated.model_copy(update=draining), repartition=repartition)
        # GPUs of the unit that have their layout already stay in the request: equal input gives an
        # equal request, which the backend recognizes.
        desired = {gpu: goal.desired[gpu] for gpu in gpus}
        requested = replace(repartition, desired=desired)
        status = self._backend.status(node, desired, unit.attempt, unit.since, self._at)
        if status.done:
            return self._finish(unit, goal)
        phase: Phase = unit.phase if mismatched or goal.missing else "Verifying"
        if node.unavailable:
            return replace(self._request(updated, requested, phase), problem=node_blocker(goal))
        if status.retry and unit.attempt < MAX_ATTEMPTS:
            next_attempt = {"attempt": unit.attempt + 1, "since": self._at}
            return self._request(updated.model_copy(update=next_attempt), requested, "Partitioning")
        failure = messages.backend_failed(node.name, gpus, MAX_ATTEMPTS) if status.retry else None
        return replace(self._request(updated, requested, phase), problem=status.problem or failure)

    def _request(self, unit: Unit, repartition: NodeRepartition, phase: Phase) -> ActiveUnit:
        since = unit.since if unit.phase == phase else self._at
        self._requests[unit.node] = self._backend.request(
            repartition.node, repartition.desired, unit.attempt, self._at
        )
        update = {"phase": phase, "since": since}
        return ActiveUnit(unit=unit.model_copy(update=update), repartition=repartition)

    def _reassert(self) -> None:
        """Repeat the request for nodes that have their layout, where labels or objects differ.

        After a reboot the backend restores a layout from what these say.
        """
        for name, goal in self._state.goals.items():
            if (
                name in self._state.active
                or goal.mismatched
                or node_blocker(goal)
                or plan_blocker(goal)
            ):
                continue
            if not self._backend.status(goal.node, goal.desired, 1, self._plan.at, self._at).done:
                self._requests[name] = self._backend.request(goal.node, goal.desired, 1, self._at)

    # Pods that leave

    def _expired_pods(self) -> frozenset[Ref]:
        """Return the pods that an active unit has waited for as long as it may.

        A pod that somebody deleted may have the grace period of its whole drain timeout.
        """
        replicas = self._state.capacity.replicas
        return frozenset(
            pod
            for active in self._state.active.values()
            for pod in active.repartition.pods
            if replicas[pod].drain_expired
            or (
                self._is_overdue(active.unit)
                and (replicas[pod].terminating or pod in self._blocked_evictions)
            )
        )

    def _draining(self, displaced: frozenset[Ref], wrong_profile: frozenset[Ref]) -> frozenset[Ref]:
        """Return the pods that take no new requests from now on."""
        unit_pods = self._state.unit_pods()
        ready, overdue, expired = set[Ref](), set[Ref](), set[Ref]()
        for active in self._state.active.values():
            # Before the taint is observed, a replacement could be bound to the very slice that its
            # predecessor leaves.
            if active.repartition.node.tainted and not self._is_repeated(
                active.unit, active.repartition
            ):
                ready |= active.repartition.pods
                if self._at - active.unit.since >= REPLACEMENT_TIMEOUT:
                    overdue |= active.repartition.pods
                if self._is_overdue(active.unit):
                    expired |= active.repartition.pods
        # Pods of GPUs whose unit has not begun lose their slices as well, later.
        mismatched_pods = frozenset[Ref]().union(
            *(
                self._state.repartition(goal, goal.mismatched).pods
                for goal in self._state.goals.values()
            )
        )
        returned = {
            pod for pod, blocked in self._blocked_evictions.items() if blocked.returns(self._at)
        }
        leaving = pods_to_drain(
            self._state.capacity,
            displaced,
            self._state.capacity.supply(self._state.nodes_to_taint()),
            # A pod of another profile outside every unit waits for no taint: its slice is taken
            # over as it is.
            ready=ready | (wrong_profile - unit_pods),
            # With every layout in place, only pods of another profile are left; none goes last.
            on_removed_slices=unit_pods | mismatched_pods if mismatched_pods else displaced,
            overdue=overdue,
        )
        # An expired pod waits for no replacement any more, even if its service falls below its
        # minimum.
        return frozenset(expired) | (leaving - returned)

    # Messages

    def _with_message(
        self, active: ActiveUnit, draining: Collection[Ref], evictions: Collection[Ref]
    ) -> Unit:
        problem = active.problem.message if active.problem else ""
        message = problem or (
            messages.surge_message(active.repartition)
            if active.surging
            else messages.wait_message(active.unit, active.repartition, draining, evictions)
        )
        leaving = sum(
            pod in draining and not self._state.capacity.replicas[pod].draining
            for pod in active.repartition.pods
        )
        update = {
            "message": messages.truncate(message),
            "replacements": active.unit.replacements + leaving,
        }
        return active.unit.model_copy(update=update)

    def _verdict(
        self, units: Sequence[Unit], progress: str, window_closed: str | None
    ) -> StatusVerdict[LayoutReady]:
        problem = next(
            (active.problem for active in self._state.active.values() if active.problem), None
        )
        if problem is not None:
            return StatusVerdict(problem.reason, f"{problem.message}; {progress}")
        if units:
            message = f"{messages.progress_message(units)}; {progress}"
            return StatusVerdict(LayoutReady.REPARTITIONING, message)
        if window_closed and any(goal.mismatched for goal in self._state.goals.values()):
            return StatusVerdict(
                LayoutReady.OUTSIDE_MAINTENANCE_WINDOW, f"{window_closed}; {progress}"
            )
        if self._new_units.blocked:
            # Any order would do; the smallest keeps the message stable from cycle to cycle.
            first = min(
                self._new_units.blocked, key=lambda verdict: (verdict.reason.value, verdict.message)
            )
            return StatusVerdict(first.reason, f"{first.message}; {progress}")
        verdict = unfinished(
            self._plan, self._state.goals, self._state.capacity, self._state.own_pods
        )
        return verdict or StatusVerdict(LayoutReady.AS_PLANNED, progress)
