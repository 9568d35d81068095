"""Lines of the output and the errors file in OpenAI's form, with their token counts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from tessera.batch_runner.engine import Reply
from tessera.batch_runner.input.rows import RowFault, clamp_tokens
from tessera.batch_runner.retry import RequestOutcome

_LINE = b'{"id":%s,"custom_id":%s,"response":%s,"error":%s}'


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """The line of a row in the results."""

    line: bytes
    good: bool
    message: str = ""
    """Why the row failed."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    is_cut: bool = False
    """An answer ended by its limit of tokens."""


def row_result(line_id: str, custom_id: str, reply: Reply) -> RowResult:
    """Return the line to write if the reply is final."""
    match reply.outcome:
        case RequestOutcome.ANSWERED:
            return _answered_result(line_id, custom_id, reply)
        case RequestOutcome.REFUSED:
            fault = RowFault(code="request_refused", message=reply.problem)
        case RequestOutcome.TIMED_OUT:
            fault = RowFault(code="engine_timeout", message=reply.problem)
        case RequestOutcome.LOST | RequestOutcome.UNSENT:
            message = f"the engine crashed each time it processed only this row: {reply.problem}"
            fault = RowFault(code="engine_crashed", message=message)
        case RequestOutcome.FAILED | RequestOutcome.UNAVAILABLE:
            code = "invalid_response" if reply.status == HTTPStatus.OK else "engine_error"
            fault = RowFault(code=code, message=reply.problem)
    return _failure(line_id, custom_id, fault, reply)


def _failure(line_id: str, custom_id: str, fault: RowFault, reply: Reply) -> RowResult:
    """Return the error line of a row, with the engine's last response if there was one."""
    response = b"null"
    if reply.fields is not None:
        response = _response(reply, reply.request_id or line_id)
    error = _json({"code": fault.code, "message": fault.message})
    line = _LINE % (_json(line_id), _json(custom_id), response, error)
    return RowResult(line=line, good=False, message=fault.message)


def _response(reply: Reply, request_id: str) -> bytes:
    """Return the response with the engine's body as it came, but in one line."""
    body = reply.body.replace(b"\n", b" ").replace(b"\r", b" ")
    return b'{"status_code":%d,"request_id":%s,"body":%s}' % (reply.status, _json(request_id), body)


def _answered_result(line_id: str, custom_id: str, reply: Reply) -> RowResult:
    """Return the line with the engine's response."""
    body = reply.fields or {}
    request_id = reply.request_id or str(body.get("id") or line_id)
    response = _response(reply, request_id)
    usage = body.get("usage")
    return RowResult(
        line=_LINE % (_json(line_id), _json(custom_id), response, b"null"),
        good=True,
        prompt_tokens=_usage_tokens(usage, "prompt_tokens"),
        output_tokens=_usage_tokens(usage, "completion_tokens"),
        is_cut=_is_cut(body.get("choices")),
    )


def _is_cut(choices: object) -> bool:
    return isinstance(choices, list) and any(
        isinstance(choice, Mapping) and choice.get("finish_reason") == "length"
        for choice in choices
    )


def _usage_tokens(usage: object, name: str) -> int:
    return clamp_tokens(usage.get(name) if isinstance(usage, Mapping) else None)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
