"""The stream of an engine that goes on where another one was lost, as one stream for the client."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import msgspec
from typing_extensions import override

from tessera.gateway.http.sse import EventRelay, StreamFormat, event_data, split_events
from tessera.gateway.http.token_counts import TokenCounts, Usage

DONE = b"data: [DONE]\n\n"
# Of an event, the choices with more bytes pass as they are.
_MAX_CHOICES_BYTES = 2**16

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_content = msgspec.json.Decoder(str | None)
_usage = msgspec.json.Decoder(Usage)
_encode = msgspec.json.encode
_NULL = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """Where a stream goes on."""

    head: Mapping[str, msgspec.Raw]
    """The fields that all events of the stream share."""
    tokens: int
    """Those that came before, which are part of the next engine's prompt."""
    is_checked: bool = True
    """The next engine said how it reads them."""
    repeated: str = ""
    """Space that the client has, and that the next engine generates again."""
    resumed: int
    """How often the stream went on."""

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
    usage of the whole.
    """

    def __init__(self, stream_format: StreamFormat, joint: Joint, *, keep_usage: bool) -> None:
        super().__init__(stream_format, keep_usage=keep_usage)
        self._joint = joint
        self._repeated = joint.repeated

    @override
    def feed(self, data: bytes) -> bytes:
        block = super().feed(data)
        return b"".join(map(self._rewritten, split_events(block))) if block else b""

    @property
    @override
    def total(self) -> TokenCounts | None:
        return None if self.counts is None else self._joint.total(self.counts)

    def _rewritten(self, event: bytes) -> bytes:
        data = event_data(event)
        if data == b"[DONE]":
            return resumed_comment(self._joint.resumed) + event
        try:
            fields: dict[str, Any] = dict(_object.decode(data))
            choices = bytes(fields.get("choices", b"null"))
            if len(choices) <= _MAX_CHOICES_BYTES and choices not in (b"null", b"[]"):
                fields["choices"] = list(
                    filter(None, map(self._continued, _choices.decode(choices)))
                )
                if not fields["choices"]:
                    return b""
            if bytes(fields.get("usage", b"null")) != b"null":
                fields["usage"] = self._usage_of_all(fields["usage"])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # A comment, or of a shape that is not known here: it is the client's.
            return event
        fields.pop("prompt_token_ids", None)
        return b"data: %b\n\n" % _encode({**fields, **self._joint.head})

    def _usage_of_all(self, text: msgspec.Raw) -> dict[str, Any]:
        usage: dict[str, Any] = dict(_object.decode(text))
        total = self._joint.total(_usage.decode(text).counts())
        usage["prompt_tokens"], usage["completion_tokens"] = total.input, total.output
        usage["total_tokens"] = total.input + total.output
        if bytes(usage.get("prompt_tokens_details", b"null")) != b"null":
            usage["prompt_tokens_details"] = {"cached_tokens": total.cached}
        return usage

    def _continued(self, choice: dict[str, msgspec.Raw]) -> dict[str, Any] | None:
        """Return a choice without what begins a stream; None if it is nothing else."""
        changed: dict[str, Any] = dict(choice)
        if "prompt_token_ids" in changed:
            changed["prompt_token_ids"] = None
        if bytes(choice.get("delta", _NULL)) == b"null":
            return changed
        delta: dict[str, Any] = dict(_object.decode(choice["delta"]))
        is_first = delta.pop("role", None) is not None
        if self._repeated and "content" in delta:
            is_first = True
            delta["content"] = self._without_repeated(delta["content"])
        if not is_first:
            return changed
        texts = (bytes(_encode(value)) for value in delta.values())
        is_end = bytes(choice.get("finish_reason", _NULL)) != b"null"
        if not is_end and all(text in (b"null", b'""') for text in texts):
            return None
        return {**changed, "delta": delta}

    def _without_repeated(self, content: msgspec.Raw) -> str | None:
        text: str | None = _content.decode(content)
        if text is None:
            return None
        pairs = zip(text, self._repeated, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        # Where the text goes on otherwise, nothing more is a repetition.
        self._repeated = self._repeated[common:] if common == len(text) else ""
        return text[common:]
