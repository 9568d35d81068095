"""Where the turns of a conversation are in the fields of a body."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from tessera.gateway.bodies.json_values import MAX_TEXTS, first_items


class _Message(msgspec.Struct, gc=False):
    role: str = ""
    type: str = ""


_message = msgspec.json.Decoder(_Message)
# Of this size, most conversations are read faster as a list of all, and all take 2 ms at most.
_SMALL_BYTES = 2**15
_all_messages = msgspec.json.Decoder(list[msgspec.Raw])


class ConversationParts(NamedTuple):
    """Parts of a prompt, as its body has them."""

    pieces: Sequence[memoryview]
    """Its fields, of which the conversation is message by message."""
    first: int = 0
    """Which of them is the first user message, or all where there is none."""
    earlier: int = 0
    """How many come before what the client added to the last answer; 0 without an answer."""


def conversation_parts(
    values: Sequence[memoryview], max_opening_bytes: int | None = None
) -> ConversationParts:
    """Return the parts of a prompt in several fields, whose last one has the conversation.

    That is a list of messages, or one text, of which the beginning may count alone.
    """
    *fields, conversation = values
    whole = ConversationParts([*fields, conversation[:max_opening_bytes]], len(fields))
    if max_opening_bytes is not None or bytes(conversation[:1]) != b"[":
        return whole
    if len(conversation) <= _SMALL_BYTES:
        messages = _all_messages.decode(conversation)[:MAX_TEXTS]
    else:
        messages = first_items(conversation)
    first = next((at for at, each in enumerate(messages) if _read(each).role == "user"), None)
    if first is None:
        return whole
    end = len(messages)
    # An answer that the client began itself is to be continued.
    while end and _is_answer(messages[end - 1]):
        end -= 1
    while end and not _is_answer(messages[end - 1]):
        end -= 1
    return ConversationParts(
        pieces=[*fields, *(memoryview(each) for each in messages)],
        first=len(fields) + first,
        earlier=len(fields) + end if end else 0,
    )


def _is_answer(text: msgspec.Raw) -> bool:
    """Return whether a message is the model's: calls of functions have a type instead of a role."""
    message = _read(text)
    if message.role or not message.type:
        return message.role == "assistant"
    return not message.type.endswith("_output")


def _read(text: msgspec.Raw) -> _Message:
    try:
        return _message.decode(text)
    except msgspec.ValidationError:
        # Engines refuse it.
        return _Message()
