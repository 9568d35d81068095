"""Thinking that its maker signed or encrypted goes to who made it alone, and is else left out.

The gateway remembers no answer. So it puts a mark in front of what a provider signed, and takes it
off again in a request for the same provider; what has another mark or none is left out. The mark is
a digest of the name and the address of the provider, and no secret: a client that marks something
itself only sends its own text to a provider that it may use, which checks its signature as ever.
Nothing of other tenants is in it, and a provider whose address changed gets nothing of the former.

Of chat completions no field is signed, and what a model thought is left out of its next request.
"""

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec

from tessera.domain.gateway.directory import OfferedProvider
from tessera.gateway.bodies.json_values import each_item, with_fields
from tessera.gateway.http.sse import split_events
from tessera.gateway.outside.fields import NULL
from tessera.gateway.refusals import invalid_request

_DIGEST_BYTES = 8
_PREFIX = b"tessera-thinking-"
# A quotation mark within a text has a backslash in front, and what follows one that ends a text is
# no letter: so these are names of fields. Empty texts are the beginnings of streams.
_SIGNATURE = re.compile(rb'((?<!\\)"(?:signature|data)"\s*:\s*")(?!")')
_ENCRYPTED = re.compile(rb'((?<!\\)"encrypted_content"\s*:\s*")(?!")')
_SIGNED_EVENTS = (b'"signature_delta"', b'"redacted_thinking"')
_TYPES = ("thinking", "redacted_thinking")
_MARKED = b'"' + _PREFIX


class _TypedBlock(msgspec.Struct, gc=False):
    type: str = ""


class _MessageContent(msgspec.Struct, gc=False):
    content: msgspec.Raw = NULL


class _Conversations(msgspec.Struct, gc=False):
    input: msgspec.Raw = NULL
    messages: msgspec.Raw = NULL


_block = msgspec.json.Decoder(_TypedBlock)
_message = msgspec.json.Decoder(_MessageContent)
_conversation = msgspec.json.Decoder(_Conversations)


def thinking_mark(provider: OfferedProvider) -> bytes:
    """Return what stands in front of the signatures of a provider."""
    name = f"{provider.name} {provider.base_url}"
    digest = blake2b(name.encode(), digest_size=_DIGEST_BYTES)
    return b"%b%b." % (_PREFIX, digest.hexdigest().encode())


def unmarked(signature: msgspec.Raw | None, mark: bytes) -> msgspec.Raw | None:
    """Return a signature as its maker gave it; None where that is another one."""
    if signature is None or not bytes(signature).startswith(b'"' + mark):
        return None
    # Clients join the pieces of a stream, of which each has a mark.
    return msgspec.Raw(bytes(signature).replace(mark, b""))


def mark_events(path: str, events: bytes, mark: bytes) -> bytes:
    """Return whole events of a stream with marked signatures."""
    if path == "/v1/responses":
        return _ENCRYPTED.sub(rb"\1" + mark, events) if b"encrypted_content" in events else events
    if path != "/v1/messages" or not any(name in events for name in _SIGNED_EVENTS):
        return events
    return b"".join(
        _SIGNATURE.sub(rb"\1" + mark, event)
        if any(name in event for name in _SIGNED_EVENTS)
        else event
        for event in split_events(events)
    )


def mark_answer(path: str, body: bytes, mark: bytes) -> bytes:
    """Return an answer that is no stream with marked signatures.

    Raises msgspec.DecodeError where it has another shape.
    """
    if path == "/v1/responses":
        return _ENCRYPTED.sub(rb"\1" + mark, body)
    if path != "/v1/messages" or b"thinking" not in body:
        return body
    content = memoryview(_message.decode(body).content)
    if bytes(content[:1]) != b"[":
        return body
    # The input of a tool may have fields of any name.
    blocks = [
        msgspec.Raw(_SIGNATURE.sub(rb"\1" + mark, bytes(block)))
        if _block.decode(block).type in _TYPES
        else msgspec.Raw(block)
        for block in each_item(content)
    ]
    return with_fields(body, {"content": blocks})


def without_marked(path: str, body: bytes) -> bytes:
    """Return the body of a request for an engine of the cluster, which takes nothing signed.

    All else is byte by byte as it came. Raises RequestError for what is no conversation.
    """
    if _MARKED not in body:
        return body
    try:
        conversation = _conversation.decode(body)
        if path == "/v1/responses":
            return with_fields(body, {"input": _unsigned(conversation.input)})
        if path != "/v1/messages":
            return body
        messages = [_without_blocks(bytes(each)) for each in _items(conversation.messages)]
        return with_fields(body, {"messages": messages})
    except msgspec.DecodeError as error:
        raise invalid_request(f"the body: {error}") from None


def _without_blocks(message: bytes) -> msgspec.Raw:
    if _MARKED in message:
        content = _unsigned(_message.decode(message).content)
        message = with_fields(message, {"content": content})
    return msgspec.Raw(message)


def _unsigned(value: msgspec.Raw) -> Any:
    if bytes(memoryview(value)[:1]) != b"[":
        return value
    items = (bytes(item) for item in _items(value))
    return [
        msgspec.Raw(item)
        for item in items
        if _MARKED not in item or _block.decode(item).type not in (*_TYPES, "reasoning")
    ]


def _items(value: msgspec.Raw) -> Iterator[memoryview]:
    return each_item(memoryview(value))
