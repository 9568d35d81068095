"""What a priced stream ends with: its cost beside its usage, and its end where money ran out.

A stream that is cut ends as one that reached its maximum, in the words of its path: `length`,
`max_tokens`, `incomplete`. Its last events say why.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from tessera.gateway.http.event_fields import read_head
from tessera.gateway.http.sse import InvalidStreamError, StreamFormat, event_data, split_events

# In the events that end a stream before its maximum.
REASON_FIELD = "x_tessera_reason"
# Of the first events, of which the last ones repeat some fields; longer ones are not kept.
MAX_FIRST_BYTES = 2**16

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.encode
_NULL = msgspec.Raw(b"null")
_USAGE = b'"usage"'
_DONE = b"data: [DONE]\n\n"
_BLOCK_STOP = "content_block_stop"
_MESSAGE_DELTA = b"event: message_delta\n"
_RESPONSES, _MESSAGES = b"event: response.completed\n", b"event: message_stop\n"


class CutUsage(NamedTuple):
    """What a stream used that is cut."""

    input: int
    output: int
    cost: str
    """A number of JSON."""


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    index: int | None = None


_block = msgspec.json.Decoder(_Block)


def with_cost(block: bytes, stream_format: StreamFormat, cost: str) -> bytes:
    """Return events with the cost in the usage of the last one, if it is among them."""
    if _USAGE not in block:
        return block
    return b"".join(_priced(event, stream_format, cost) for event in split_events(block))


def cut_events(
    stream_format: StreamFormat,
    first: bytes,
    last: bytes,
    reason: str,
    *,
    choices: int,
    usage: CutUsage | None,
) -> bytes:
    """Return what ends a stream, of which these were the first and the last events.

    Its usage is in it unless it is None.
    """
    if _RESPONSES in stream_format.ends:
        events = _incomplete_response(first, reason, usage)
    elif _MESSAGES in stream_format.ends:
        events = _stopped_message(last, reason, usage)
    else:
        return b"".join(_finished_choices(first, reason, choices, usage)) + _DONE
    return b"".join(events)


def _priced(event: bytes, stream_format: StreamFormat, cost: str) -> bytes:
    if _USAGE not in event:
        return event
    try:
        data = event_data(event)
        fields = _fields.decode(data)
        if _RESPONSES in stream_format.ends:
            if not event.startswith(stream_format.ends):
                return event
            response = _fields.decode(fields["response"])
            response["usage"] = _usage_with(response["usage"], cost)
            fields["response"] = msgspec.Raw(_encode(response))
        elif _MESSAGES in stream_format.ends:
            if not event.startswith(_MESSAGE_DELTA):
                return event
            fields["usage"] = _usage_with(fields["usage"], cost)
        else:
            if bytes(fields.get("choices", _NULL)) != b"[]":
                return event
            fields["usage"] = _usage_with(fields["usage"], cost)
    except (InvalidStreamError, KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Of a shape that is not known here: it is the client's.
        return event
    return event.replace(data, _encode(fields), 1)


def _usage_with(usage: msgspec.Raw, cost: str) -> msgspec.Raw:
    return msgspec.Raw(_encode({**_fields.decode(usage), "cost": msgspec.Raw(cost.encode())}))


def _finished_choices(
    first: bytes, reason: str, choices: int, usage: CutUsage | None
) -> Iterator[bytes]:
    head = _head(first)
    piece: Mapping[str, Any] = {"delta": {}} if b'"delta"' in first else {"text": ""}
    ended = [
        {"index": index, **piece, "logprobs": None, "finish_reason": "length"}
        for index in range(choices)
    ]
    event: dict[str, Any] = {**head, "choices": ended, REASON_FIELD: reason}
    yield _data(event)
    if usage is not None:
        counts = {
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "total_tokens": usage.input + usage.output,
            "cost": msgspec.Raw(usage.cost.encode()),
        }
        yield _data({**head, "choices": [], "usage": counts, REASON_FIELD: reason})


def _incomplete_response(first: bytes, reason: str, usage: CutUsage | None) -> Iterator[bytes]:
    response: dict[str, Any] = {}
    try:
        for data in filter(None, map(event_data, split_events(first))):
            fields = _fields.decode(data)
            if "response" in fields:
                response = {**_fields.decode(fields["response"])}
                break
    except (InvalidStreamError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    response["status"] = "incomplete"
    response["incomplete_details"] = {"reason": "max_output_tokens"}
    response["usage"] = None if usage is None else _input_and_output(usage)
    event = {"type": "response.incomplete", "response": response, REASON_FIELD: reason}
    yield b"event: response.incomplete\n" + _data(event)


def _stopped_message(last: bytes, reason: str, usage: CutUsage | None) -> Iterator[bytes]:
    index: int | None = None
    try:
        for data in filter(None, map(event_data, split_events(last))):
            block = _block.decode(data)
            if block.index is not None:
                index = None if block.type == _BLOCK_STOP else block.index
    except (InvalidStreamError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    if index is not None:
        yield b"event: content_block_stop\n" + _data({"type": _BLOCK_STOP, "index": index})
    delta = {"stop_reason": "max_tokens", "stop_sequence": None}
    message: dict[str, Any] = {"type": "message_delta", "delta": delta, REASON_FIELD: reason}
    if usage is not None:
        counts = _input_and_output(usage)
        del counts["total_tokens"]
        message["usage"] = counts
    yield _MESSAGE_DELTA + _data(message)
    yield b"event: message_stop\n" + _data({"type": "message_stop", REASON_FIELD: reason})


def _input_and_output(usage: CutUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "cost": msgspec.Raw(usage.cost.encode()),
    }


def _head(first: bytes) -> Mapping[str, msgspec.Raw]:
    try:
        return read_head(first) or {}
    except InvalidStreamError:
        return {}


def _data(fields: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % _encode(fields)
