"""Relays server-sent events of an engine: byte by byte, save what the client did not ask for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tessera.api.text import counted
from tessera.domain.observed.drafts import DraftCounts
from tessera.gateway.http.token_counts import TokenCounts, Usage, draft_counts, merged

# An event with log-probabilities of a batch of tokens has some hundred KiB.
MAX_EVENT_BYTES = 4 * 2**20
# Of a stream in all: a comment each second lasts for hours.
MAX_EVENTS_WITHOUT_TOKEN = 10_000
MAX_BYTES_WITHOUT_TOKEN = 64 * 2**20
_MAX_LINES = 1000
_BLANK_LINE = b"\n\n"
_BLANK_LINE_CRLF = b"\r\n\r\n"
# Choices of more bytes than those of a role have tokens.
_MAX_PRELUDE_BYTES = 4096
# Of generated text, a token stands for about so many.
BYTES_PER_TOKEN = 4
# That are counted of what comes at once: those of 16 KiB, or of an event with many choices.
_MAX_TEXTS = 1000
_SPACE, _QUOTE = b' "'
# Of answers that are no stream, on all paths.
_ANSWER_TEXTS = (
    b'"content":', b'"text":', b'"reasoning_content":', b'"reasoning":', b'"thinking":',
    b'"name":', b'"arguments":',
)  # fmt: skip
# As engines write it. In a text, the quotes are escaped.
_ABORTED = (b'"finish_reason":"abort"', b'"finish_reason": "abort"')
_FIELD = b"data:"
_DONE = b"[DONE]"


class InvalidStreamError(Exception):
    """What the engine sent is no stream of events."""


class EventTooLargeError(InvalidStreamError):
    """An event has more bytes than the gateway keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFormat:
    """How the stream of a path begins, continues and ends."""

    ends: tuple[bytes, ...]
    """The data of its last event, or the line with that event's name."""
    delta: bytes
    """Occurs once in every event with generated tokens."""
    texts: tuple[bytes, ...]
    """Names of the fields that hold generated text, up to their colons."""
    preludes: tuple[bytes, ...] = ()
    """Lines with the names of events that come before the first token."""
    failures: tuple[bytes, ...] = ()
    """Lines with the names of events that report a failure."""
    failure: bytes = b""
    """The one of them without which clients do not read a failure that the gateway reports."""


_NULL = msgspec.Raw(b"null")


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    text: str | None = None
    delta: dict[str, Any] | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether it has neither a token nor an end."""
        delta = self.delta or {}
        generated = any(value for name, value in delta.items() if name != "role")
        return not (generated or self.text or self.finish_reason)


class _Inner(msgspec.Struct, gc=False):
    usage: Usage | None = None


class _Event(msgspec.Struct, gc=False):
    """What an event says; of its choices, which may be very many, no object is made."""

    choices: msgspec.Raw = _NULL
    usage: Usage | None = None
    message: _Inner | None = None
    response: _Inner | None = None
    error: msgspec.Raw = _NULL
    metrics: msgspec.Raw = _NULL

    @property
    def is_usage_alone(self) -> bool:
        return self.usage is not None and bytes(self.choices) == b"[]"

    @property
    def counts(self) -> TokenCounts | None:
        inner = self.message or self.response
        usage = self.usage or (inner.usage if inner else None)
        return None if usage is None else usage.counts()


class _Failure(msgspec.Struct, gc=False):
    error: msgspec.Raw = _NULL


_decoder = msgspec.json.Decoder(_Event)
_failure_decoder = msgspec.json.Decoder(_Failure)
_choices_decoder = msgspec.json.Decoder(list[_Choice])


class EventRelay:
    """Takes the bytes of an engine's stream and returns what goes to the client.

    Nothing is returned before the first event with a token, so that a stream that ends without one
    can still be sent to another replica. Nothing is returned after an error, an abort or the end.
    """

    def __init__(self, stream_format: StreamFormat, *, keep_usage: bool) -> None:
        self._format = stream_format
        self._marks = stream_format.ends + stream_format.failures
        self._keep_usage = keep_usage
        self._tail = bytearray()
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._idle_events = 0
        self._idle_bytes = 0
        self.started = False
        """The first token came."""
        self.prefilled = False
        """An event with a choice came, perhaps without a token that is shown."""
        self.ended = False
        """The stream ended as it should."""
        self.error: bytes | None = None
        """The event with which the engine reported a failure."""
        self.aborted = False
        """The engine gave the request up."""
        self.counts: TokenCounts | None = None
        """As the engine reported them."""
        self.drafts: DraftCounts | None = None
        """The same, with the counts of a stream's end."""
        self.deltas = 0
        """Events with generated tokens that were returned."""
        self._text_bytes = 0
        self.text_name = stream_format.texts[0]
        """Of the field that held the last text."""

    @property
    def closed(self) -> bool:
        """Return whether nothing more is to be relayed."""
        return self.ended or self.aborted or self.error is not None

    @property
    def tokens(self) -> int:
        """Return about how many tokens were returned: an event may have several of them."""
        return max(self.deltas, self._text_bytes // BYTES_PER_TOKEN)

    @property
    def text_bytes(self) -> int:
        """Return the bytes of generated text that were returned."""
        return self._text_bytes

    @property
    def total(self) -> TokenCounts | None:
        """Return what the whole stream used; None as long as no engine has said it."""
        return self.counts

    @property
    def counted_prompt(self) -> int | None:
        """Return the tokens of the prompt, once they are counted for good."""
        counts = self.total
        return (counts.input or None) if counts is not None else None

    @property
    def waiting_bytes(self) -> int:
        """Return the bytes that wait for the end of their event, or for the first token."""
        return len(self._tail) + self._held_bytes

    def feed(self, data: bytes) -> bytes:
        """Return the bytes for the client, which may be none.

        Raises InvalidStreamError.
        """
        if self.closed:
            return b""
        block = self._complete_events(data)
        if self.started and not self._has_signal(block):
            if not self._count(block):
                blank_lines = block.count(_BLANK_LINE) + block.count(_BLANK_LINE_CRLF)
                self._count_idle(blank_lines, len(block))
            return block
        return b"".join(self._relayed(split_events(block)))

    def parts(self, block: bytes) -> Iterator[bytes]:
        """Return a block that is relayed as the client gets it, in parts of which each may be
        held before the next is made.
        """
        return iter((block,))

    @property
    def unpassed_bytes(self) -> int:
        """Return the bytes of the last block of which no part was taken yet."""
        return 0

    def _complete_events(self, data: bytes) -> bytes:
        """Return all complete events, and keep the beginning of the next."""
        tail = self._tail
        if not tail and data.endswith(_BLANK_LINE):
            return data
        # A delimiter may have begun in what was searched before.
        searched = max(len(tail) - 3, 0)
        tail += data
        end = max(_end(tail, _BLANK_LINE, searched), _end(tail, _BLANK_LINE_CRLF, searched))
        if not end:
            if len(tail) > MAX_EVENT_BYTES:
                raise EventTooLargeError(
                    f"an event has more than {counted(MAX_EVENT_BYTES, 'byte')}"
                )
            return b""
        block = bytes(tail[:end])
        del tail[:end]
        return block

    def _count(self, block: bytes) -> int:
        """Count what was generated, without a parser; return the events that have any."""
        deltas = block.count(self._format.delta)
        self.deltas += deltas
        if b"\\" in block:
            block = _without_escaped_quotes(block)
        size = _text_bytes(block, self.text_name)
        if size is None:
            for name in self._format.texts:
                size = _text_bytes(block, name)
                if size is not None:
                    self.text_name = name
                    break
        self._text_bytes += size or 0
        return deltas

    def _count_idle(self, events: int, size: int) -> None:
        """Bound what a stream costs that goes on without tokens."""
        self._idle_events += events
        self._idle_bytes += size
        if self._idle_events > MAX_EVENTS_WITHOUT_TOKEN:
            raise InvalidStreamError(
                f"{counted(self._idle_events, 'event')} came without a token, the limit is "
                f"{MAX_EVENTS_WITHOUT_TOKEN}"
            )
        if self._idle_bytes > MAX_BYTES_WITHOUT_TOKEN:
            raise InvalidStreamError(
                f"{counted(self._idle_bytes, 'byte')} came without a token, the limit is "
                f"{MAX_BYTES_WITHOUT_TOKEN}"
            )

    def _has_signal(self, block: bytes) -> bool:
        """Return whether an event may be other than a token; text cannot hold these quotes."""
        if b'"usage"' in block or b'"error"' in block or b'"abort"' in block:
            return True
        for mark in self._marks:  # noqa: SIM110 - a generator costs more than the search
            if mark in block:
                return True
        return False

    def _relayed(self, events: Sequence[bytes]) -> Iterator[bytes]:
        for event in events:
            if self.closed:
                return
            deltas = self.deltas
            if self.started and not self._has_signal(event):
                self._count(event)
                yield event
            elif self._accepts(event):
                yield from self._held
                self._held.clear()
                self._held_bytes = 0
                yield event
            if self.deltas == deltas:
                self._count_idle(1, len(event))

    def _accepts(self, event: bytes) -> bool:
        """Take note of the event, and return whether the client gets it now."""
        data = event_data(event)
        if data in self._format.ends or event.startswith(self._format.ends):
            self.ended = True
        parsed = None if data in (b"", _DONE) else self._parsed(data)
        if parsed is None:
            return self.started
        if parsed.counts is not None:
            self.counts = merged(self.counts, parsed.counts)
            self.drafts = draft_counts(parsed.metrics) or self.drafts
        if bytes(parsed.error) != b"null" or event.startswith(self._format.failures):
            self.error = event
            return False
        if is_aborted(data):
            self.aborted = True
            return False
        if parsed.is_usage_alone and not self._keep_usage:
            return False
        if not self.started and self._is_prelude(event, parsed):
            self.prefilled = self.prefilled or bytes(parsed.choices) not in (b"null", b"[]")
            self._hold(event)
            return False
        self.started = True
        if not parsed.is_usage_alone:
            self._count(event)
        return True

    def _parsed(self, data: bytes) -> "_Event | None":
        try:
            try:
                return _decoder.decode(data)
            except msgspec.ValidationError:
                # Of a shape that is not known here: it is the client's, but for an error. It may
                # be no JSON behind the field at which the decoder ended.
                return _Event(error=_error_of(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if self.started:
                return _Event()
            raise InvalidStreamError(f"the first event is no valid JSON: {error}") from None

    def _is_prelude(self, event: bytes, parsed: "_Event") -> bool:
        choices = bytes(parsed.choices)
        if choices == b"null":
            return event.startswith(self._format.preludes)
        if len(choices) > _MAX_PRELUDE_BYTES:
            return False
        try:
            return all(choice.is_empty for choice in _choices_decoder.decode(choices))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False

    def _hold(self, event: bytes) -> None:
        self._held.append(event)
        self._held_bytes += len(event)
        if self._held_bytes > MAX_EVENT_BYTES:
            raise EventTooLargeError(f"{counted(MAX_EVENT_BYTES, 'byte')} came without a token")


def _error_of(data: bytes) -> msgspec.Raw:
    """Return the error of an event whose other fields are of no known shape; null without one."""
    try:
        return _failure_decoder.decode(data).error
    except msgspec.ValidationError:
        return _NULL


def _end(tail: bytearray, delimiter: bytes, searched: int) -> int:
    """Return where the last event ends; 0 without one."""
    place = tail.rfind(delimiter, searched)
    return 0 if place < 0 else place + len(delimiter)


def is_aborted(data: bytes) -> bool:
    """Return whether an answer or an event says that the engine gave a choice up."""
    return any(abort in data for abort in _ABORTED)


def answer_text_bytes(body: bytes) -> int:
    """Return the bytes of generated text of an answer that is no stream, rather more than fewer."""
    body = _without_escaped_quotes(body)
    size = sum(_text_bytes(body, name) or 0 for name in _ANSWER_TEXTS)
    # Arguments of tools that are no text.
    tool = body.find(b'"tool_use"')
    return size if tool < 0 else size + len(body) - tool


def _without_escaped_quotes(block: bytes) -> bytes:
    # Backslashes first: after one of them, a quote ends its text.
    return block.replace(b"\\\\", b"x").replace(b'\\"', b"x")


def _text_bytes(block: bytes, name: bytes) -> int | None:
    """Return the bytes of all texts with this name, in which no quotes are; None without any."""
    size = None
    place = block.find(name)
    for _ in range(_MAX_TEXTS):
        if place < 0:
            break
        start = place + len(name)
        if block[start] == _SPACE:
            start += 1
        end = start
        if block[start] == _QUOTE:
            start += 1
            end = block.find(b'"', start)
            if end < 0:
                break
            # An escape of six bytes is a character of two or three.
            size = (size or 0) + end - start - 3 * block.count(b"\\u", start, end)
        place = block.find(name, end)
    return size


def split_events(block: bytes) -> list[bytes]:
    """Return the events with their ends."""
    events = _cut(block, _BLANK_LINE)
    if b"\r" in block:
        return [part for event in events for part in _cut(event, _BLANK_LINE_CRLF)]
    return events


def _cut(block: bytes, end: bytes) -> list[bytes]:
    *parts, rest = block.split(end)
    return [part + end for part in parts] + [rest] * bool(rest)


def event_data(event: bytes) -> bytes:
    """Return the data of an event, of several lines one after the other.

    Raises InvalidStreamError.
    """
    if event.count(b"\n") + event.count(b"\r") > _MAX_LINES:
        raise InvalidStreamError(f"an event has more than {counted(_MAX_LINES, 'line')}")
    lines = event.splitlines()
    if len(lines) == 2 and event.startswith(_FIELD):
        return lines[0][len(_FIELD) :].strip()
    values = (line[len(_FIELD) :].strip() for line in lines if line.startswith(_FIELD))
    return b"\n".join(values)
