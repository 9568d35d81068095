"""What is scaled: the scaling spec of a service, and the hardware of its replicas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.text import counted
from tessera.api.variant_status import VariantStatus
from tessera.domain.observed.snapshot import ObservedService, Pod
from tessera.domain.perf.engine_terms import engine_terms
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import pooling_task
from tessera.domain.scaling.load import ServiceReadings
from tessera.domain.schedules import BoundsSchedule
from tessera.domain.sizing import pooling
from tessera.domain.sizing.scheduler_limits import SchedulerLimits, longest_reading

# Ratio of a metric to its target within which the number stays, as for the HorizontalPodAutoscaler.
TOLERANCE = 0.1
# Share of `maxNumSeqs` that requests may fill on the remaining replicas. A replica with twice its
# share of the connections then runs all of its requests. Steps slow down as they fill: where a full
# step takes three times as long as an empty one, the arrivals that fill this share of the remaining
# half of the replicas fill them completely.
HEADROOM = 0.5
# Below it any waiting request adds replicas, unless more than nine serve it.
_LEAST_QUEUE_TARGET = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedVariant:
    """A service on its hardware, from which a policy reads what a replica can carry."""

    service: ObservedService
    spec: InferenceServiceSpec
    choice: HardwareChoice
    pods: Sequence[Pod]
    """The replicas on this hardware."""
    other_pods: Sequence[Pod] = ()
    """Those of the other variants of the service."""
    readings: ServiceReadings


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleTarget:
    """The scaling spec of a service, with what its class and its hardware add."""

    spec: ScalingSpec
    queue_target: float
    """Waiting requests per replica above which replicas are added."""
    queue_source: str = ""
    """Where that comes from, as a clause of a message; empty if the spec has it."""
    max_num_seqs: int
    """Maximum concurrent requests per replica."""
    bounds_source: str = "spec.scaling."
    """Where the bounds stand, with which messages begin that name one."""
    variant: ObservedVariant | None = None
    """None where the number is not decided, as for an explanation."""
    largest_share: float = 1.0
    """What a replica of the largest variant serves, in replicas of the unit."""

    @property
    def most(self) -> int:
        """Return the replicas of the unit that `maxReplicas` pods serve at most."""
        return math.floor(self.spec.max_replicas * self.largest_share)

    @property
    def step(self) -> int:
        """Return the replicas of the unit that `scaleUp.pods` serve at most."""
        return math.floor(self.spec.scale_up.pods * self.largest_share)

    def counted(self, replicas: int) -> str:
        """Return a count of replicas of the unit, which are not pods where variants are unequal."""
        unit = " of the smallest variant" if self.largest_share > 1 else ""
        return f"{counted(replicas, 'replica')}{unit}"

    def clamp(self, replicas: int) -> int:
        """Return the count within the bounds of a service in use."""
        return min(max(replicas, self.spec.floor), self.most)

    @property
    def replica_requests(self) -> float:
        """Return how many requests a replica is planned for."""
        return self.max_num_seqs * HEADROOM

    @property
    def longest_window(self) -> timedelta:
        return max(
            self.spec.scale_up.stabilization_window, self.spec.scale_down.stabilization_window
        )


def target_of(
    spec: InferenceServiceSpec,
    limits: SchedulerLimits | None,
    max_model_len: int,
    schedule: BoundsSchedule | None = None,
    variant: ObservedVariant | None = None,
    largest_share: float = 1.0,
) -> ScaleTarget:
    """Return what policies need of a spec, and of the limits of its replicas if it is placed."""
    queue, source = spec.scaling.queue, ""
    target = queue_target(spec, limits, max_model_len) if limits is not None else queue.target
    if target < queue.target:
        source = ", which are served within spec.slo.ttftP95"
    elif "target" not in queue.model_fields_set:
        source = f", the default of class {spec.service_class}"
    return ScaleTarget(
        spec=spec.scaling,
        queue_target=target,
        queue_source=source,
        max_num_seqs=places(spec, limits) if limits is not None else 0,
        bounds_source=f"{schedule.status.current.schedule}: "
        if schedule is not None
        else "spec.scaling.",
        variant=variant,
        largest_share=largest_share,
    )


def places(spec: InferenceServiceSpec, limits: SchedulerLimits) -> int:
    """Return the requests that run at once; of a pooling model those that fill a step."""
    if pooling_task(spec) is None:
        return limits.max_num_seqs
    return pooling.texts_per_step(limits, spec.context.typical_input_tokens)


def reported_target(spec: InferenceServiceSpec, variant: VariantStatus) -> ScaleTarget:
    """Return what policies need of a spec with known shapes, and of replicas as the status
    describes them."""
    limits = SchedulerLimits(
        max_num_seqs=variant.max_num_seqs,
        max_num_batched_tokens=variant.max_num_batched_tokens,
        tokens_per_second=variant.input_tokens_per_second or variant.tokens_per_second,
        decode_tokens=1 + engine_terms(spec.engine).draft_tokens,
    )
    return target_of(spec, limits, variant.max_model_len)


def queue_target(spec: InferenceServiceSpec, limits: SchedulerLimits, max_model_len: int) -> float:
    """Return the waiting requests per full replica above which replicas are added.

    That is the target of the spec. Without one it is that of the class, but at most what a replica
    answers in time: while nothing is added, the last request that waits gets its first token within
    the TTFT objective.
    """
    queue, context = spec.scaling.queue, spec.context
    if "target" in queue.model_fields_set:
        return queue.target
    answer = 0 if pooling_task(spec) is not None else context.typical_output_tokens
    prompt, answer = within_context(max_model_len, context.typical_input_tokens, answer)
    seconds = queue_time(spec, prompt, limits).total_seconds()
    served_in_time = seconds * limits.tokens_per_second / (answer or prompt)
    return min(queue.target, max(_LEAST_QUEUE_TARGET, served_in_time / (1 + TOLERANCE)))


def queue_time(spec: InferenceServiceSpec, prompt: int, limits: SchedulerLimits) -> timedelta:
    reading = longest_reading(prompt, spec.slo.itl_p95, limits)
    if pooling_task(spec) is not None:
        reading = pooling.longest_reading(limits, prompt)
    return max(timedelta(), spec.slo.ttft_p95 - reading)


def within_context(max_model_len: int, prompt: int, answer: int) -> tuple[int, int]:
    """Return the lengths of a request within the context; an answer of 0 tokens stays so."""
    answer = answer and max(1, min(answer, max_model_len - 1))
    return max(1, min(prompt, max_model_len - answer)), answer
