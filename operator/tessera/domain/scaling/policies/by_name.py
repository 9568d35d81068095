"""The policies by the names that `spec.scaling.policy` has for them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from tessera.api.inference_service import ScalingPolicyName
from tessera.domain.scaling.policies import queue_and_activity
from tessera.domain.scaling.policies.capacity import policy as capacity
from tessera.domain.scaling.state import ScaleDecision, ScalingHistory, ServiceLoad
from tessera.domain.scaling.target import ScaleTarget


class ScalingPolicy(Protocol):
    """Decides how many replicas a service has; a module of `policies` is one."""

    def decide(
        self, target: ScaleTarget, load: ServiceLoad, history: ScalingHistory, /
    ) -> ScaleDecision:
        """Return the number with its reason; the history comes back with the next load."""
        ...

    def restore(
        self, target: ScaleTarget, readings: Sequence[ServiceLoad], history: ScalingHistory, /
    ) -> ScalingHistory:
        """Return the history of a new leader, from past readings, oldest first."""
        ...

    def numbers(
        self, target: ScaleTarget, load: ServiceLoad, decision: ScaleDecision, /
    ) -> tuple[tuple[str, str], ...]:
        """Return names and values for people: what decided, in the order of an explanation."""
        ...

    def would_change(
        self, target: ScaleTarget, load: ServiceLoad, decision: ScaleDecision, /
    ) -> Iterator[str]:
        """Yield loads and changes of the spec that would change the decision."""
        ...


POLICIES: Mapping[ScalingPolicyName, ScalingPolicy] = {
    "QueueAndActivity": queue_and_activity,
    "Capacity": capacity,
}


def restore_history(
    target: ScaleTarget, readings: Sequence[ServiceLoad], history: ScalingHistory
) -> ScalingHistory:
    """Return the history of a new leader under the policy of the spec."""
    return POLICIES[target.spec.policy].restore(target, readings, history)
