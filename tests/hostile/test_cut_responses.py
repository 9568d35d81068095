"""What an engine sends decides neither how long the end of a cut stream takes, nor a cost in it."""

import tracemalloc

from tessera.gateway.http.cut_streams import CutUsage, passed_events, with_cost
from tessera.gateway.paths import PATHS

# Of an event of 2 MiB.
FIELDS = b",".join(b'"k%d":1' % number for number in range(170_000))


def cut_response(*events: bytes) -> bytes:
    stream_format = PATHS["/v1/responses"].stream
    assert stream_format is not None
    passed = passed_events(stream_format, 1)
    for event in events:
        passed.add(event)
    return passed.cut("too_much", CutUsage(1, 1, "1"))


def an_item(index: int, fields: bytes = b"") -> bytes:
    return b'data: {"type":"response.output_item.added","output_index":%d,"item":{%b}}\n\n' % (
        index,
        fields,
    )


def a_text(index: int) -> bytes:
    return (
        b'data: {"type":"response.output_text.delta","output_index":0,"content_index":%d,'
        b'"delta":"a"}\n\n' % index
    )


def test_a_response_of_very_many_items_or_texts_ends_with_few_of_them() -> None:
    end = cut_response(*(an_item(index) for index in range(10_000)))
    assert 100 < end.count(b'"response.output_item.done"') < 1000
    end = cut_response(an_item(0), *(a_text(index) for index in range(10_000)))
    assert 100 < end.count(b'"response.output_text.done"') < 1000


def test_an_open_item_of_very_many_fields_is_not_repeated() -> None:
    assert b"k9" not in cut_response(an_item(0, FIELDS), an_item(1, b'"a":1'))
    assert b'"a":1' in cut_response(an_item(0, FIELDS), an_item(1, b'"a":1'))


def test_a_cost_makes_nothing_of_very_many_fields() -> None:
    chat, responses = PATHS["/v1/chat/completions"].stream, PATHS["/v1/responses"].stream
    assert chat is not None
    assert responses is not None
    for stream_format, event in (
        (chat, b'data: {"choices":[],%b,"usage":{"a":1}}\n\n' % FIELDS),
        (chat, b'data: {"choices":[],"usage":{%b}}\n\n' % FIELDS),
        (
            responses,
            b'event: response.completed\ndata: {"response":{%b,"usage":{"a":1}}}\n\n' % FIELDS,
        ),
    ):
        tracemalloc.start()
        priced = with_cost(event, stream_format, "0.5")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * len(event)
        assert (b'"usage":{"a":1,"cost":0.5}' in priced) == (b'"usage":{"a":1}' in event)
