"""How the simulator exits early and how it rejects a request, in vLLM's format."""

from typing import Any

from typing_extensions import override

from tessera_lab.engine.requests import RejectionReason


class EngineExit(SystemExit):
    """The exit of an engine's process, with its code and last line.

    It is a SystemExit, so it ends a process that runs one engine; a caller that runs several
    catches it.
    """

    code: int

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code)
        self.message = message

    @override
    def __str__(self) -> str:
        return self.message


class EngineApiError(Exception):
    """A rejected request; `body` is the response's JSON."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": status}
        }


def bad_request(message: str, param: str | None = None) -> EngineApiError:
    return EngineApiError(400, message, "BadRequestError", param)


def bad_parameter(message: str, param: str, value: object) -> EngineApiError:
    """Return 400 in the format of the engine's own checks."""
    return bad_request(f"{message} (parameter={param}, value={value})", param)


def unknown_model(name: str, names: tuple[str, ...]) -> EngineApiError:
    detail = f"The model `{name}` does not exist. Valid aliases: {', '.join(names)}."
    return EngineApiError(404, detail, "NotFoundError", "model")


def internal_error(message: str) -> EngineApiError:
    """Return 500 in the engine's format."""
    return EngineApiError(500, message, "InternalServerError")


def engine_dead() -> EngineApiError:
    """Return the error of every generation after the engine behind the API server has died."""
    return internal_error(
        "EngineCore encountered an issue. See stack trace (above) for the root cause."
    )


def queue_limit_error(rejection: RejectionReason) -> EngineApiError:
    """Return 503 of a queue limit; it has no `Retry-After`."""
    reason = (
        "The engine is currently busy and cannot"
        if rejection is RejectionReason.QUEUED_REQUESTS
        else "The engine's prefill backlog is too large to"
    )
    detail = f"{reason} accept new requests. Please try again later or on a different instance."
    return EngineApiError(503, detail, "Service Unavailable")
