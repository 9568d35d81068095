"""Answers of outside providers: what they count, what a filter refused, what clients get.

What a provider signed gets a mark in front, by which it comes back to this provider alone.
"""

import contextlib
import re
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from typing_extensions import override

from tessera.gateway.bodies.json_values import NULL, check_encoding, each_item, with_fields
from tessera.gateway.bodies.signed import is_thinking
from tessera.gateway.http.sse import (
    BYTES_PER_TOKEN,
    EventRelay,
    InvalidStreamError,
    StreamFormat,
    answer_text_bytes,
    event_data,
    split_events,
)
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.outside.usage import (
    AnswerBill,
    UsagePlaces,
    UsageReader,
    is_null,
    may_have_cost,
    without_cost,
)
from tessera.gateway.refusals import RequestError

_ERROR = b'"error"'
_ERROR_FIELD = re.compile(rb'"error"\s*:')
# MiniMax reports errors there, beside `choices` of null.
_BASE_RESP = b'"base_resp"'
# Values of an error that report none, without spaces.
_EMPTY = frozenset((b"null", b'""', b"{}", b"[]", b"false", b"0"))
_MAX_EMPTY_BYTES = 8
_FILTER_WORDS = (b"content_filter", b"refusal")
_RESPONSES, _MESSAGES = "/v1/responses", "/v1/messages"
_CHAT = "/v1/chat/completions"
# A quotation mark within a text has a backslash in front, and what follows one that ends a text is
# no letter: so these are names of fields. Empty texts are the beginnings of streams.
_SIGNATURE = re.compile(rb'((?<!\\)"(?:signature|data)"\s*:\s*")(?!")')
_ENCRYPTED = re.compile(rb'((?<!\\)"encrypted_content"\s*:\s*")(?!")')
# Google signs calls, and OpenRouter has what others signed in a list of reasoning.
_CHAT_SIGNATURE = re.compile(rb'((?<!\\)"(?:thought_signature|signature|data)"\s*:\s*")(?!")')
_CHAT_SIGNED = (b'"thought_signature"', b'"reasoning_details"')
# Events need no names, nor names a space in front; those of these paths have their name as type.
_SPACELESS = re.compile(rb"^event:(?=\S)", re.MULTILINE)
_NAMELESS = re.compile(rb'(?<![^\n]\n)^data: *\{"type": *"([a-z_.]+)"', re.MULTILINE)
_COMMENT = re.compile(rb"^:.*\n", re.MULTILINE)
_SIGNED_EVENTS = (b'"signature_delta"', b'"redacted_thinking"')
# Choices that are looked at for their end, as many as a request may ask for.
_MAX_CHOICES = 128
# Signed parts of an answer or event that get a mark; one that has none is no more than left out.
_MAX_SIGNED = 1000
# Blocks of an answer, and lines of comments in what is read at once, 16 KiB or one event.
_MAX_BLOCKS, _MAX_COMMENTS = 1000, 10_000
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestError)


class _EndedChoice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    error: msgspec.Raw = NULL


class _AnswerEnd(msgspec.Struct, gc=False):
    """Why an answer ended, in the words of all protocols, or an event or another part of it."""

    choices: msgspec.Raw = NULL
    reason: str | None = None
    stop_reason: str | None = None
    incomplete_details: "_AnswerEnd | None" = None
    delta: "_AnswerEnd | None" = None
    response: "_AnswerEnd | None" = None


class _BaseResp(msgspec.Struct, gc=False):
    status_code: int = 0


class _WholeAnswer(UsagePlaces, gc=False):
    error: msgspec.Raw = NULL
    object: msgspec.Raw = NULL
    type: msgspec.Raw = NULL
    content: msgspec.Raw = NULL
    output: msgspec.Raw = NULL
    base_resp: msgspec.Raw = NULL

    @property
    def is_error(self) -> bool:
        """Return whether it has an error, or is one by its kind, or consists of errors."""
        if not _is_empty(self.error) or _ERROR in (bytes(self.object), bytes(self.type)):
            return True
        if all(_is_empty(each) for each in (self.choices, self.content, self.output)):
            return bytes(self.error) != b"null" or _has_status(self.base_resp)
        return _are_errors(self.choices)


_ends = msgspec.json.Decoder(_AnswerEnd)
_choice = msgspec.json.Decoder(_EndedChoice)
_base_resp = msgspec.json.Decoder(_BaseResp)
_whole = msgspec.json.Decoder(_WholeAnswer)


class ProviderAnswer(NamedTuple):
    """An answer that is no stream."""

    body: bytes
    """As the client gets it."""
    bill: AnswerBill
    is_filtered: bool
    """A filter of the provider refused the request, or ended the answer."""
    is_error: bool
    """It is an error, as gateways of models report some with the status of a success."""

    @property
    def counts(self) -> TokenCounts | None:
        """Return the tokens as the provider reports them; None where it does not."""
        return self.bill.counts


def read_answer(
    path: str, body: bytes, mark: bytes, usage: UsageReader | None = None
) -> ProviderAnswer:
    """Read an answer that is no stream; `mark` stands in front of what its maker signed.

    Raises InvalidStreamError where it is no JSON object.
    """
    try:
        check_encoding(body)
        whole = _whole.decode(body)
        usage = usage or UsageReader(path)
        usage.read(whole)
        body = without_cost(body) if usage.has_cost else body
        text_bytes = 0 if usage.has_output else answer_text_bytes(body)
        return ProviderAnswer(
            body=_marked_answer(path, body, whole, mark),
            bill=usage.bill(text_bytes // BYTES_PER_TOKEN),
            is_filtered=_is_filtered(body),
            is_error=whole.is_error,
        )
    except _UNREADABLE as error:
        raise InvalidStreamError(f"the answer is no valid JSON: {error}") from error


def is_error(body: bytes) -> bool:
    """Return whether an answer or an event is an error, whatever its status."""
    try:
        return _whole.decode(body).is_error
    except _UNREADABLE:
        return False


class ProviderEvents(EventRelay):
    """Takes the bytes of a provider's stream and returns what goes to the client."""

    def __init__(
        self,
        path: str,
        stream_format: StreamFormat,
        mark: bytes,
        *,
        keep_usage: bool,
        usage: UsageReader | None = None,
    ) -> None:
        """Take what stands in front of what the provider signed, and what reads its counts."""
        super().__init__(stream_format, keep_usage=keep_usage)
        self._path, self._mark = path, mark
        self._usage = usage or UsageReader(path)
        self.is_filtered = False
        """A filter refused the request before anything of an answer came."""

    @override
    def feed(self, data: bytes) -> bytes:
        # Some end their lines as HTTP does; in JSON it is always an escape.
        block = super().feed(data.replace(b"\r", b""))
        if block.startswith(b":") or b"\n:" in block:
            # In comments, gateways speak of the target and the charge.
            if block.count(b"\n:") > _MAX_COMMENTS:
                raise InvalidStreamError(f"an event has more than {_MAX_COMMENTS} comments")
            block = _COMMENT.sub(b"", block)
        if self._usage.has_cost and may_have_cost(block):
            block = b"".join(map(_event_without_cost, split_events(block)))
        return _marked_events(self._path, block, self._mark) if block else block

    @override
    def _complete_events(self, data: bytes) -> bytes:
        events = super()._complete_events(data)
        if not events or self._path not in (_RESPONSES, _MESSAGES) or _are_named(events):
            return events
        return _NAMELESS.sub(rb"event: \1\n\g<0>", _SPACELESS.sub(b"event: ", events))

    @property
    @override
    def total(self) -> TokenCounts | None:
        return self.bill.counts

    @property
    @override
    def counted_prompt(self) -> int | None:
        # Counts of providers may grow to the end.
        return super().counted_prompt if self.ended else None

    @property
    def bill(self) -> AnswerBill:
        """Return what the provider billed so far."""
        return self._usage.bill(self.tokens)

    @override
    def _parsed(self, data: bytes) -> Any:
        parsed = super()._parsed(data)
        if parsed is not None and not is_null(parsed.choices) and _is_empty(parsed.error):
            parsed.error = NULL
        return parsed

    @override
    def _accepts(self, event: bytes) -> bool:
        if b'"usage"' in event:
            self._usage.read_event(event_data(event))
        is_first = not self.started
        if is_first and any(word in event for word in _FILTER_WORDS):
            with contextlib.suppress(*_UNREADABLE, InvalidStreamError):
                self.is_filtered = self.is_filtered or _is_filtered(event_data(event))
        accepted = super()._accepts(event)
        may_be_error = _ERROR in event or _BASE_RESP in event
        if is_first and accepted and may_be_error and is_error(event_data(event)):
            # Some have no field of that name.
            self.error, accepted, self.started = event, False, False
        if self.is_filtered:
            # What it is billed comes before its end.
            accepted = self.started = False
        return accepted


def _are_named(events: bytes) -> bool:
    """Return whether events have names as most providers write them."""
    is_spaced = events.count(b"event:") == events.count(b"event: ")
    return is_spaced and events.startswith(b"event: ") and b"\n\ndata:" not in events


def _event_without_cost(event: bytes) -> bytes:
    data = event_data(event)
    others = without_cost(data)
    if others == data:
        return event
    if data in event:
        return event.replace(data, others)
    names = [line for line in event.splitlines() if line and not line.startswith(b"data:")]
    # Between values, the end of a line is a space.
    return b"\n".join([*names, b"data: " + others.replace(b"\n", b" "), b"", b""])


def _is_empty(value: msgspec.Raw) -> bool:
    """Return whether a field is null, or has what some write where they have nothing to say."""
    return bytes(memoryview(value)[:_MAX_EMPTY_BYTES]).translate(None, b" \t\r\n") in _EMPTY


def _has_status(value: msgspec.Raw) -> bool:
    """Return whether a `base_resp` has a status other than that of a success."""
    try:
        return not is_null(value) and _base_resp.decode(value).status_code != 0
    except _UNREADABLE:
        return False


def _are_errors(value: msgspec.Raw) -> bool:
    """Return whether all choices are errors, as OpenRouter reports what ends an answer."""
    choices = memoryview(value)
    # In a text the quotation marks are escaped.
    if bytes(choices[:1]) != b"[" or _ERROR_FIELD.search(choices) is None:
        return False
    looked_at = islice(each_item(choices), _MAX_CHOICES)
    try:
        return all(not _is_empty(_choice.decode(each).error) for each in looked_at)
    except msgspec.ValidationError:
        return False


def _marked_answer(path: str, body: bytes, whole: _WholeAnswer, mark: bytes) -> bytes:
    if path == _CHAT:
        return _marked_chat(body, mark)
    if path == _RESPONSES:
        return _ENCRYPTED.sub(rb"\1" + mark, body, _MAX_SIGNED)
    content = memoryview(whole.content)
    if path != _MESSAGES or b"thinking" not in body or bytes(content[:1]) != b"[":
        return body
    # The input of a tool may have fields of any name.
    blocks = [
        msgspec.Raw(_SIGNATURE.sub(rb"\1" + mark, bytes(block), _MAX_SIGNED))
        if is_thinking(block)
        else msgspec.Raw(block)
        for block in islice(each_item(content), _MAX_BLOCKS + 1)
    ]
    if len(blocks) > _MAX_BLOCKS:
        raise InvalidStreamError(f"the answer has more than {_MAX_BLOCKS} blocks")
    return with_fields(body, {"content": blocks})


def _marked_chat(text: bytes, mark: bytes) -> bytes:
    if not any(name in text for name in _CHAT_SIGNED):
        return text
    return _CHAT_SIGNATURE.sub(rb"\1" + mark, text, _MAX_SIGNED)


def _marked_events(path: str, events: bytes, mark: bytes) -> bytes:
    if path == _CHAT:
        return _marked_chat(events, mark)
    if path == _RESPONSES and b"encrypted_content" in events:
        return _ENCRYPTED.sub(rb"\1" + mark, events, _MAX_SIGNED)
    if path != _MESSAGES or not _has_signature(events):
        return events
    marked = rb"\1" + mark
    return b"".join(
        _SIGNATURE.sub(marked, event, _MAX_SIGNED) if _has_signature(event) else event
        for event in split_events(events)
    )


def _has_signature(events: bytes) -> bool:
    return any(name in events for name in _SIGNED_EVENTS)


def _is_filtered(text: bytes) -> bool:
    """Return whether an answer or an event says that a filter ended it."""
    if not any(word in text for word in _FILTER_WORDS):
        return False
    try:
        ends = _ends.decode(text)
    except msgspec.ValidationError:
        return False
    response, delta = ends.response or ends, ends.delta or ends
    details = response.incomplete_details
    return (
        (details is not None and details.reason == "content_filter")
        or "refusal" in (ends.stop_reason, delta.stop_reason)
        or _all_filtered(ends.choices)
    )


def _all_filtered(choices: msgspec.Raw) -> bool:
    looked_at = islice(each_item(memoryview(choices)), _MAX_CHOICES)
    try:
        reasons = {_choice.decode(each).finish_reason for each in looked_at}
    except msgspec.ValidationError:
        return False
    return reasons == {"content_filter"}
