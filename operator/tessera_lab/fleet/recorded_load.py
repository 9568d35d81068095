"""The load of a trace as Prometheus would have recorded it by the trace's end."""

from collections.abc import Sequence
from datetime import datetime

from tessera.domain.observed.load_history import LONGEST, SPAN, LoadHistory, LoadSpan
from tessera_lab.fleet.trace import Trace


def recorded_load(trace: Trace, read_at: datetime) -> LoadHistory:
    """Return the whole spans of a trace that ends at a moment, without a part at its beginning."""
    seconds = SPAN.total_seconds()
    count = int(min(trace.seconds, LONGEST.total_seconds()) // seconds)
    begin = trace.seconds - count * seconds
    rows: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    lengths = zip(trace.arrivals, trace.input_tokens, trace.output_tokens, strict=True)
    for arrival, prompt, answer in lengths:
        if begin <= arrival < trace.seconds:
            rows[min(count - 1, int((arrival - begin) / seconds))].append((prompt, answer))
    return LoadHistory(
        read_at=read_at,
        spans=tuple(
            _span(read_at - (count - 1 - number) * SPAN, each) for number, each in enumerate(rows)
        ),
    )


def recorded_until(history: LoadHistory, at: datetime) -> LoadHistory:
    """Return what of a history had been recorded by a moment."""
    return LoadHistory(read_at=at, spans=tuple(span for span in history.spans if span.end <= at))


def _span(end: datetime, lengths: Sequence[tuple[int, int]]) -> LoadSpan:
    prompts, answers = [prompt for prompt, _ in lengths], [answer for _, answer in lengths]
    steps = sum(answer * (prompt + answer / 2) for prompt, answer in lengths)
    return LoadSpan(
        end=end,
        rate=len(lengths) / SPAN.total_seconds(),
        input_tokens=_mean(prompts),
        output_tokens=_mean(answers),
        input_variation=_variation(prompts),
        resident_tokens=steps / max(1, sum(answers)),
    )


def _mean(values: Sequence[int]) -> float:
    """Return the mean; 0 of none."""
    return sum(values) / len(values) if values else 0.0


def _variation(values: Sequence[int]) -> float:
    """Return the squared coefficient of variation; 0 of none."""
    mean = _mean(values)
    if not mean:
        return 0.0
    return sum((value - mean) ** 2 for value in values) / len(values) / mean**2
