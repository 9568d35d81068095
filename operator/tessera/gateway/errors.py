"""Errors in OpenAI's shape."""

from collections.abc import Sequence

import msgspec

from tessera.domain.gateway.directory import Identity
from tessera.domain.gateway.reasons import RequestReason

JSON = b"application/json"
_INVALID, _FAILED = "invalid_request_error", "server_error"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.param = param
        self.code = code
        self.headers = tuple(headers)
        self.sender: Identity | None = None
        """Of a request that is refused before its model is known; None where he is not known."""

    def body(self) -> bytes:
        """Return the JSON body."""
        error = {
            "message": self.message,
            "type": _TYPES.get(self.status) or (_INVALID if self.status < 500 else _FAILED),
            "param": self.param,
            "code": self.code or _snake_case(self.reason),
        }
        return msgspec.json.encode({"error": error})

    def event(self) -> bytes:
        """Return the error as an event of a stream that has begun."""
        return b"data: %b\n\n" % self.body()


def invalid_request(
    message: str, param: str | None = None, code: str | None = None
) -> RequestError:
    """Return the error of a request that no engine would accept."""
    return RequestError(400, RequestReason.INVALID_REQUEST, message, param=param, code=code)


def draining() -> RequestError:
    """Return the error of a request that lasts longer than the gateway."""
    return RequestError(
        503,
        RequestReason.GATEWAY_DRAINING,
        "The gateway terminates before the answer was complete.",
        headers=((b"retry-after", b"1"),),
    )


def _snake_case(reason: str) -> str:
    return "".join(
        f"_{letter.lower()}" if letter.isupper() else letter for letter in reason
    ).removeprefix("_")
