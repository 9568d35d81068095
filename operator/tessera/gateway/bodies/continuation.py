"""A stream that goes on at another engine: which may, and what that engine is asked for.

A completion goes on exactly: its prompt is followed by the text so far, or by the token ids, where
the client asked for them. What was drawn before from a `seed` is not drawn again, and the penalties
of presence and frequency count from there on. A chat goes on about as it would have: the template
renders the text so far as the beginning of the assistant's turn.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Annotated, Any, NamedTuple

import msgspec

from tessera.gateway.bodies.delivered import Delivered, NotContinuableError
from tessera.gateway.bodies.json_values import with_fields
from tessera.gateway.bodies.parsing import ChatFields, CompletionFields, RequestFields

# Larger ones would hold too much for as long as their streams run: it has 64,000 tokens of text.
MAX_BODY_BYTES = 2**18
# A prompt of 250,000 tokens.
MAX_TOKENIZE_BYTES = 2**20

# An engine that goes on does not know what came before: a grammar, the reasoning, the probabilities
# of tokens, a part of a stop string that was shown.
_NOT_GIVEN = frozenset({b"null"})
_OFF = frozenset({b"null", b"false"})
_ON = frozenset({b"null", b"true"})
_TEXT_FORMATS = frozenset({b"null", b'{"type":"text"}', b'{"type": "text"}'})
_TOOL_CHOICES = frozenset({b"null", b'"auto"', b'"none"'})
_OF_ALL: Mapping[str, frozenset[bytes]] = {
    "echo": _OFF,
    "include_stop_str_in_output": _OFF,
    "length_penalty": _NOT_GIVEN,
    "logprob_token_ids": _NOT_GIVEN,
    "prompt_logprobs": _NOT_GIVEN,
    "repetition_detection": _NOT_GIVEN,
    "response_format": _TEXT_FORMATS,
    "structured_outputs": _NOT_GIVEN,
    "thinking_token_budget": _NOT_GIVEN,
    "truncate_prompt_tokens": _NOT_GIVEN,
    "truncation_side": _NOT_GIVEN,
    "use_beam_search": _OFF,
}
_OF_CHAT: Mapping[str, frozenset[bytes]] = {
    **_OF_ALL,
    "add_generation_prompt": _ON,
    "audio": _NOT_GIVEN,
    "continue_final_message": _OFF,
    "function_call": _NOT_GIVEN,
    "functions": _NOT_GIVEN,
    "logprobs": _OFF,
    "modalities": frozenset({b"null", b'["text"]'}),
    "prediction": _NOT_GIVEN,
    "return_prompt_text": _OFF,
    "tool_choice": _TOOL_CHOICES,
    "top_logprobs": frozenset({b"null", b"0"}),
    "web_search_options": _NOT_GIVEN,
}
_OF_COMPLETION: Mapping[str, frozenset[bytes]] = {
    **_OF_ALL,
    "logprobs": _NOT_GIVEN,
    "prompt_embeds": _NOT_GIVEN,
    "suffix": _NOT_GIVEN,
}
_GIVEN_OF_CHAT, _GIVEN_OF_COMPLETION = attrgetter(*_OF_CHAT), attrgetter(*_OF_COMPLETION)
_ABSENT = msgspec.Raw()
# Without `max_tokens`, a completion ends after so many.
_COMPLETION_TOKENS = 16
# Of a chat, what decides on its prompt.
_TEMPLATE_FIELDS = ("model", "messages", "tools", "chat_template_kwargs", "add_special_tokens")
_PROMPT_FIELDS = ("model", "prompt", "add_special_tokens")

_MAX_DIGITS = 10

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_texts = msgspec.json.Decoder(list[str])
# A client may give others.
_token_ids = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]])
_text = msgspec.json.Decoder(str)
_NULL = msgspec.Raw(b"null")


def may_continue(fields: RequestFields, unlisted: str | None, body_bytes: int) -> bool:
    """Return whether the stream of a request may go on at another engine.

    `unlisted` is a field that is not known here. What is not text in the stream, such as a call of
    a tool, rules it out later.
    """
    if unlisted is not None or not fields.streams or body_bytes > MAX_BODY_BYTES:
        return False
    if isinstance(fields, ChatFields):
        given, allowed = _GIVEN_OF_CHAT(fields), _OF_CHAT
    elif isinstance(fields, CompletionFields) and _continues_prompt(fields):
        given, allowed = _GIVEN_OF_COMPLETION(fields), _OF_COMPLETION
    else:
        return False
    return fields.choices == 1 and all(
        bytes(memoryview(value)[:64]) in texts
        for value, texts in zip(given, allowed.values(), strict=True)
        if value != _ABSENT
    )


def _continues_prompt(fields: CompletionFields) -> bool:
    """Return whether what was generated can follow a prompt."""
    beginning = _beginning(fields.prompt)
    if not _is_ids(beginning):
        return beginning[:1] == b'"' or beginning[:2] == b'["'
    # Text cannot follow token ids.
    return bytes(memoryview(getattr(fields, "return_token_ids", _NULL))) == b"true"


def _beginning(prompt: msgspec.Raw) -> bytes:
    return bytes(memoryview(prompt)[:64]).translate(None, b" \t\r\n")[:2]


def _is_ids(beginning: bytes) -> bool:
    return beginning[:1] == b"[" and beginning[1:].isdigit()


def continued_body(body: bytes, delivered: Delivered, tokens: int) -> bytes | None:
    """Return what another engine is asked for after so many tokens; None if nothing is left.

    The body is the one that the first engine got. Raises NotContinuableError.
    """
    fields = _fields.decode(body)
    limit = _limit(fields)
    changes: dict[str, Any] = _with_answer(fields, delivered)
    if limit is not None:
        name, most = limit
        if tokens >= most:
            return None
        changes[name] = most - tokens
    if (least := _number(fields, "min_tokens")) is not None:
        changes["min_tokens"] = max(0, least - tokens)
    return with_fields(body, changes)


def last_events(delivered: Delivered, usage: tuple[int, int] | None) -> bytes:
    """Return the end of a stream that has all tokens that its client asked for.

    Behind it comes its usage, tokens of the prompt and of the answer, if it is wanted and known.
    """
    is_chat = b".chunk" in bytes(delivered.head.get("object", _NULL))
    piece: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
    choice = {"index": 0, **piece, "logprobs": None, "finish_reason": "length"}
    events: list[dict[str, Any]] = [{**delivered.head, "choices": [choice]}]
    if usage is not None:
        counts = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "total_tokens": sum(usage),
        }
        events.append({**delivered.head, "choices": [], "usage": counts})
    return b"".join(b"data: %b\n\n" % msgspec.json.encode(event) for event in events)


class TokenizeBodies(NamedTuple):
    """What `/tokenize` is asked about."""

    prompt: bytes
    continued: bytes
    """The prompt with the answer so far."""
    is_chat: bool
    """A template is between the request and its prompt."""


def tokenize_body(body: bytes, fields: RequestFields, served_name: str) -> tuple[bytes, int] | None:
    """Return what tells how many tokens a prompt has, and the bytes of all that is not in it.

    Templates may read those too, as a token each at most. None where it is not one text, or none
    that is short enough.
    """
    if len(body) > MAX_TOKENIZE_BYTES:
        return None
    is_chat = isinstance(fields, ChatFields)
    if not (is_chat or isinstance(fields, CompletionFields)):
        return None
    given = _fields.decode(body)
    names = (*_TEMPLATE_FIELDS, "add_generation_prompt") if is_chat else _PROMPT_FIELDS
    prompt: dict[str, Any] = {name: given.pop(name) for name in names if name in given}
    try:
        if not is_chat:
            prompt["prompt"] = _prompt_text(prompt)
    except (NotContinuableError, KeyError):
        return None
    prompt["model"] = served_name
    return msgspec.json.encode(prompt), sum(map(len, given.values()))


def tokenize_bodies(body: bytes, delivered: Delivered) -> TokenizeBodies | None:
    """Return what tells how many tokens the answer has so far.

    None where the engine gave the tokens, and no template is in between. Raises
    NotContinuableError.
    """
    fields = _fields.decode(body)
    is_chat = "messages" in fields
    if delivered.tokens and not is_chat:
        return None
    names = _TEMPLATE_FIELDS if is_chat else _PROMPT_FIELDS
    prompt: dict[str, Any] = {name: fields[name] for name in names if name in fields}
    if "prompt" in prompt:
        prompt["prompt"] = _prompt_text(fields)
    continued = {**prompt, **_with_answer(fields, delivered)}
    return TokenizeBodies(msgspec.json.encode(prompt), msgspec.json.encode(continued), is_chat)


def _with_answer(fields: Mapping[str, msgspec.Raw], delivered: Delivered) -> dict[str, Any]:
    """Return the fields of a request whose answer has begun."""
    if "messages" in fields:
        messages = bytes(fields["messages"]).rstrip()[:-1]
        if messages[:1] != b"[" or not messages[1:].strip():
            raise NotContinuableError("it has no messages")
        turn = msgspec.json.encode({"role": "assistant", "content": delivered.text})
        return {
            "messages": msgspec.Raw(b"%b,%b]" % (messages, turn)),
            "add_generation_prompt": False,
            "continue_final_message": True,
        }
    prompt = fields["prompt"]
    if _is_ids(_beginning(prompt)):
        try:
            _token_ids.decode(prompt)
        except msgspec.DecodeError as error:
            raise NotContinuableError(str(error)) from None
        ids = bytes(prompt).rstrip()[:-1], delivered.token_ids
        return {"prompt": msgspec.Raw(b"%b]" % b",".join(filter(None, ids)))}
    return {"prompt": _prompt_text(fields) + delivered.text}


def _prompt_text(fields: Mapping[str, msgspec.Raw]) -> str:
    """Return the only prompt of a completion."""
    prompt = fields["prompt"]
    try:
        if bytes(memoryview(prompt)[:1]) == b'"':
            return _text.decode(prompt)
        return _texts.decode(prompt)[0]
    except msgspec.DecodeError as error:
        raise NotContinuableError(str(error)) from None


def _limit(fields: Mapping[str, msgspec.Raw]) -> tuple[str, int] | None:
    """Return the field that limits the tokens, and the limit; None if it is the model's length."""
    if "messages" not in fields:
        if "max_tokens" not in fields:
            return "max_tokens", _COMPLETION_TOKENS
        names: tuple[str, ...] = ("max_tokens",)
    else:
        names = ("max_completion_tokens", "max_tokens")
    for name in names:
        if (most := _number(fields, name)) is not None:
            return name, most
    return None


def _number(fields: Mapping[str, msgspec.Raw], name: str) -> int | None:
    text = bytes(fields.get(name, _NULL))
    if not text.isdigit():
        return None
    if len(text) > _MAX_DIGITS:
        raise NotContinuableError(f"{name} has {len(text)} digits")
    return int(text)
