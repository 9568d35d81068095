"""How engines fail, and what of it another replica may be tried for."""

from enum import Enum, auto

import msgspec
from typing_extensions import override

from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.http.sse import EventRelay, event_data
from tessera.gateway.refusals import Headers, RequestError

_MAX_ENGINE_MESSAGE = 500
MAX_REFUSAL_LENGTH = 4096
# What they say is between the client and the gateway.
_STATUSES_OF_GATEWAY = frozenset({401, 403, 407, 429, 431, 499})
_NO_FAILURES = frozenset({RequestReason.ENGINE_BUSY, RequestReason.RESPONSE_TOO_LARGE})
_FAILURES_OF_REPLICA = frozenset({RequestReason.ENGINE_UNREACHABLE, RequestReason.ENGINE_DRAINING})
_REFUSALS = frozenset({RequestReason.ENGINE_REFUSED, RequestReason.ENGINE_DRAINING})
_AFTER_SHUTDOWN = b"after shutdown"


class Retry(Enum):
    """Whether another replica may be tried after a failure."""

    NEVER = auto()
    ONCE = auto()
    """The engine's work is lost, perhaps because of the request itself."""
    SAFE = auto()
    """The engine did no work for it, or terminates anyway."""


_RETRIES = {
    RequestReason.ENGINE_UNREACHABLE: Retry.SAFE,
    RequestReason.ENGINE_BUSY: Retry.SAFE,
    RequestReason.ENGINE_DRAINING: Retry.SAFE,
    RequestReason.STREAM_BROKEN: Retry.ONCE,
}


class EngineError(RequestError):
    """An engine did not answer as it should."""

    def __init__(
        self,
        reason: RequestReason,
        *details: object,
        status: int | None = None,
        headers: Headers = (),
        retry: Retry | None = None,
    ) -> None:
        super().__init__(reason, *details, status=status, headers=headers)
        self.retry = retry or _RETRIES.get(reason, Retry.NEVER)

    @property
    def is_of_replica(self) -> bool:
        """Return whether another request would likely fail there too."""
        return self.status >= 500 and self.reason not in _NO_FAILURES

    @property
    def is_refusal(self) -> bool:
        """Return whether the engine says that it does not work for the request."""
        return self.reason in _REFUSALS

    @property
    def is_loss(self) -> bool:
        """Return whether a stream may go on elsewhere that broke off by it."""
        return self.retry is not Retry.NEVER or self.reason is RequestReason.ENGINE_TIMEOUT

    @property
    def may_be_of_request(self) -> bool:
        """Return whether the request may have caused it."""
        return self.reason not in _FAILURES_OF_REPLICA


class _EngineRefusalError(EngineError):
    """The engine refused the request in its own words, which the client gets as they are."""

    def __init__(self, status: int, message: str, body: bytes, headers: Headers) -> None:
        super().__init__(RequestReason.ENGINE_REFUSED, message, status=status, headers=headers)
        self._body = body

    @override
    def body(self, failure: bytes = b"") -> bytes:
        return self._body

    @override
    def event(self, failure: bytes = b"") -> bytes:
        # The engine's own may have several lines.
        return RequestError(self.reason, self.message, status=self.status).event(failure)


class _ErrorObject(msgspec.Struct, gc=False):
    message: str | None = None
    code: int | str | None = None


class _ErrorBody(msgspec.Struct, gc=False):
    error: _ErrorObject


_error_decoder = msgspec.json.Decoder(_ErrorBody)


def _engine_error(body: bytes) -> _ErrorObject | None:
    try:
        return _error_decoder.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_refusal(status: int) -> bool:
    """Return whether an engine says by this status that the request is at fault."""
    return 400 <= status < 500 and status not in _STATUSES_OF_GATEWAY


def response_error(
    status: int, body: bytes, headers: Headers, replica: EngineReplica, path: str
) -> EngineError:
    """Return the error of a response that is not a success."""
    if status in (429, 503):
        return EngineError(RequestReason.ENGINE_BUSY)
    if status >= 500 and _AFTER_SHUTDOWN in body:
        return EngineError(RequestReason.ENGINE_DRAINING, replica.pod.name)
    error = _engine_error(body)
    text = (error.message if error else None) or ""
    if not _is_refusal(status):
        text = f"The engine answered with status {status}. {text[:_MAX_ENGINE_MESSAGE]}"
        return EngineError(RequestReason.ENGINE_FAILED, text.rstrip())
    if error is None:
        text = f"The engine of this model refused POST {path} with status {status}."
        return EngineError(RequestReason.ENGINE_REFUSED, text, status=status)
    return _EngineRefusalError(status, text, body, headers)


def incomplete_stream(events: EventRelay, replica: EngineReplica) -> EngineError:
    """Return the error of a stream that did not end as it should."""
    if events.error is not None:
        return _reported(events.error, replica)
    if events.started and not events.aborted:
        detail = "the stream ended without its last event"
        return EngineError(RequestReason.STREAM_BROKEN, replica.pod.name, detail)
    # An engine that terminates answers queued requests with an empty stream.
    return EngineError(RequestReason.ENGINE_DRAINING, replica.pod.name)


def _reported(event: bytes, replica: EngineReplica) -> EngineError:
    """Return the error that the engine sent as an event."""
    error = _engine_error(event_data(event))
    text = (error.message if error else None) or "no message"
    status = error.code if error and isinstance(error.code, int) else 500
    if _is_refusal(status):
        text = text[:MAX_REFUSAL_LENGTH]
        return EngineError(RequestReason.ENGINE_REFUSED, text, status=status)
    text = f"The engine failed on {replica.pod.name}: {text[:_MAX_ENGINE_MESSAGE]}"
    return EngineError(RequestReason.ENGINE_FAILED, text, retry=Retry.ONCE)


def invalid_response(replica: EngineReplica, detail: str) -> EngineError:
    detail = detail[:_MAX_ENGINE_MESSAGE]
    return EngineError(RequestReason.INVALID_RESPONSE, replica.pod.name, detail)
