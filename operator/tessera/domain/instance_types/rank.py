"""What a recorded load costs on each instance type.

A type costs the pods of each span, times the price of one. The pods are those that scaling by
capacity orders for it: the fewest that carry its rate within the SLO, as one queue with as many
servers. Replicas of two GPUs so cost less where one of a single GPU has little room for the cache
of long answers, and more where a load half fills them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.domain.observed.demand import ArrivedTokens
from tessera.domain.observed.load_history import SPAN, LoadHistory, LoadSpan
from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.scaling.policies.capacity.variant_capacity import (
    VariantCapacity,
    variant_capacity,
)
from tessera.domain.sizing.sizing import ReplicaFit

# A shorter history says too little of a day.
MIN_HISTORY = timedelta(hours=6)
# So many requests say how long requests are.
_REQUESTS = 1000
_NO_LEAD = timedelta()


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeCost:
    """What a recorded load costs on an instance type."""

    choice: HardwareChoice
    pods: tuple[int, ...]
    """Those of each span, oldest first."""
    misses_slo: bool
    """Requests of a span miss the SLO however few there are, as where more than 5 % of its prompts
    are late by themselves."""

    @property
    def span_nanos(self) -> tuple[int, ...]:
        """Return the cost of each span, in nano-units."""
        spans_per_hour = timedelta(hours=1) // SPAN
        return tuple(self.choice.hourly.nanos * pods // spans_per_hour for pods in self.pods)

    @property
    def order(self) -> tuple[bool, int, str]:
        """Return what types are ranked by."""
        return self.misses_slo, sum(self.span_nanos), self.choice.variant


def is_long_enough(history: LoadHistory) -> bool:
    """Return whether a history says what a service needs in a day."""
    return len(history.spans) * SPAN >= MIN_HISTORY


def rank_types(
    spec: InferenceServiceSpec,
    shape: ModelShape,
    choices: Sequence[HardwareChoice],
    history: LoadHistory,
    slowness: Mapping[str, float],
) -> tuple[TypeCost, ...]:
    """Return what a load costs on each choice, the cheapest first; one that misses the SLO is last.

    `slowness` is the measured time of a step divided by the predicted one, by variant.
    """
    costs = [
        _type_cost(spec, shape, choice, history, slowness.get(choice.variant, 1.0))
        for choice in choices
    ]
    return tuple(sorted(costs, key=lambda cost: cost.order))


def _type_cost(
    spec: InferenceServiceSpec,
    shape: ModelShape,
    choice: HardwareChoice,
    history: LoadHistory,
    slowness: float,
) -> TypeCost:
    least, pods, misses_slo = spec.scaling.min_replicas, list[int](), False
    most = spec.scaling.max_replicas
    for span in history.spans:
        if span.rate <= 0:
            pods.append(least)
            continue
        needed = 0
        for needed in range(1, most + 1):
            carried = _capacity(spec, shape, choice.fit, span, slowness, needed)
            misses_slo = misses_slo or not carried.meets_slo
            if needed * carried.requests_per_second >= span.rate:
                break
        # Where one may be lost, those that are left carry the load.
        pods.append(min(most, max(least, needed + 1 if least > 1 else needed)))
    return TypeCost(choice=choice, pods=tuple(pods), misses_slo=misses_slo)


def _capacity(
    spec: InferenceServiceSpec,
    shape: ModelShape,
    fit: ReplicaFit,
    span: LoadSpan,
    slowness: float,
    replicas: int,
) -> VariantCapacity:
    """Return what one of so many replicas carries of the requests of a span."""
    kv_tokens = fit.memory.kv_tokens
    reading = SpeedReading(
        requests=float(_REQUESTS),
        mean_input_tokens=span.input_tokens,
        mean_output_tokens=span.output_tokens,
        cached_share=span.cached_share,
        running=1.0,
        kv_usage=span.resident_tokens / kv_tokens if kv_tokens else None,
        kv_tokens=kv_tokens,
    )
    squares = _REQUESTS * span.input_tokens**2 * (1 + span.input_variation)
    prompt, answer = (
        round(_REQUESTS * tokens) for tokens in (span.input_tokens, span.output_tokens)
    )
    return variant_capacity(
        spec,
        shape,
        fit,
        reading=reading,
        measured_ratio=slowness if slowness > 1 else None,
        lead=_NO_LEAD,
        arrived=ArrivedTokens(_REQUESTS, prompt, answer, round(squares)),
        replicas=replicas,
        servers=replicas,
    )
