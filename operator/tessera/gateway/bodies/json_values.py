"""JSON that is read without an object for each of its values, however many it has."""

import codecs
import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from tessera.api.text import counted
from tessera.gateway.refusals import RequestError, invalid_request

NULL = msgspec.Raw(b"null")
# Of a body at once, since text takes up to four times as much.
_DECODED_BYTES = 2**20
# As many as OpenAI takes inputs for embeddings.
MAX_TEXTS = 2048
# Of an object in which one is replaced.
MAX_FIELDS = 4096
# Commas and quotation marks of a body, which has about as many values at most. A prompt of a
# million tokens, given by their numbers, has a million.
MAX_MARKS = 2**23

_T = TypeVar("_T")
# An array is decoded as one: msgspec skips what is beyond its fields.
_Items = msgspec.defstruct(
    "_Items",
    [(f"item_{number}", msgspec.Raw, None) for number in range(MAX_TEXTS + 1)],
    array_like=True,
    gc=False,
)
_items = msgspec.json.Decoder(_Items)
# What is this small has few values, and is read faster with an object for each.
_SMALL_BYTES = 2**14
_all_items = msgspec.json.Decoder(list[msgspec.Raw])
_all_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_value = msgspec.json.Decoder(msgspec.Raw)
_name = msgspec.json.Decoder(str)
# The beginnings of an object and an array, perhaps of an empty one.
_OBJECT = re.compile(rb"\s*+\{(\s*+\})?")
_ARRAY = re.compile(rb"\s*+\[(\s*+\])?")
_SPACE = re.compile(rb"\s*+")
_SIMPLE = re.compile(rb'\s*+(?:"[^"\\]*+"|[\w.+-]++)\s*+')
_TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")
# That a field has at the least, as `"n":1,`.
_LEAST_FIELD_BYTES = 6
# Of the fields that the gateway changes, if all letters were escapes.
_MAX_NAME_BYTES = 256
_Parts = list[bytes | memoryview]


def check_encoding(body: bytes) -> None:
    """Raise UnicodeDecodeError unless a body is UTF-8: a decoder of JSON skips most texts."""
    if not body.isascii():
        pieces = (body[at : at + _DECODED_BYTES] for at in range(0, len(body), _DECODED_BYTES))
        deque(codecs.iterdecode(pieces, "utf-8"), maxlen=0)


def decode(decoder: msgspec.json.Decoder[_T], text: bytes | memoryview | msgspec.Raw) -> _T:
    """Decode a text.

    Raises RequestError where it is no JSON, and msgspec.ValidationError where it is other JSON.
    """
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid_request(f"the body is no valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None


def check_marks(body: bytes) -> None:
    """Refuse a body of so many values that reading it takes long.

    Raises RequestError.
    """
    if len(body) > MAX_MARKS and body.count(b",") + body.count(b'"') > MAX_MARKS:
        raise invalid_request(
            f"the body has more than {MAX_MARKS} commas and quotation marks; send fewer values"
        )


def check_names(body: bytes, names: Collection[str]) -> None:
    """Refuse a valid object that has two values of one of these names.

    Parsers differ in which of them counts. Raises RequestError.
    """
    if len(body) <= _SMALL_BYTES and _has_no_other(body, decode(_all_fields, body)):
        return
    seen = set[str]()
    for name, _, _ in _fields(memoryview(body)):
        if name in seen:
            raise invalid_request(f"{name}: the body has it twice; send it once", name)
        if name in names:
            seen.add(name)


def _has_no_other(text: bytes, fields: dict[str, msgspec.Raw]) -> bool:
    """Return whether an object is known to have these fields alone, as most clients write it."""
    # Quotation marks, a colon and a comma of each, and the braces.
    least = sum(map(len, fields)) + sum(map(len, fields.values())) + 4 * len(fields) + 1
    if len(text) - least < _LEAST_FIELD_BYTES:
        return True
    # A space after each colon and each comma, as Python writes it.
    spaced = b", ".join([b'"%b": %b' % (name.encode(), value) for name, value in fields.items()])
    return text == b"{%b}" % spaced


def first_items(array: memoryview) -> list[msgspec.Raw]:
    """Return the items of an array, if it is large at most one more than `MAX_TEXTS`."""
    if len(array) <= _SMALL_BYTES:
        return decode(_all_items, array)
    return [item for item in msgspec.structs.astuple(decode(_items, array)) if item is not None]


def each_item(array: memoryview) -> Iterator[memoryview]:
    """Yield the items of a valid array; what follows the last that is taken is not read.

    Raises RequestError.
    """
    if len(array) <= _SMALL_BYTES:
        for item in decode(_all_items, array):
            yield memoryview(item)
        return
    place = _ARRAY.match(array)
    if place is None or place[1]:
        return
    end = place.end() - 1
    while array[end] != ord("]"):
        space = _SPACE.match(array, end + 1)
        start = space.end() if space is not None else end + 1
        end = _end_of_value(array, start)
        yield array[start:end]


def with_fields(text: bytes, changes: Mapping[str, Any]) -> bytes:
    """Return a valid object with other values of some fields, and the rest byte by byte as it is.

    A value that is an object itself keeps its other fields.

    Raises RequestError.
    """
    if len(text) > _SMALL_BYTES:
        return b"".join(_with_fields(memoryview(text), changes))
    values = decode(_all_fields, text)
    fields: dict[str, Any] = {**values, **changes}
    for name, change in changes.items():
        if isinstance(change, Mapping) and _OBJECT.match(values.get(name, b"")):
            given = decode(_all_fields, values[name])
            fields[name] = {**given, **change}
    return msgspec.json.encode(fields)


def _with_fields(text: memoryview, changes: Mapping[str, Any]) -> _Parts:
    parts: _Parts = [b"{"]
    merged: dict[str, _Parts] = {}
    for name, field, value in _fields(text):
        change = changes.get(name)
        if change is None:
            parts += (field, b",")
        elif isinstance(change, Mapping) and _OBJECT.match(value):
            # What an object in it has is replaced as a whole.
            values = {key: msgspec.Raw(msgspec.json.encode(each)) for key, each in change.items()}
            merged[name] = _with_fields(value, values)
        else:
            # Of fields with one name, the last counts.
            merged.pop(name, None)
    for name, change in changes.items():
        parts += (b'"%b":' % name.encode(), *merged.get(name, [msgspec.json.encode(change)]), b",")
    parts[-1] = b"}"
    return parts


def _fields(text: memoryview) -> Iterator[tuple[str, memoryview, memoryview]]:
    """Yield the name of each field of a valid object, all its bytes, and those of its value."""
    place = _OBJECT.match(text)
    if place is None or place[1]:
        return
    start = place.end()
    for _ in range(MAX_FIELDS):
        colon = _end_of_value(text, start)
        end = _end_of_value(text, colon + 1)
        name = bytes(text[start:colon]).strip()
        yield (
            decode(_name, name) if len(name) <= _MAX_NAME_BYTES else "",
            text[start:end],
            text[colon + 1 : end],
        )
        if text[end] == ord("}"):
            return
        start = end + 1
    raise invalid_request(f"the body: expected at most {counted(MAX_FIELDS, 'field')}")


def _end_of_value(text: memoryview, start: int) -> int:
    """Return the place of what follows a value of a valid object."""
    simple = _SIMPLE.match(text, start)
    if simple is not None:
        return simple.end()
    try:
        _value.decode(text[start:])
    except msgspec.DecodeError as error:
        # The decoder reads the value without an object, and says how many bytes it has read then.
        trailing = _TRAILING.search(str(error))
        if trailing is not None:
            return start + int(trailing[1]) - 1
    except RecursionError:
        raise _too_deep() from None
    raise invalid_request("the body is no valid JSON", code="invalid_json")


def _too_deep() -> RequestError:
    return invalid_request("the body is nested too deep", code="invalid_json")
