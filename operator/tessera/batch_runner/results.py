"""Lines of the output and the errors file in OpenAI's form, with their token counts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.batch_runner.engine import Reply
from tessera.batch_runner.retry import RequestOutcome
from tessera.batch_runner.rows import RowFault

_MAX_MESSAGE_LENGTH = 2000
_SUCCESS = (
    b'{"id":%s,"custom_id":%s,"response":{"status_code":%d,"request_id":%s,"body":%s},"error":null}'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """The line of a row in the results."""

    line: bytes
    good: bool
    message: str = ""
    """Why the row failed."""
    prompt_tokens: int = 0
    output_tokens: int = 0


def row_outcome(line_id: str, custom_id: str, reply: Reply) -> tuple[RequestOutcome, RowResult]:
    """Return the outcome of a row, and the line to write if it is final."""
    match reply.outcome:
        case RequestOutcome.ANSWERED:
            return _answered_result(line_id, custom_id, reply)
        case RequestOutcome.REFUSED:
            fault = RowFault(code="request_refused", message=_engine_message(reply))
        case RequestOutcome.TIMED_OUT:
            fault = RowFault(code="engine_timeout", message=reply.problem)
        case RequestOutcome.LOST | RequestOutcome.UNSENT:
            message = f"the engine crashed each time it processed only this row: {reply.problem}"
            fault = RowFault(code="engine_crashed", message=message)
        case RequestOutcome.FAILED:
            fault = RowFault(code="engine_error", message=reply.problem or _engine_message(reply))
    return reply.outcome, failure(line_id, custom_id, fault, reply)


def failure(line_id: str, custom_id: str, fault: RowFault, reply: Reply | None = None) -> RowResult:
    """Return the error line of a row, with the engine's last response if there was one."""
    response, body = None, _parse_object(reply.body) if reply is not None else None
    if reply is not None and body is not None:
        request_id = reply.request_id or line_id
        response = {"status_code": reply.status, "request_id": request_id, "body": body}
    fields = {
        "id": line_id,
        "custom_id": custom_id,
        "response": response,
        "error": {"code": fault.code, "message": fault.message},
    }
    return RowResult(line=_json(fields), good=False, message=fault.message)


def _answered_result(
    line_id: str, custom_id: str, reply: Reply
) -> tuple[RequestOutcome, RowResult]:
    """Return the line with the engine's response; a failure if that is no JSON object."""
    body = _parse_object(reply.body)
    if body is None:
        message = "the response of the engine is not a JSON object"
        fault = RowFault(code="invalid_response", message=message)
        return RequestOutcome.FAILED, failure(line_id, custom_id, fault)
    request_id = reply.request_id or str(body.get("id") or line_id)
    # Keep the response byte for byte where it fits in one line.
    several_lines = b"\n" in reply.body or b"\r" in reply.body
    response_body = _json(body) if several_lines else reply.body
    values = (_json(line_id), _json(custom_id), reply.status, _json(request_id), response_body)
    usage = body.get("usage")
    return RequestOutcome.ANSWERED, RowResult(
        line=_SUCCESS % values,
        good=True,
        prompt_tokens=_usage_tokens(usage, "prompt_tokens"),
        output_tokens=_usage_tokens(usage, "completion_tokens"),
    )


def _engine_message(reply: Reply) -> str:
    body = _parse_object(reply.body) or {}
    error = body.get("error", body)
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) else reply.body.decode(errors="replace")
    return f"{reply.status}: {text}"[:_MAX_MESSAGE_LENGTH]


def _parse_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _usage_tokens(usage: object, name: str) -> int:
    count = usage.get(name) if isinstance(usage, Mapping) else None
    return count if isinstance(count, int) and count > 0 else 0


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
