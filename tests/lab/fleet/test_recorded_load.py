"""The load that was recorded before a trace is cut: whole spans, those without requests too."""

from datetime import UTC, datetime, timedelta

from tessera_lab.fleet.recorded_load import recorded_load
from tests.lab.fleet.builders import a_trace

AT = datetime(2026, 1, 5, tzinfo=UTC)


def test_spans_end_with_the_trace_and_a_part_at_its_beginning_is_left_out() -> None:
    requests = [(50.0, 9, 9), (100.0, 100, 10), (699.0, 300, 10), (1899.0, 50, 5)]
    history = recorded_load(a_trace(requests, 1900), AT)
    first, empty, last = history.spans
    assert [each.end for each in history.spans] == [AT - timedelta(minutes=m) for m in (20, 10, 0)]
    assert (first.rate, first.input_tokens, first.output_tokens) == (2 / 600, 200, 10)
    assert (first.input_variation, first.resident_tokens) == (0.25, 205)
    assert (empty.rate, empty.input_tokens) == (0, 0)
    assert (last.rate, last.output_tokens) == (1 / 600, 5)


def test_a_trace_without_a_whole_span_has_none() -> None:
    assert recorded_load(a_trace([(1.0, 9, 9)], 599), AT).spans == ()
