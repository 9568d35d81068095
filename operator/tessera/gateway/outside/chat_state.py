"""State that a model made in a chat, as its provider gets it back with the next request.

What its maker signed has a mark, and returns to this maker alone: signatures and encrypted parts of
`reasoning_details`, and the signature in `extra_content` of a call. Plain reasoning has no place
for a mark. It goes to dialects whose documentation asks for it, within turns that call tools.
"""

import re
from hashlib import blake2b
from typing import Any

import msgspec

from tessera.domain.providers.dialects import Dialect
from tessera.gateway.bodies.signed import unmarked
from tessera.gateway.outside import fields as listed
from tessera.gateway.refusals import invalid_request

ASSISTANT = msgspec.Raw(b'"assistant"')
_TOOL = msgspec.Raw(b'"tool"')
_DETAILS = "reasoning_details"
_SIGNED = ("signature", "data")
_ID_LETTERS = 9
_EMPTY = msgspec.Raw(b'""')
_text = msgspec.json.Decoder(str)

_Fields = dict[str, Any]


def may_have_state(body: bytes) -> bool:
    """Return whether a body may have state that a model made."""
    return b'"reasoning' in body or b'"extra_content"' in body


def fitting_id(value: msgspec.Raw, pattern: str) -> str:
    """Return the id of a call, or a digest where a provider would refuse it: always the same one.

    Nine letters and digits are an id for all of them.
    """
    try:
        text = _text.decode(value)
    except msgspec.ValidationError as error:
        raise invalid_request(f"id: {error}", "messages") from None
    if re.fullmatch(pattern, text):
        return text
    return blake2b(text.encode(), digest_size=_ID_LETTERS).hexdigest()[:_ID_LETTERS]


class ChatState:
    """Cuts the state of the messages of one chat, in their order."""

    def __init__(self, dialect: Dialect, mark: bytes) -> None:
        """Take what stands in front of what the provider signed."""
        self._dialect, self._mark = dialect, mark
        self._calls_tools = False
        self.is_missing = False
        """Whether a call of tools lacks the reasoning without which the provider refuses it."""

    def cut(self, message: _Fields, details: list[msgspec.Raw]) -> None:
        """Leave what this provider takes back in a message, whose `reasoning_details` are given."""
        plain = {name: message.pop(name, None) for name in listed.CHAT_REASONING.names}
        self._fit_id(message, "tool_call_id")
        if message.get("role") != ASSISTANT:
            self._calls_tools = self._calls_tools and message.get("role") == _TOOL
            return
        calls = message.get("tool_calls") or ()
        self._calls_tools = self._calls_tools or bool(calls)
        names = self._dialect.returned_reasoning
        reasoning = {name: plain[name] for name in names if plain.get(name) is not None}
        if calls and self._dialect.requires_reasoning:
            self._complete(reasoning)
        if self._calls_tools:
            message.update(reasoning)
        if own := [entry for item in details if (entry := self._detail(item)) is not None]:
            message[_DETAILS] = own
        for call in calls:
            self._cut_call(call)

    def _complete(self, reasoning: _Fields) -> None:
        """Give a call of another model what the provider takes for its reasoning."""
        others = self._dialect.reasoning_of_others
        if others:
            name = self._dialect.returned_reasoning[0]
            if reasoning.get(name, _EMPTY) == _EMPTY:
                reasoning[name] = others
        elif not reasoning:
            self.is_missing = True

    def _detail(self, item: msgspec.Raw) -> _Fields | None:
        entry = listed.CHAT_DETAIL.cut(item)
        names = [name for name in _SIGNED if name in entry]
        if not names and _DETAILS not in self._dialect.returned_reasoning:
            return None
        for name in names:
            entry[name] = unmarked(entry[name], self._mark)
            if entry[name] is None:
                return None
        return entry

    def _fit_id(self, fields: _Fields, name: str) -> None:
        if self._dialect.call_ids and name in fields:
            fields[name] = fitting_id(fields[name], self._dialect.call_ids)

    def _cut_call(self, call: _Fields) -> None:
        self._fit_id(call, "id")
        extra = call.pop("extra_content", None)
        google = listed.CHAT_EXTRA.cut(extra).get("google") if extra is not None else None
        signed = listed.CHAT_GOOGLE.cut(google) if google is not None else {}
        own = unmarked(signed.get("thought_signature"), self._mark)
        if signature := own or self._dialect.signature_of_others:
            call["extra_content"] = {"google": {"thought_signature": signature}}
