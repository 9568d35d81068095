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

ASSISTANT = msgspec.Raw(b'"assistant"')
_TOOL = msgspec.Raw(b'"tool"')
_DETAILS = "reasoning_details"
_SIGNED = ("signature", "data")

_Fields = dict[str, Any]


def may_have_state(body: bytes) -> bool:
    """Return whether a body may have state that a model made."""
    return b'"reasoning' in body or b'"extra_content"' in body


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
        if self._calls_tools:
            message.update(reasoning)
        if calls and self._dialect.requires_reasoning and not reasoning:
            self.is_missing = True
        if own := [entry for item in details if (entry := self._detail(item)) is not None]:
            message[_DETAILS] = own
        for call in calls:
            self._cut_call(call)

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
        """Replace an id of a call that the provider would refuse, everywhere by the same one."""
        letters, value = self._dialect.call_id_letters, fields.get(name)
        fits = rb'"[a-zA-Z0-9]{%d}"' % letters
        if value is not None and letters and not re.fullmatch(fits, value):
            fields[name] = blake2b(value, digest_size=letters).hexdigest()[:letters]

    def _cut_call(self, call: _Fields) -> None:
        self._fit_id(call, "id")
        extra = call.pop("extra_content", None)
        google = listed.CHAT_EXTRA.cut(extra).get("google") if extra is not None else None
        signed = listed.CHAT_GOOGLE.cut(google) if google is not None else {}
        own = unmarked(signed.get("thought_signature"), self._mark)
        if signature := own or self._dialect.signature_of_others:
            call["extra_content"] = {"google": {"thought_signature": signature}}
