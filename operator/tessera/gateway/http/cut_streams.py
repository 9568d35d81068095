"""What a priced stream ends with: its cost beside its usage, and its end where money ran out.

A stream that is cut ends as one that reached its maximum, in the words of its path: `length`,
`max_tokens`, `incomplete`. What is open ends before, and what ended does not end again. The last
events say why.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec
from typing_extensions import override

from tessera.gateway.http.event_fields import read_head
from tessera.gateway.http.sse import InvalidStreamError, StreamFormat, event_data, split_events

# In the events that end a stream before its maximum.
REASON_FIELD = "x_tessera_reason"
# Of events, of which the last ones repeat some fields; longer ones are not kept.
_MAX_EVENT_BYTES = 2**16
# Items, parts and usages whose fields are read are shorter; engines' have some hundred bytes.
_MAX_OPEN_BYTES = 2**12
# Items of a response that its end repeats, and texts of one; further ones pass as they are.
_MAX_ITEMS = 256
# Of an item or a text of a response, beside its own bytes.
_OBJECT_BYTES = 512

_T = TypeVar("_T")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.encode
_NULL = msgspec.Raw(b"null")
_USAGE = b'"usage"'
_DONE = b"data: [DONE]\n\n"
# As engines write it. In a text, the quotes are escaped.
_FINISHED = (b'"finish_reason":"', b'"finish_reason": "')
_BLOCK_STOP, _INDEX = "content_block_stop", b'"index"'
_MESSAGE_DELTA = b"event: message_delta\n"
_RESPONSES, _MESSAGES = b"event: response.completed\n", b"event: message_stop\n"
_ITEM, _TEXT = "response.output_item", "response.output_text"
# The fields of texts of a response, by the names of their events.
_TEXT_FIELDS: Mapping[str, str] = {
    _TEXT: "text",
    "response.refusal": "refusal",
    "response.reasoning_text": "text",
    "response.reasoning_summary_text": "text",
    "response.function_call_arguments": "arguments",
    "response.mcp_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
    "response.code_interpreter_call_code": "code",
}


class CutUsage(NamedTuple):
    """What a stream used that is cut."""

    input: int
    output: int
    cost: str
    """A number of JSON."""


class PassedEvents:
    """What the end of a cut stream needs of the events that its client has; here, of choices."""

    def __init__(self, choices: int) -> None:
        self.follows = choices > 1
        """It takes all events, and not the first ones alone."""
        self._first: bytes | None = None
        self._open = dict.fromkeys(range(choices))

    def add(self, data: bytes) -> int:
        """Take events that pass; return how many bytes more are kept from now on."""
        size = 0
        if self._first is None:
            self._first = data if len(data) <= _MAX_EVENT_BYTES else b""
            size = len(self._first)
        if self.follows and any(mark in data for mark in _FINISHED):
            events = (each for each in split_events(data) if len(each) <= _MAX_EVENT_BYTES)
            for choice in (each for event in _read(_choices, events) for each in event.choices):
                if choice.finish_reason:
                    self._open.pop(choice.index, None)
        return size

    def cut(self, reason: str, usage: CutUsage | None) -> bytes:
        """Return what ends the stream here; its usage is in it unless it is None."""
        return b"".join(self._end(reason, usage))

    def _end(self, reason: str, usage: CutUsage | None) -> Iterator[bytes]:
        first = self._first or b""
        try:
            head = read_head(first) or {}
        except InvalidStreamError:
            head = {}
        piece: Mapping[str, Any] = {"delta": {}} if b'"delta"' in first else {"text": ""}
        ended = [
            {"index": index, **piece, "logprobs": None, "finish_reason": "length"}
            for index in self._open
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
        yield _DONE


def passed_events(stream_format: StreamFormat, choices: int) -> PassedEvents:
    """Return what takes the events of a stream of which nothing has passed."""
    if _RESPONSES in stream_format.ends:
        return _ResponseItems()
    return _MessageBlocks() if _MESSAGES in stream_format.ends else PassedEvents(choices)


def with_cost(block: bytes, stream_format: StreamFormat, cost: str) -> bytes:
    """Return events with the cost in the usage of the last one, if it is among them."""
    if _USAGE not in block:
        return block
    return b"".join(_priced(event, stream_format, cost) for event in split_events(block))


def _priced(event: bytes, stream_format: StreamFormat, cost: str) -> bytes:
    try:
        usage = _usage_of(event, stream_format)
        if usage is None or len(usage) > _MAX_OPEN_BYTES:
            return event
        priced = _encode({**_fields.decode(usage), "cost": msgspec.Raw(cost.encode())})
    except (InvalidStreamError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Of a shape that is not known here: it is the client's.
        return event
    before, _, after = event.rpartition(bytes(usage))
    return before + priced + after


def _usage_of(event: bytes, stream_format: StreamFormat) -> msgspec.Raw | None:
    """Return the usage with which a stream ends, as it stands there; None of another event."""
    is_end = True
    if _RESPONSES in stream_format.ends:
        is_end = event.startswith(stream_format.ends)
    elif _MESSAGES in stream_format.ends:
        is_end = event.startswith(_MESSAGE_DELTA)
    if _USAGE not in event or not is_end:
        return None
    fields = _priced_event.decode(event_data(event))
    if _RESPONSES in stream_format.ends:
        fields = _priced_event.decode(fields.response)
    elif _MESSAGES not in stream_format.ends and bytes(memoryview(fields.choices)[:3]) != b"[]":
        return None
    return fields.usage if bytes(fields.usage) in event else None


class _PricedEvent(msgspec.Struct, gc=False):
    """An event, or the response in it; of other fields, which may be very many, nothing is made."""

    choices: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    response: msgspec.Raw = _NULL


class _ChoiceEnd(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None


class _ChoiceEnds(msgspec.Struct, gc=False):
    choices: tuple[_ChoiceEnd, ...] = ()


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    index: int | None = None


class _OutputEvent(msgspec.Struct, gc=False):
    type: str = ""
    sequence_number: int = -1
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    response: msgspec.Raw = _NULL
    item: msgspec.Raw = _NULL
    part: msgspec.Raw = _NULL
    delta: msgspec.Raw = _NULL


_priced_event = msgspec.json.Decoder(_PricedEvent)
_choices = msgspec.json.Decoder(_ChoiceEnds)
_block = msgspec.json.Decoder(_Block)
_output_event = msgspec.json.Decoder(_OutputEvent)


class _MessageBlocks(PassedEvents):
    """Of a message: the block that is open."""

    def __init__(self) -> None:
        super().__init__(choices=1)
        self.follows = True
        self._last = b""

    @override
    def add(self, data: bytes) -> int:
        if _INDEX not in data or len(data) > _MAX_EVENT_BYTES:
            return 0
        size = len(data) - len(self._last)
        self._last = data
        return size

    @override
    def _end(self, reason: str, usage: CutUsage | None) -> Iterator[bytes]:
        index: int | None = None
        for block in _read(_block, split_events(self._last)):
            if block.index is not None:
                index = None if block.type == _BLOCK_STOP else block.index
        if index is not None:
            yield _named(_BLOCK_STOP, {"index": index})
        delta = {"stop_reason": "max_tokens", "stop_sequence": None}
        message: dict[str, Any] = {"delta": delta, REASON_FIELD: reason}
        if usage is not None:
            counts = _input_and_output(usage)
            del counts["total_tokens"]
            message["usage"] = counts
        yield _named("message_delta", message)
        yield _named("message_stop", {REASON_FIELD: reason})


@dataclass(slots=True)
class _Text:
    """A part of an item of a response, or the text of the item itself."""

    name: str = ""
    """Of the events of its text; empty before the first."""
    text: bytearray = field(default_factory=bytearray)
    """As JSON has it, without its quotation marks."""
    part_name: str = ""
    part: bytes = b"{}"
    is_text_done: bool = False
    is_done: bool = False


@dataclass(slots=True)
class _Item:
    fields: bytes
    is_done: bool
    texts: dict[tuple[str, int], _Text] = field(default_factory=dict)
    """By the list of parts, and the place in it; of the item itself by an empty name."""

    @property
    def size(self) -> int:
        texts = self.texts.values()
        sizes = (len(each.text) + len(each.part) + _OBJECT_BYTES for each in texts)
        return len(self.fields) + _OBJECT_BYTES + sum(sizes)


class _ResponseItems(PassedEvents):
    """Of a response: its items with their texts so far, which its last event repeats."""

    def __init__(self) -> None:
        super().__init__(choices=1)
        self.follows = True
        self._response = b"{}"
        self._items: dict[int, _Item] = {}
        self._texts = 0
        self._sequence_number = -1
        # They are read many at a time; until then they pass as they are.
        self._unread: list[bytes] = []
        self._unread_bytes = self._item_bytes = 0

    @override
    def add(self, data: bytes) -> int:
        before = self._unread_bytes + self._item_bytes
        self._unread.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > _MAX_EVENT_BYTES:
            self._read_events()
        return self._unread_bytes + self._item_bytes - before

    @override
    def _end(self, reason: str, usage: CutUsage | None) -> Iterator[bytes]:
        self._read_events()
        response: dict[str, Any] = {**_fields.decode(self._response)}
        output = []
        for index, item in sorted(self._items.items()):
            if not item.is_done:
                yield from self._ended_item(index, item)
            output.append(msgspec.Raw(item.fields))
        if output:
            response["output"] = output
        response["status"] = "incomplete"
        response["incomplete_details"] = {"reason": "max_output_tokens"}
        response["usage"] = None if usage is None else _input_and_output(usage)
        yield self._event("response.incomplete", {"response": response, REASON_FIELD: reason})

    def _read_events(self) -> None:
        events = split_events(b"".join(self._unread))
        self._unread, self._unread_bytes = [], 0
        for event in _read(_output_event, events):
            self._take(event)
        self._item_bytes = sum(item.size for item in self._items.values())

    def _take(self, event: _OutputEvent) -> None:
        name, _, verb = event.type.rpartition(".")
        self._sequence_number = max(self._sequence_number, event.sequence_number)
        if _is_object(event.response) and len(event.response) <= _MAX_EVENT_BYTES:
            self._response = bytes(event.response)
        if event.output_index is None:
            return
        if name == _ITEM and _is_object(event.item):
            self._take_item(event.output_index, event.item, is_done=verb == "done")
        item = self._items.get(event.output_index)
        if item is None or item.is_done or not (_is_object(event.part) or name in _TEXT_FIELDS):
            return
        text = self._text_of(item, event)
        if text is None:
            return
        if name not in _TEXT_FIELDS:
            text.part_name, text.is_done = name, verb == "done"
            if len(event.part) <= _MAX_OPEN_BYTES:
                text.part = bytes(event.part)
        elif verb == "delta" and bytes(event.delta).startswith(b'"'):
            text.name = name
            text.text += memoryview(event.delta)[1:-1]
        elif verb == "done":
            text.is_text_done = True

    def _take_item(self, index: int, fields: msgspec.Raw, *, is_done: bool) -> None:
        has_room = index in self._items or len(self._items) < _MAX_ITEMS
        if has_room and (is_done or len(fields) <= _MAX_OPEN_BYTES):
            self._items[index] = _Item(bytes(fields), is_done)

    def _text_of(self, item: _Item, event: _OutputEvent) -> _Text | None:
        if event.summary_index is not None:
            place = "summary", event.summary_index
        else:
            place = ("", 0) if event.content_index is None else ("content", event.content_index)
        if place not in item.texts:
            if self._texts >= _MAX_ITEMS:
                return None
            self._texts += 1
            item.texts[place] = _Text()
        return item.texts[place]

    def _ended_item(self, index: int, item: _Item) -> Iterator[bytes]:
        fields: dict[str, Any] = {**_fields.decode(item.fields)}
        for (parts, number), text in item.texts.items():
            place = {"output_index": index, "item_id": fields.get("id", _NULL)}
            if parts:
                place[f"{parts}_index"] = number
            value = {}
            if text.name:
                value = {_TEXT_FIELDS[text.name]: msgspec.Raw(b'"%b"' % bytes(text.text))}
                if not text.is_text_done:
                    logprobs: dict[str, Any] = {"logprobs": []} if text.name == _TEXT else {}
                    yield self._event(f"{text.name}.done", {**place, **value, **logprobs})
            if not parts:
                fields |= value
                continue
            part: dict[str, Any] = {**_fields.decode(text.part)}
            if not text.part_name:
                # Not every engine announces the parts of what it thinks.
                part["type"] = text.name.removeprefix("response.").replace("reasoning_sum", "sum")
            part |= value
            if text.part_name and not text.is_done:
                yield self._event(f"{text.part_name}.done", {**place, "part": part})
            if not isinstance(fields.get(parts), list):
                fields[parts] = []
            fields[parts].append(part)
        fields["status"] = "incomplete"
        item.fields = _encode(fields)
        yield self._event(f"{_ITEM}.done", {"output_index": index, "item": fields})

    def _event(self, name: str, fields: Mapping[str, Any]) -> bytes:
        if self._sequence_number < 0:
            return _named(name, fields)
        self._sequence_number += 1
        return _named(name, {"sequence_number": self._sequence_number, **fields})


def _is_object(value: msgspec.Raw) -> bool:
    return bytes(memoryview(value)[:1]) == b"{"


def _read(decoder: msgspec.json.Decoder[_T], events: Iterator[bytes] | list[bytes]) -> Iterator[_T]:
    """Yield what is read of events, without those of a shape that is not known here."""
    for event in events:
        try:
            if data := event_data(event):
                yield decoder.decode(data)
        except (InvalidStreamError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue


def _input_and_output(usage: CutUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "cost": msgspec.Raw(usage.cost.encode()),
    }


def _named(name: str, fields: Mapping[str, Any]) -> bytes:
    return b"event: %b\n" % name.encode() + _data({"type": name, **fields})


def _data(fields: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % _encode(fields)
