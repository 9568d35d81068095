"""Reads the opening of a request, by which routes choose, from its fields."""

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple, cast

import msgspec

from tessera.domain.gateway.coding_clients import named_session
from tessera.domain.model.media_tokens import MEDIA_FIELDS
from tessera.domain.routes.opening import MAX_OPENING_CHARACTERS, RequestOpening
from tessera.gateway.bodies.json_values import each_item
from tessera.gateway.bodies.parsing import RequestFields
from tessera.gateway.refusals import RequestError

# More before the first message of the user, or in it, are not looked at.
_MAX_MESSAGES = 32
_MAX_PARTS = 256
# A character may be two escapes of six bytes.
_CHARACTER_BYTES = 12
_MAX_TEXT_BYTES = _CHARACTER_BYTES * (MAX_OPENING_CHARACTERS + 2)
# As many of a message tell it from others.
_MAX_DIGESTED_BYTES = 2**16
_DIGEST_BYTES = 16
_TAGS_HEADER = b"x-tessera-tags"
_CONVERSATIONS = ("messages", "input", "prompt")
_SYSTEMS = ("system", "instructions")
_FILLED = re.compile(rb"\s*+\[\s*+[^\s\]]")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NONE = msgspec.Raw()


class _UserMessage(msgspec.Struct, gc=False):
    role: str = ""
    content: msgspec.Raw = _NONE


class _TextPart(msgspec.Struct, gc=False):
    text: msgspec.Raw = _NONE


class _Source(msgspec.Struct, gc=False):
    type: str = ""


_Part = cast(
    "type[_TextPart]",
    msgspec.defstruct(
        "_Part", [(name, msgspec.Raw, _NONE) for name in MEDIA_FIELDS], bases=(_TextPart,), gc=False
    ),
)
_message = msgspec.json.Decoder(_UserMessage)
_part = msgspec.json.Decoder(_Part)
_source = msgspec.json.Decoder(_Source)
_text: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)


class _First(NamedTuple):
    """The first message of the user."""

    beginning: Sequence[memoryview]
    """What comes before it."""
    content: memoryview
    """Of a conversation without one, all of it."""
    text: str = ""
    media: bool = False


def read_opening(
    fields: RequestFields, headers: Mapping[bytes, bytes], tenant: str | None
) -> RequestOpening:
    """Return what every turn of a conversation carries.

    Of the body it reads what comes before the first message of the user, and that message, twice
    at most: of large bodies that is done in their turns. A message that cannot be read is an empty
    text, since the engine judges it. Without a tenant it has no session.
    """
    first = _first_message(_given(fields, _CONVERSATIONS))
    return RequestOpening(
        text=first.text,
        tools=offers_tools(fields),
        media=first.media,
        tags=_tags(headers.get(_TAGS_HEADER, b"")),
        session=b"" if tenant is None else _session(fields, headers, tenant, first),
    )


def offers_tools(fields: RequestFields) -> bool:
    """Return whether a request offers tools."""
    return _FILLED.match(_given(fields, ("tools",))) is not None


def _session(
    fields: RequestFields, headers: Mapping[bytes, bytes], tenant: str, first: _First
) -> bytes:
    digest = blake2b(tenant.encode(), digest_size=_DIGEST_BYTES)
    session = named_session(headers)
    if session is not None:
        digest.update(b"\0session\0" + session)
    else:
        # A client that marks the newest messages for its cache writes one text in two ways.
        content = first.text.encode() or first.content
        for part in (_given(fields, _SYSTEMS), *first.beginning, content):
            digest.update(b"\0")
            digest.update(part[:_MAX_DIGESTED_BYTES])
    return digest.digest()


def _given(fields: RequestFields, names: tuple[str, ...]) -> memoryview:
    for name in names:
        value = memoryview(getattr(fields, name, b""))
        if value:
            return value
    return memoryview(b"")


def _tags(header: bytes) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in header.decode("latin-1").split(",") if pair)
    return {name: value for name, _, value in pairs}


def _first_message(conversation: memoryview) -> _First:
    beginning: list[memoryview] = []
    if bytes(conversation[:1]) != b"[":
        return _First(beginning, conversation, *_text_and_media(conversation))
    for item in _items(conversation, _MAX_MESSAGES):
        content = _content(item)
        if content is not None:
            return _First(beginning, content, *_text_and_media(content))
        beginning.append(item)
    return _First(beginning, conversation)


def _items(array: memoryview, most: int) -> Iterator[memoryview]:
    try:
        yield from islice(each_item(array), most)
    except RequestError:
        return


def _content(item: memoryview) -> memoryview | None:
    """Return what the user says in an item of a conversation, or of a list of prompts.

    None where another one speaks.
    """
    try:
        message = _message.decode(item)
    except _UNREADABLE:
        return item if bytes(item[:1]) == b'"' else None
    return memoryview(message.content) if message.role == "user" else None


def _text_and_media(content: memoryview) -> tuple[str, bool]:
    texts: list[str] = []
    size, has_media = 0, False
    try:
        if bytes(content[:1]) != b"[":
            return _beginning(content), False
        for item in _items(content, _MAX_PARTS):
            text = item
            if bytes(item[:1]) != b'"':
                part = _part.decode(item)
                has_media = has_media or _has_media(part)
                text = memoryview(part.text)
            if text and size <= MAX_OPENING_CHARACTERS:
                texts.append(_beginning(text))
                size += len(texts[-1])
    except _UNREADABLE:
        # It ends here, so that a body of such parts takes no longer.
        return "", has_media
    return "\n".join([text for text in texts if text])[:MAX_OPENING_CHARACTERS], has_media


def _beginning(value: memoryview) -> str:
    """Return the beginning of a text, nothing of null.

    Raises msgspec.DecodeError, UnicodeDecodeError or RecursionError where it is none.
    """
    if len(value) <= _MAX_TEXT_BYTES:
        return (_text.decode(value) or "")[:MAX_OPENING_CHARACTERS]
    cut = bytes(value[:_MAX_TEXT_BYTES])
    # Within a character it leaves what is no text.
    for end in range(_MAX_TEXT_BYTES, _MAX_TEXT_BYTES - _CHARACTER_BYTES, -1):
        try:
            return (_text.decode(b'%b"' % cut[:end]) or "")[:MAX_OPENING_CHARACTERS]
        except _UNREADABLE:
            continue
    raise msgspec.DecodeError


def _has_media(part: msgspec.Struct) -> bool:
    for name in MEDIA_FIELDS:
        value = getattr(part, name)
        if value is _NONE or bytes(memoryview(value)[:5]) == b"null":
            continue
        # Documents may be plain texts.
        if name != "source" or _source.decode(value).type != "text":
            return True
    return False
