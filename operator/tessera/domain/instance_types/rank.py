"""What a recorded load costs on each instance type.

A type costs the pods of each span, times the price of one. The pods are those that scaling by
capacity orders for it: the fewest that carry its rate within the SLO, as one queue with as many
servers. Replicas of two GPUs so cost less where one of a single GPU has little room for the cache
of long answers, and more where a load half fills them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.domain.instance_types.load_classes import LoadClass, load_classes
from tessera.domain.money import Money
from tessera.domain.observed.demand import ArrivedTokens
from tessera.domain.observed.load_history import SPAN, LoadHistory, LoadSpan
from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.perf.sources import OFF_TOLERANCE
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.scaling.policies.capacity.variant_capacity import (
    VariantCapacity,
    variant_capacity,
)
from tessera.domain.schedules import bounds_at

# A shorter history says too little of a day.
MIN_HISTORY = timedelta(hours=6)
# A type misses the SLO once more than this share of the recorded requests came in spans in which
# it does.
_LATE_SHARE = 0.05
# So many requests say how long requests are.
_REQUESTS = 1000
_NO_LEAD = timedelta()
_SPANS_PER_HOUR = timedelta(hours=1) // SPAN


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeCost:
    """What a recorded load costs on an instance type."""

    choice: HardwareChoice
    pods: tuple[int, ...]
    """Those of each span, oldest first."""
    misses_slo: bool
    """The SLO is missed however many pods there are, as where more than 5 % of the prompts are
    late by themselves, or by as many as there may be."""

    @property
    def span_nanos(self) -> tuple[int, ...]:
        """Return the cost of each span, in nano-units."""
        return tuple(self.choice.hourly.nanos * pods // _SPANS_PER_HOUR for pods in self.pods)

    @property
    def daily(self) -> Money:
        """Return the mean cost of a day."""
        pod_hours = 24 * sum(self.pods)
        return Money(
            self.choice.hourly.nanos * pod_hours // len(self.pods), self.choice.hourly.currency
        )

    @property
    def order(self) -> tuple[bool, int, int, str]:
        """Return what types are ranked by."""
        hourly = self.choice.hourly.nanos
        return self.misses_slo, hourly * sum(self.pods), hourly, self.choice.variant


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

    `slowness` is the measured time of a step divided by the predicted one, by variant. A type that
    is not measured is at least as slow as those of fewer GPUs: what slows one slows several.
    """
    classes, costs = load_classes(history.spans), list[TypeCost]()
    bounds = tuple(bounds_at(spec.scaling, (span.end - SPAN for span in history.spans)))
    most = max((most for _, most in bounds), default=spec.scaling.max_replicas)
    scaling = spec.scaling.model_copy(update={"max_replicas": most})
    spec = spec.model_copy(update={"scaling": scaling})
    slowest = 1.0
    for choice in sorted(choices, key=lambda choice: choice.offer.hardware.devices):
        measured = slowness.get(choice.variant)
        slowest = max(slowest, measured or 1.0)
        engine = _Engine(spec, shape, choice, slowest if measured is None else max(1.0, measured))
        costs.append(_type_cost(engine, classes, history.spans, bounds))
    return tuple(sorted(costs, key=lambda cost: cost.order))


@dataclass(frozen=True, slots=True)
class _Engine:
    """A replica of a service on an instance type."""

    spec: InferenceServiceSpec
    shape: ModelShape
    choice: HardwareChoice
    slowness: float

    @property
    def beyond_tolerance(self) -> float:
        """Return the factor of the load by which slow steps count beyond their own time.

        By that more prompts would be late by themselves, which no replica mends.
        """
        return max(1.0, self.slowness / (1 + OFF_TOLERANCE))

    def capacity(self, span: LoadSpan, replicas: int) -> VariantCapacity:
        """Return what one of so many replicas carries of the requests of a span."""
        fit = self.choice.fit
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
            self.spec,
            self.shape,
            fit,
            reading=reading,
            measured_ratio=min(self.slowness, 1 + OFF_TOLERANCE) if self.slowness > 1 else None,
            lead=_NO_LEAD,
            arrived=ArrivedTokens(_REQUESTS, prompt, answer, round(squares)),
            replicas=replicas,
            servers=replicas,
        )


def _type_cost(
    engine: _Engine,
    classes: Sequence[LoadClass],
    spans: Sequence[LoadSpan],
    bounds: Sequence[tuple[int, int]],
) -> TypeCost:
    """Return the cost of a type, with the `bounds` of replicas that schedules set for each span."""
    pods, late, guess = [least for least, _ in bounds], 0.0, 1
    for each in classes:
        rate = each.mean.rate * engine.beyond_tolerance
        needed, carried = _needed(engine, each.mean, rate, guess)
        if not carried.meets_slo or needed * carried.requests_per_second < rate:
            late += sum(spans[number].rate for number in each.numbers)
        for number in each.numbers:
            of_span = _rounded(needed, carried, spans[number].rate * engine.beyond_tolerance)
            least, most = bounds[number]
            # Where one may be lost, those that are left carry the load.
            pods[number] = min(most, max(least, of_span + 1 if least > 1 else of_span))
        guess = needed
    misses_slo = late > _LATE_SHARE * sum(span.rate for span in spans)
    return TypeCost(choice=engine.choice, pods=tuple(pods), misses_slo=misses_slo)


def _needed(
    engine: _Engine, span: LoadSpan, rate: float, guess: int
) -> tuple[int, VariantCapacity]:
    """Return the fewest replicas that carry a rate, and what each carries; the most if none do."""
    fewest, most = 1, engine.spec.scaling.max_replicas
    number = min(guess, most)
    while True:
        carried = engine.capacity(span, number)
        if number * carried.requests_per_second < rate and number < most:
            # More of them carry more each, so these are never too few.
            enough = math.ceil(rate / carried.requests_per_second)
            fewest, number = number + 1, min(most, max(number + 1, enough))
        elif number > fewest and (number - 1) * carried.fewer_requests_per_second >= rate:
            most = number - 1
            number = max(fewest, min(most, math.ceil(rate / carried.fewer_requests_per_second)))
        else:
            return number, carried


def _rounded(needed: int, carried: VariantCapacity, rate: float) -> int:
    """Return the replicas for a rate near the one for which so many are needed."""
    if rate > needed * carried.requests_per_second:
        return math.ceil(rate / carried.requests_per_second)
    if rate <= (needed - 1) * carried.fewer_requests_per_second:
        return max(1, math.ceil(rate / carried.fewer_requests_per_second))
    return needed
