"""Thinking that its maker signed or encrypted goes to who made it alone, and is else left out.

The gateway remembers no answer. So it puts a mark in front of what a provider signed, and takes it
off again in a request for the same provider; what has another mark or none is left out. The mark is
a digest of the name and the address of the provider, and no secret: a client that marks something
itself only sends its own text to a provider that it may use, which checks its signature as ever.
Nothing of other tenants is in it, and a provider whose address changed gets nothing of the former.

Of chat completions the signatures of calls and of `reasoning_details` are marked. What a model
thought without a signature has no place for a mark; `outside/chat_state.py` says who gets it.
"""

from hashlib import blake2b
from typing import Any

import msgspec

from tessera.domain.gateway.directory import OfferedProvider
from tessera.gateway.bodies.json_values import NULL, each_item, with_fields
from tessera.gateway.refusals import invalid_request

_DIGEST_BYTES = 8
_PREFIX = b"tessera-thinking-"
_MARKED = b'"' + _PREFIX
_TYPES = ("thinking", "redacted_thinking", "reasoning")


class _TypedBlock(msgspec.Struct, gc=False):
    type: str = ""


class _MessageContent(msgspec.Struct, gc=False):
    content: msgspec.Raw = NULL


class _Conversations(msgspec.Struct, gc=False):
    input: msgspec.Raw = NULL
    messages: msgspec.Raw = NULL


_block = msgspec.json.Decoder(_TypedBlock)
_message = msgspec.json.Decoder(_MessageContent)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_conversations = msgspec.json.Decoder(_Conversations)
_text = msgspec.json.Decoder(str)


def thinking_mark(provider: OfferedProvider) -> bytes:
    """Return what stands in front of the signatures of a provider."""
    name = f"{provider.name} {provider.spec.base_url}"
    digest = blake2b(name.encode(), digest_size=_DIGEST_BYTES)
    return b"%b%b." % (_PREFIX, digest.hexdigest().encode())


def unmarked(signature: msgspec.Raw | None, mark: bytes) -> msgspec.Raw | None:
    """Return a signature as its maker gave it; None where that is another one."""
    if signature is None or not bytes(signature).startswith(b'"' + mark):
        return None
    # Clients join the pieces of a stream, of which each has a mark. In JSON a mark may stand behind
    # a backslash, which belongs to its first letter.
    text: str = _text.decode(signature)
    return msgspec.Raw(msgspec.json.encode(text.replace(mark.decode(), "")))


def is_thinking(block: bytes | memoryview) -> bool:
    """Return whether a block or an item is what its maker may have signed."""
    return _block.decode(block).type in _TYPES


def is_marked(body: bytes) -> bool:
    """Return whether a body may have something that a provider signed."""
    return _MARKED in body


def without_marked(path: str, body: bytes) -> bytes:
    """Return the body of a request for an engine of the cluster, which takes nothing signed.

    All else is byte by byte as it came. Raises RequestError for what is no conversation.
    """
    without = _WITHOUT_MARKED.get(path)
    if not is_marked(body) or (without is None and path != "/v1/responses"):
        return body
    try:
        conversations = _conversations.decode(body)
        if without is None:
            return with_fields(body, {"input": _unsigned(conversations.input)})
        items = each_item(memoryview(conversations.messages))
        messages = [without(bytes(each)) for each in items]
        return with_fields(body, {"messages": messages})
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_request(f"the body: {error}") from None


def _without_blocks(message: bytes) -> msgspec.Raw:
    if is_marked(message):
        content = _unsigned(_message.decode(message).content)
        message = with_fields(message, {"content": content})
    return msgspec.Raw(message)


def _unsigned(value: msgspec.Raw) -> Any:
    if bytes(memoryview(value)[:1]) != b"[":
        return value
    items = map(bytes, each_item(memoryview(value)))
    return [msgspec.Raw(item) for item in items if not (is_marked(item) and is_thinking(item))]


def _without_state(message: bytes) -> msgspec.Raw:
    """Return a message of a chat without the fields that have a mark; its text stays."""
    if is_marked(message):
        fields = _fields.decode(message)
        changes: dict[str, Any] = {
            name: NULL for name in fields if name != "content" and is_marked(bytes(fields[name]))
        }
        if "tool_calls" in changes:
            calls = map(bytes, each_item(memoryview(fields["tool_calls"])))
            changes["tool_calls"] = list(map(_without_call_state, calls))
        message = with_fields(message, changes)
    return msgspec.Raw(message)


def _without_call_state(call: bytes) -> msgspec.Raw:
    if is_marked(call):
        fields = _fields.decode(call)
        marked = (name for name in fields if is_marked(bytes(fields[name])))
        call = with_fields(call, {name: NULL for name in marked if name != "function"})
    return msgspec.Raw(call)


_WITHOUT_MARKED = {"/v1/chat/completions": _without_state, "/v1/messages": _without_blocks}
