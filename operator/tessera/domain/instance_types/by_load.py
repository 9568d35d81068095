"""What the recorded load of a service says of its instance type, for the placement."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
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
# A type of which a replica is not ready so long after a change to it is left again.
_PATIENCE = timedelta(hours=1)
# Spans of the last hour.
_RECENT = timedelta(hours=1) // SPAN
_NOT_GRANTED = frozenset({ScalingReason.BUDGET_EXHAUSTED, ScalingReason.GPU_QUOTA_EXCEEDED})
_PAID = frozenset(each for each in WithinBudget if each.is_true) | {WithinBudget.NO_BUDGET}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedService:
    """A service whose load is recorded, and what it runs."""

    service: ObservedService
    spec: InferenceServiceSpec
    workload: Workload
    """The Deployment of the variant that it is placed on."""
    history: LoadHistory | None
    """None until it is read, as after the operator began."""
    start: timedelta
    """The expected time until a replica is ready."""
    slowness: Mapping[str, float] = field(default_factory=dict)
    """The measured time of a step divided by the predicted one, by variant."""
    is_quiet: bool
    """Nothing else replaces replicas, and all that are wanted are ready."""
    pods: Sequence[Pod] = ()
    workloads: Sequence[Workload] = ()
    left_at: Mapping[str, datetime] = field(default_factory=dict)
    """When a change to a variant was taken back, as its replicas were not ready."""
    at: datetime

    @property
    def until(self) -> datetime:
        """Return when time alone may change the type."""
        created = self.workload.created
        if self.history is None:
            return FOREVER
        moments = [left + REST for left in self.left_at.values()]
        if created is not None:
            moments.append(created + _PATIENCE)
        return min((each for each in moments if each > self.at), default=FOREVER)

    def type_among(self, choices: Sequence[HardwareChoice]) -> TypeByLoad:
        """Return the instance type by the load, among those of one pool in one precision."""
        if self.history is None:
            return self._begun_among(choices)
        created = self.workload.created
        running = RunningType(
            variant=self.workload.variant,
            since=created if created is not None and self._may_be_changed(created) else None,
            start=timedelta(minutes=-(-self.start // timedelta(minutes=1))),
            slowness=self.slowness,
        )
        decision = _decided(
            self.service.ref,
            self.spec,
            tuple(_without_room(choice) for choice in choices),
            self.history,
            running,
        )
        worth = _worth(decision, self.workload.variant)
        if worth and (serving := self._serving_instead(choices)):
            variant, replicas = serving
            return TypeByLoad(variant, decision.message, worth, replicas, takes_back=True)
        if decision.change_to is None:
            return TypeByLoad(None, decision.message, worth)
        to = decision.change_to.variant
        left = self.left_at.get(to)
        if left is not None and self.at < left + REST:
            message = (
                f"{decision.message}; {to} was left again before its replicas were ready, and a "
                f"change waits until {moment_text(left + REST)}"
            )
            return TypeByLoad(None, message, worth)
        if begun := sum(each.replicas for each in self.workloads if each.variant == to):
            replicas = max(begun, math.ceil(self.workload.replicas / worth[to]))
            return TypeByLoad(to, decision.message, worth, replicas)
        return TypeByLoad(to if self.is_quiet else None, decision.message, worth)

    def _begun_among(self, choices: Sequence[HardwareChoice]) -> TypeByLoad:
        """Return the type that a change began to, which the status may not name yet.

        Until the load is read, a replica of each type serves what is predicted.
        """
        capacities = {choice.variant: capacity_of(choice) for choice in choices}
        own, created = capacities[self.workload.variant], self.workload.created
        newer = [
            each
            for each in self.workloads
            if each.replicas
            and each.variant in capacities
            and created is not None
            and each.created is not None
            and each.created > created
        ]
        begun = max(newer, key=lambda each: (each.created, each.variant), default=None)
        if begun is None or begun.variant == self.workload.variant:
            return TypeByLoad(None, "", {})
        worth = {variant: capacity / own for variant, capacity in capacities.items()}
        replicas = max(begun.replicas, math.ceil(self.workload.replicas / worth[begun.variant]))
        message = f"the change to {begun.variant} goes on until the recorded load is read"
        return TypeByLoad(begun.variant, message, worth, replicas)

    def _serving_instead(self, choices: Sequence[HardwareChoice]) -> tuple[str, int] | None:
        """Return the type that serves on, and its replicas, where the change from it does not end.

        No replica of the present type is ready within an hour, or no budget pays for any.
        """
        created, variant = self.workload.created, self.workload.variant
        ready = [pod for pod in self.pods if pod.takes_requests and not pod.is_stopping]
        scaling = self.service.status.scaling
        is_refused = scaling is not None and scaling.reason in _NOT_GRANTED
        is_due = created is not None and self.at - created >= _PATIENCE
        if not is_due and (self.workload.replicas or not is_refused):
            return None
        if any(pod.variant == variant for pod in ready):
            return None
        others = Counter(pod.variant for pod in ready if pod.variant != variant)
        types = sorted(each.variant for each in choices if others[each.variant])
        most = max(types, key=lambda each: others[each], default=None)
        return (most, others[most]) if most is not None else None

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
