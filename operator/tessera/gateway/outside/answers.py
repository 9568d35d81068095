"""Answers of outside providers: what they count, what a filter refused, what clients get."""

from typing import NamedTuple

import msgspec
from typing_extensions import override

from tessera.gateway.bodies.json_values import each_item
from tessera.gateway.http.sse import EventRelay, InvalidStreamError, StreamFormat, event_data
from tessera.gateway.http.token_counts import TokenCounts, Usage
from tessera.gateway.outside.fields import NULL
from tessera.gateway.outside.signed import mark_answer, mark_events
from tessera.gateway.refusals import RequestError

# Of an error, the words of OpenAI, of Azure and of Anthropic.
_FILTER_ERRORS = (b'"content_filter"', b'"content_policy_violation"', b"content filtering policy")
_FILTER_WORDS = (b"content_filter", b"refusal")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestError)


class _EndedChoice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _IncompleteDetails(msgspec.Struct, gc=False):
    reason: str | None = None


class _ResponseEnd(msgspec.Struct, gc=False):
    incomplete_details: _IncompleteDetails | None = None


class _DeltaEnd(msgspec.Struct, gc=False):
    stop_reason: str | None = None


class _AnswerEnd(msgspec.Struct, gc=False):
    """Why an answer ended, in the words of all protocols; an event has those of a stream."""

    choices: msgspec.Raw = NULL
    stop_reason: str | None = None
    incomplete_details: _IncompleteDetails | None = None
    delta: _DeltaEnd | None = None
    response: _ResponseEnd | None = None


class _WholeUsage(msgspec.Struct, gc=False):
    usage: Usage | None = None


_ends = msgspec.json.Decoder(_AnswerEnd)
_choice = msgspec.json.Decoder(_EndedChoice)
_whole = msgspec.json.Decoder(_WholeUsage)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ProviderAnswer(NamedTuple):
    """An answer that is no stream."""

    body: bytes
    """As the client gets it."""
    counts: TokenCounts | None
    """As the provider reports them; None where it does not."""
    is_filtered: bool
    """A filter of the provider refused the request, or ended the answer."""


def read_answer(path: str, body: bytes, mark: bytes) -> ProviderAnswer:
    """Read an answer that is no stream; `mark` stands in front of what its maker signed.

    Raises InvalidStreamError where it is no JSON object.
    """
    try:
        body.decode()
        _object.decode(body)
        usage = _usage_of(body)
        return ProviderAnswer(
            body=mark_answer(path, body, mark),
            counts=usage.counts() if usage is not None else None,
            is_filtered=_is_filtered(body),
        )
    except _UNREADABLE as error:
        raise InvalidStreamError(f"the answer is no valid JSON: {error}") from error


def is_filter_error(body: bytes) -> bool:
    """Return whether a filter is why a provider refused a request."""
    return any(words in body for words in _FILTER_ERRORS)


class ProviderEvents(EventRelay):
    """Takes the bytes of a provider's stream and returns what goes to the client."""

    def __init__(
        self, path: str, stream_format: StreamFormat, mark: bytes, *, keep_usage: bool
    ) -> None:
        """Take what stands in front of what the provider signed."""
        super().__init__(stream_format, keep_usage=keep_usage)
        self._path, self._mark = path, mark
        self.is_filtered = False
        """A filter refused the request before anything of an answer came."""

    @property
    @override
    def closed(self) -> bool:
        return self.is_filtered or super().closed

    @override
    def feed(self, data: bytes) -> bytes:
        # Some end their lines as HTTP does; in JSON it is always an escape.
        block = super().feed(data.replace(b"\r", b""))
        return mark_events(self._path, block, self._mark) if block else block

    @override
    def _accepts(self, event: bytes) -> bool:
        if not self.started and any(word in event for word in _FILTER_WORDS):
            try:
                self.is_filtered = _is_filtered(event_data(event))
            except _UNREADABLE:
                self.is_filtered = False
        return not self.is_filtered and super()._accepts(event)


def _usage_of(body: bytes) -> Usage | None:
    try:
        return _whole.decode(body).usage
    except msgspec.ValidationError:
        # Counts that cannot be are as if there were none.
        return None


def _is_filtered(text: bytes) -> bool:
    """Return whether an answer or an event says that a filter ended it."""
    if not any(word in text for word in _FILTER_WORDS):
        return False
    try:
        ends = _ends.decode(text)
    except msgspec.ValidationError:
        return False
    inner = ends.response.incomplete_details if ends.response is not None else None
    details = ends.incomplete_details or inner
    delta = ends.delta.stop_reason if ends.delta is not None else None
    return (
        (details is not None and details.reason == "content_filter")
        or "refusal" in (ends.stop_reason, delta)
        or _all_filtered(ends.choices)
    )


def _all_filtered(choices: msgspec.Raw) -> bool:
    try:
        reasons = {_choice.decode(each).finish_reason for each in each_item(memoryview(choices))}
    except msgspec.ValidationError:
        return False
    return reasons == {"content_filter"}
