"""What the recorded load of a service says of its instance type, for the placement."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tessera.api.budget_reasons import WithinBudget
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import ScalingReason
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.incremental import FOREVER, reused_per_object
from tessera.domain.instance_types.change import (
    REST,
    RunningType,
    TypeDecision,
    decide_type,
    moment_text,
)
from tessera.domain.instance_types.rank import MIN_HISTORY
from tessera.domain.observed.load_history import SPAN, LoadHistory
from tessera.domain.observed.snapshot import ObservedService, Pod, Ref, Workload
from tessera.domain.perf.engine_terms import engine_terms
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import pooling_task, shape_of
from tessera.domain.placement.placement import TypeByLoad
from tessera.domain.placement.variant_cost import capacity_of

# Ratios of measured speeds that differ by less say the same.
_SPEED_STEPS = 20
# A change that takes so much longer than the start of a replica is taken back.
_PATIENCE = timedelta(hours=1)
# Spans of the last hour.
_RECENT = timedelta(hours=1) // SPAN
_NOT_GRANTED = frozenset({ScalingReason.BUDGET_EXHAUSTED, ScalingReason.GPU_QUOTA_EXCEEDED})
_PAID = frozenset(each for each in WithinBudget if each.is_true) | {WithinBudget.NO_BUDGET}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedService:
    """A service whose load may decide its instance type, and what it runs."""

    service: ObservedService
    spec: InferenceServiceSpec
    workload: Workload
    """The Deployment of the variant that the status names."""
    history: LoadHistory | None
    """None until it is read, as after the operator began, and where nothing follows it."""
    start: timedelta
    """The expected time until a replica is ready."""
    slowness: Mapping[str, float] = field(default_factory=dict)
    """The measured time of a step divided by the predicted one, by variant."""
    is_quiet: bool
    """Nothing else replaces replicas, and all that are wanted are ready."""
    pods: Sequence[Pod] = ()
    workloads: Sequence[Workload] = ()
    left_at: Mapping[str, datetime] = field(default_factory=dict)
    """When a change to a variant was taken back, as it did not end."""
    at: datetime

    @property
    def until(self) -> datetime:
        """Return when time alone may change the type."""
        moments = [left + REST for name, left in self.left_at.items() if self._rests(name)]
        own = self.workload.variant
        if any(each.replicas and each.variant != own for each in self.workloads):
            moments += [self._progress(workload) + self._patience for workload in self.workloads]
        return min((moment for moment in moments if moment > self.at), default=FOREVER)

    def type_among(self, choices: Sequence[HardwareChoice]) -> TypeByLoad:
        """Return the instance type of a service, among those of one pool in one precision."""
        decision = self._decision(choices)
        begun = self._begun(choices)
        if len(begun) > 1:
            return self._under_way(begun, choices, decision)
        worth = _worth(decision, self.workload.variant)
        if decision.change_to is None:
            return TypeByLoad(None, decision.message, worth)
        to = decision.change_to.variant
        if self._rests(to):
            message = (
                f"{decision.message}; {to} was left again before its replicas were ready, and a "
                f"change waits until {moment_text(self.left_at[to] + REST)}"
            )
            return TypeByLoad(None, message, worth)
        # A service that sleeps is not woken for it.
        # An earlier Deployment of the type would be older than that of the one that runs.
        is_gone = not any(each.variant == to for each in self.workloads)
        is_ready = self.is_quiet and len(self.pods) > 0 and is_gone
        return TypeByLoad(to if is_ready else None, decision.message, worth)

    def _progress(self, workload: Workload) -> datetime:
        """Return when a replica of a variant got ready last, else when its Deployment was made."""
        pods = [pod for pod in self.pods if pod.variant == workload.variant]
        ready = [pod.ready_since for pod in pods if pod.ready_since is not None]
        return max([_created(workload), *ready])

    @property
    def _patience(self) -> timedelta:
        return _PATIENCE + self.start

    def _decision(self, choices: Sequence[HardwareChoice]) -> TypeDecision:
        """Return what the recorded load says."""
        if self.history is None:
            return TypeDecision()
        created = self.workload.created
        running = RunningType(
            variant=self.workload.variant,
            since=created if created is not None and self._may_be_changed(created) else None,
            start=timedelta(minutes=-(-self.start // timedelta(minutes=1))),
            slowness=self.slowness,
        )
        without_room = tuple(_without_room(choice) for choice in choices)
        return _decided(self.service.ref, self.spec, without_room, self.history, running)

    def _begun(self, choices: Sequence[HardwareChoice]) -> Sequence[Workload]:
        """Return the newest Deployment of each type that has replicas, the oldest first.

        That which the status names is one of them, whatever replicas it has.
        """
        names = {choice.variant for choice in choices}
        newest = {
            each.variant: each
            for each in sorted(self.workloads, key=_created)
            if each.variant in names and (each.replicas or each.variant == self.workload.variant)
        }
        own = self.workload.variant
        return sorted(newest.values(), key=lambda each: (_created(each), each.variant == own))

    def _under_way(
        self, begun: Sequence[Workload], choices: Sequence[HardwareChoice], decision: TypeDecision
    ) -> TypeByLoad:
        """Return the type of a service that runs several.

        A change goes on to the newest one, whatever the status or the load says meanwhile. It is
        taken back where it does not end: no replica got ready for long, or no budget pays for any.
        """
        own, to = self.workload.variant, begun[-1]
        worth = _worth(decision, own) or _predicted_worth(choices, own)
        serving = Counter(
            pod.variant for pod in self.pods if pod.takes_requests and not pod.is_stopping
        )
        others = [workload.variant for workload in begun[:-1] if serving[workload.variant]]
        ends = self._progress(to) + self._patience <= self.at or self._is_refused(to)
        if others and (ends or self._rests(to.variant)):
            back = max(others, key=lambda variant: (serving[variant], variant))
            served = sum(worth[variant] * serving[variant] for variant in (*others, to.variant))
            replicas = math.ceil(served / worth[back]) if serving[to.variant] else serving[back]
            message = decision.message or f"the change to {to.variant} is taken back"
            return TypeByLoad(back, message, worth, replicas, left=to.variant)
        message = decision.message or f"the change to {to.variant} goes on"
        replicas = to.replicas
        if decision.message:
            replicas = max(replicas, math.ceil(self.workload.replicas / worth[to.variant]))
        return TypeByLoad(to.variant, message, worth, replicas)

    def _is_refused(self, workload: Workload) -> bool:
        """Return whether no budget pays for any replica of a Deployment."""
        scaling = self.service.status.scaling
        return not workload.replicas and scaling is not None and scaling.reason in _NOT_GRANTED

    def _rests(self, variant: str) -> bool:
        """Return whether a change to a variant was taken back less than a day ago."""
        left = self.left_at.get(variant)
        # A clock that was set back leaves moments that are far ahead.
        return left is not None and abs(self.at - left) < REST

    def _may_be_changed(self, created: datetime) -> bool:
        """Return whether a Deployment may be of a type that was changed to.

        None changes before so much of the service's own load is recorded.
        """
        return created - self.service.created >= MIN_HISTORY


def as_step(ratio: float) -> float:
    """Return a measured ratio in steps, so that types are not ranked again by each measurement."""
    return round(ratio * _SPEED_STEPS) / _SPEED_STEPS


def _worth(decision: TypeDecision, running: str) -> Mapping[str, float]:
    """Return how many replicas of the type that runs serve the last hour as one of each type."""
    pods = {cost.choice.variant: max(cost.pods[-_RECENT:]) for cost in decision.ranked}
    return {variant: max(1, pods[running]) / max(1, count) for variant, count in pods.items()}


def _predicted_worth(choices: Sequence[HardwareChoice], running: str) -> Mapping[str, float]:
    """Return how many replicas of the type that runs serve as much as one of each by prediction."""
    capacities = {choice.variant: capacity_of(choice) for choice in choices}
    return {variant: capacity / capacities[running] for variant, capacity in capacities.items()}


def _created(workload: Workload) -> datetime:
    return workload.created or datetime.min.replace(tzinfo=UTC)


def _without_room(choice: HardwareChoice) -> HardwareChoice:
    """Return a choice without what its price and speed do not depend on, and often changes."""
    offer = replace(
        choice.offer,
        replicas=0,
        startable=None,
        startable_replicas=0,
        preemptions_per_hour=Decimal(0),
        backoff_until=None,
    )
    return replace(choice, offer=offer)


@reused_per_object
def _decided(
    _ref: Ref,
    spec: InferenceServiceSpec,
    choices: Sequence[HardwareChoice],
    history: LoadHistory,
    running: RunningType,
) -> TypeDecision:
    """Return the decision, which is the same until the history, the spec or prices change."""
    shape = shape_of(spec)
    assert shape is not None  # noqa: S101 - hardware fits it
    return decide_type(spec, shape, choices, history, running)


def has_type_by_load(spec: InferenceServiceSpec) -> bool:
    """Return whether the load decides how many GPUs a replica has: replicas follow it, and nothing
    binds their number of GPUs."""
    terms = engine_terms(spec.engine)
    return (
        spec.scaling.mode == "Native"
        and spec.scaling.policy == "Capacity"
        and spec.scaling.paused is None
        and spec.fixed_replicas is None
        and pooling_task(spec) is None
        and terms.devices is None
        and terms.draft is None
    )


def is_quiet(
    status: InferenceServiceStatus, pods: Sequence[Pod], workloads: Sequence[Workload]
) -> bool:
    """Return whether a service may change its type: no version is tried, its budget pays for what
    it wants, and all of its replicas are ready and stay."""
    tenant = status.tenant
    return (
        status.candidate is None
        and (tenant is None or tenant.reason in _PAID)
        and all(pod.takes_requests and not pod.is_stopping for pod in pods)
        and len(pods) == sum(workload.replicas for workload in workloads)
    )
