"""Spans of like loads together, so that a week of them costs no more than a few hours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.domain.observed.load_history import LoadSpan

# Classes of a load at most.
_MOST = 64
# Logarithm of the widest ratio between values of a class at first; it grows until there are few
# enough classes.
_FINEST = 0.02


@dataclass(frozen=True, slots=True)
class LoadClass:
    """Spans whose requests are alike."""

    mean: LoadSpan
    """Their mean, by requests."""
    numbers: tuple[int, ...]
    """Their indices."""


def load_classes(spans: Sequence[LoadSpan]) -> tuple[LoadClass, ...]:
    """Return the classes of the spans that have requests, the lowest rates first.

    A few hours have a class for each span.
    """
    values = {number: _logarithms(span) for number, span in enumerate(spans) if span.rate > 0}
    width = _FINEST
    while len(groups := _grouped(values, width)) > _MOST:
        width *= 1.5
    classes = [LoadClass(_mean([spans[each] for each in group]), group) for group in groups]
    return tuple(sorted(classes, key=lambda each: (each.mean.rate, each.numbers)))


def _logarithms(span: LoadSpan) -> tuple[float, ...]:
    # Lengths and shares near 0 are alike.
    lengths = span.input_tokens, span.output_tokens, span.resident_tokens
    shares = span.input_variation, span.cached_share
    return math.log(span.rate), *(math.log1p(each) for each in (*lengths, *shares))


def _grouped(values: Mapping[int, tuple[float, ...]], width: float) -> Sequence[tuple[int, ...]]:
    groups = dict[tuple[int, ...], list[int]]()
    for number, each in values.items():
        groups.setdefault(tuple([round(value / width) for value in each]), []).append(number)
    return [tuple(group) for group in groups.values()]


def _mean(spans: Sequence[LoadSpan]) -> LoadSpan:
    if len(spans) == 1:
        return spans[0]
    requests = sum(span.rate for span in spans)

    def mean(name: str) -> float:
        return sum(span.rate * float(getattr(span, name)) for span in spans) / requests

    return replace(
        spans[0],
        rate=requests / len(spans),
        input_tokens=mean("input_tokens"),
        output_tokens=mean("output_tokens"),
        resident_tokens=mean("resident_tokens"),
        input_variation=mean("input_variation"),
        cached_share=mean("cached_share"),
    )
