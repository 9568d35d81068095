"""The stream of an engine that goes on where another one was lost, as one stream for the client."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from typing_extensions import override

from tessera.gateway.http.event_fields import TooManyValuesError, cut_fields, cut_items
from tessera.gateway.http.sse import EventRelay, StreamFormat, event_data, split_events
from tessera.gateway.http.token_counts import TokenCounts, Usage

DONE = b"data: [DONE]\n\n"
# Of rewritten events, which are held before there are more: they are larger than the engine's.
PART_BYTES = 2**14
# Of an event that is rewritten: its bytes are read ten times.
MAX_REWRITTEN_BYTES = 2**20
# Of a character of space, as it is kept.
_SPACE_BYTES = 2

_content = msgspec.json.Decoder(str | None)
_usage = msgspec.json.Decoder(Usage)
_encode = msgspec.json.encode
_NULL = msgspec.Raw(b"null")
_NOTHING = (_NULL, msgspec.Raw(b'""'), None, "")
# What begins a stream. In a text, the quotes are escaped.
_ROLE, _PROMPT = b'"role"', b'"prompt_token_ids"'


@dataclass(slots=True, kw_only=True)
class Joint:
    """Where a stream goes on."""

    head: Mapping[str, msgspec.Raw]
    """The fields that all events of the stream share."""
    tokens: int
    """Those that came before, which are part of the next engine's prompt."""
    is_checked: bool = True
    """The next engine said how it reads them."""
    repeated: str = ""
    """Space that the client has, and that the next engine generates again; less as it does."""
    matched: int = 0
    """Characters of it that came again."""
    resumed: int
    """How often the stream went on."""

    @property
    def waiting_bytes(self) -> int:
        """Return the bytes that wait for the next engine."""
        return _SPACE_BYTES * len(self.repeated)

    def total(self, counts: TokenCounts) -> TokenCounts:
        """Return what the whole stream used, by what its last engine counted.

        What the first engine had in its cache is not known, since it did not come to say it.
        """
        return TokenCounts(
            input=max(0, counts.input - self.tokens),
            output=counts.output + self.tokens,
            reasoning=counts.reasoning,
        )


def resumed_comment(times: int) -> bytes:
    """Return what a client reads before the last event of a stream that went on elsewhere."""
    return b": x-tessera-resumed: %d\n\n" % times


class ContinuedEvents(EventRelay):
    """Takes the bytes of the next engine, and returns those of the same stream.

    Its events have the names of the stream's first ones, nothing that only begins a stream, and the
    usage of the whole. Those of more fields than `MAX_VALUES`, and larger ones than
    `MAX_REWRITTEN_BYTES`, pass as they are.
    """

    def __init__(self, stream_format: StreamFormat, joint: Joint, *, keep_usage: bool) -> None:
        super().__init__(stream_format, keep_usage=keep_usage)
        self._joint = joint
        self._unpassed_bytes = 0

    @override
    def parts(self, block: bytes) -> Iterator[bytes]:
        part, self._unpassed_bytes = bytearray(), len(block)
        # A client may read slowly: only what it has not got is kept, and once.
        events = deque(split_events(block))
        del block
        while events:
            self._unpassed_bytes -= len(events[0])
            part += self._rewritten(events.popleft())
            if len(part) > PART_BYTES:
                yield _drain(part)
        if part:
            yield _drain(part)

    @property
    @override
    def unpassed_bytes(self) -> int:
        return self._unpassed_bytes

    @property
    @override
    def total(self) -> TokenCounts | None:
        return None if self.counts is None else self._joint.total(self.counts)

    @property
    @override
    def waiting_bytes(self) -> int:
        return super().waiting_bytes + self._joint.waiting_bytes + self._unpassed_bytes

    def _rewritten(self, event: bytes) -> bytes:
        data = event_data(event)
        if data == b"[DONE]":
            return resumed_comment(self._joint.resumed) + event
        if len(data) > MAX_REWRITTEN_BYTES:
            return event
        try:
            fields = cut_fields(data)
            if "choices" in fields:
                fields["choices"] = self._choices(fields["choices"])
                if fields["choices"] is None:
                    return b""
            if fields.get("usage", _NULL) != _NULL:
                fields["usage"] = self._usage_of_all(fields["usage"])
        except (TooManyValuesError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # A comment, or of a shape that is not known here: it is the client's.
            return event
        fields.pop("prompt_token_ids", None)
        fields.update(self._joint.head)
        return b"data: %b\n\n" % _encode(fields)

    def _usage_of_all(self, text: msgspec.Raw) -> dict[str, Any]:
        usage = cut_fields(text)
        total = self._joint.total(_usage.decode(text).counts())
        usage["prompt_tokens"], usage["completion_tokens"] = total.input, total.output
        usage["total_tokens"] = total.input + total.output
        if usage.get("prompt_tokens_details", _NULL) != _NULL:
            usage["prompt_tokens_details"] = {"cached_tokens": total.cached}
        return usage

    def _choices(self, choices: msgspec.Raw) -> Any:
        """Return choices without what begins a stream; None where they are nothing else."""
        text = bytes(choices)
        is_first = self._joint.repeated or _ROLE in text or _PROMPT in text
        if not is_first or choices == _NULL:
            return choices
        items = cut_items(choices)
        continued = [choice for choice in map(self._continued, items) if choice is not None]
        return continued if continued or not items else None

    def _continued(self, choice: msgspec.Raw) -> dict[str, Any] | None:
        """Return a choice without what begins a stream; None if it is nothing else."""
        changed = cut_fields(choice)
        if "prompt_token_ids" in changed:
            changed["prompt_token_ids"] = None
        if changed.get("delta", _NULL) == _NULL:
            return changed
        delta = cut_fields(changed["delta"])
        is_first = delta.pop("role", None) is not None
        if self._joint.repeated and "content" in delta:
            is_first = True
            delta["content"] = self._without_repeated(delta["content"])
        if not is_first:
            return changed
        is_end = changed.get("finish_reason", _NULL) != _NULL
        if not is_end and all(value in _NOTHING for value in delta.values()):
            return None
        changed["delta"] = delta
        return changed

    def _without_repeated(self, content: msgspec.Raw) -> str | None:
        text: str | None = _content.decode(content)
        if text is None:
            return None
        joint = self._joint
        repeated = joint.repeated[joint.matched : joint.matched + len(text)]
        common = len(repeated)
        if not text.startswith(repeated):
            # How many characters both begin with, without a look at each.
            common = bisect_left(range(1, common), True, key=lambda n: text[:n] != repeated[:n])
        joint.matched += common
        # Where the text goes on otherwise, nothing more is a repetition.
        if common < len(text) or joint.matched == len(joint.repeated):
            joint.repeated = ""
        return text[common:]


def _drain(part: bytearray) -> bytes:
    """Return what is in it, and leave nothing there."""
    data = bytes(part)
    part.clear()
    return data
