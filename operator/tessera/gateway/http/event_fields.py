"""The fields of an event, cut as they are: few objects are made of it, however large it is.

Of a stream that may go on elsewhere, the gateway changes and repeats some of them.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from tessera.gateway.http.sse import InvalidStreamError, event_data, split_events

# Of one that all events of a stream share, since it is repeated in each event at the next engine.
# A request id of 128 characters, with what engines put around it, has less than 200.
MAX_HEAD_BYTES = 256
# Of an event, its choices, and each of the objects in these.
MAX_VALUES = 64
# What is this small has few values, whatever they are.
_SMALL_BYTES = 2**12
# Of a usual event at most; most have 8.
_USUAL_COMMAS = 16

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_NULL = msgspec.Raw(b"null")


class _Large(msgspec.Struct, gc=False):
    """What may be long in an event, a choice or its delta."""

    choices: msgspec.Raw = _NULL
    content: msgspec.Raw = _NULL
    delta: msgspec.Raw = _NULL
    logprobs: msgspec.Raw = _NULL
    prompt_token_ids: msgspec.Raw = _NULL
    reasoning: msgspec.Raw = _NULL
    text: msgspec.Raw = _NULL
    token_ids: msgspec.Raw = _NULL


class _Head(msgspec.Struct, gc=False):
    id: msgspec.Raw = _NULL
    object: msgspec.Raw = _NULL
    created: msgspec.Raw = _NULL
    model: msgspec.Raw = _NULL


_large = msgspec.json.Decoder(_Large)
_head = msgspec.json.Decoder(_Head)
# An array is decoded as one: msgspec makes nothing of what is beyond its fields.
_few_items = msgspec.json.Decoder(
    msgspec.defstruct(
        "_FewItems",
        [(f"item_{number}", msgspec.Raw, None) for number in range(MAX_VALUES)],
        array_like=True,
        forbid_unknown_fields=True,
        gc=False,
    )
)


class TooManyValuesError(Exception):
    """An event has more choices or fields than one of a stream that may go on."""


def cut_fields(text: bytes | msgspec.Raw) -> dict[str, Any]:
    """Return the fields of an object, each as `msgspec.Raw`.

    Raises TooManyValuesError, and msgspec.DecodeError for what is no object.
    """
    if len(text) > _SMALL_BYTES:
        large = msgspec.structs.astuple(_large.decode(text))
        others = len(text) - sum(map(len, large))
        if others > _SMALL_BYTES:
            raise TooManyValuesError
    fields: dict[str, Any] = _fields.decode(text)
    if len(fields) > MAX_VALUES:
        raise TooManyValuesError
    return fields


def cut_items(array: msgspec.Raw) -> list[msgspec.Raw]:
    """Return the items of an array.

    Raises TooManyValuesError, and msgspec.DecodeError for what is no array.
    """
    if len(array) <= _SMALL_BYTES:
        items = _items.decode(array)
        if len(items) > MAX_VALUES:
            raise TooManyValuesError
        return items
    try:
        few = msgspec.structs.astuple(_few_items.decode(array))
    except msgspec.ValidationError as error:
        raise TooManyValuesError from error
    return [item for item in few if item is not None]


def has_too_many(block: bytes) -> bool:
    """Return whether an event of a block has more values than may be.

    Those of which others in the block hide it are noticed when they are read.
    """
    commas = block.count(b",")
    if commas < MAX_VALUES or commas < _USUAL_COMMAS * (block.count(b"\n") // 2):
        return False
    return any(map(_is_too_many, split_events(block)))


def _is_too_many(event: bytes) -> bool:
    if event.count(b",") < MAX_VALUES:
        return False
    try:
        cut_items(cut_fields(event_data(event)).get("choices", _NULL))
    except (TooManyValuesError, InvalidStreamError):
        return True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Of a shape that is not known here: it is the client's.
        return False
    return False


def read_head(block: bytes) -> Mapping[str, msgspec.Raw] | None:
    """Return `id`, `object`, `created` and `model` of the first event, as far as it has them.

    None where it has larger ones than go on, or is no event of a shape known here.
    """
    data = next(filter(None, map(event_data, split_events(block))), b"")
    try:
        event = _head.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # Copies, since these are parts of the event.
    head = {
        name: value.copy()
        for name, value in msgspec.structs.asdict(event).items()
        if value is not _NULL
    }
    return None if any(len(value) > MAX_HEAD_BYTES for value in head.values()) else head
