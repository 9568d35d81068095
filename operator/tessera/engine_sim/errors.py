"""How a look-alike ends early and how it refuses a request, in the engine's own forms."""

from typing import Any

from typing_extensions import override

from tessera.domain.engine_requests import Refusal


class EngineExit(SystemExit):
    """The engine's process would have ended with this code and this last line.

    As an exit and not an error it ends a process that runs one engine; who runs several catches it.
    """

    code: int

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code)
        self.message = message

    @override
    def __str__(self) -> str:
        return self.message


class ApiError(Exception):
    """A request is refused; `body` is the answer's JSON."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": status}
        }


def bad_parameter(message: str, param: str, value: object) -> ApiError:
    """400 in the form of the engine's own checks."""
    told = f"{message} (parameter={param}, value={value})"
    return ApiError(400, told, "BadRequestError", param)


def unknown_model(asked: str, names: tuple[str, ...]) -> ApiError:
    told = f"The model `{asked}` does not exist. Valid aliases: {', '.join(names)}."
    return ApiError(404, told, "NotFoundError", "model")


def internal(message: str) -> ApiError:
    """500 in the engine's form."""
    return ApiError(500, message, "InternalServerError")


def shutting_down() -> ApiError:
    return internal("cannot schedule new futures after shutdown")


def engine_dead() -> ApiError:
    """Of every generation once the engine behind the API server is gone."""
    return internal("EngineCore encountered an issue. See stack trace (above) for the root cause.")


def refused(refusal: Refusal) -> ApiError:
    """503 of a queue limit; there is no `Retry-After`."""
    reason = (
        "The engine is currently busy and cannot"
        if refusal is Refusal.QUEUED_REQUESTS
        else "The engine's prefill backlog is too large to"
    )
    told = f"{reason} accept new requests. Please try again later or on a different instance."
    return ApiError(503, told, "Service Unavailable")
