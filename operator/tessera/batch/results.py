"""Lines of the output and of the errors file, in OpenAI's form, and what an answer cost."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.batch.engine import Reply
from tessera.batch.retry import Outcome
from tessera.batch.rows import Fault

_MESSAGE = 2000
_SUCCESS = (
    b'{"id":%s,"custom_id":%s,"response":{"status_code":%d,"request_id":%s,"body":%s},"error":null}'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a row ended."""

    line: bytes
    good: bool
    prompt_tokens: int = 0
    output_tokens: int = 0


def ending(line_id: str, custom_id: str, reply: Reply) -> tuple[Outcome, Result]:
    """What became of a row, and its line in case that this is final."""
    match reply.outcome:
        case Outcome.ANSWERED:
            return _answer(line_id, custom_id, reply)
        case Outcome.REFUSED:
            fault = Fault(code="request_refused", message=_words(reply))
        case Outcome.TIMED_OUT:
            fault = Fault(code="engine_timeout", message=reply.told)
        case Outcome.LOST | Outcome.UNSENT:
            told = f"the engine ended each time it had this row alone: {reply.told}"
            fault = Fault(code="engine_crashed", message=told)
        case Outcome.FAILED:
            fault = Fault(code="engine_error", message=reply.told or _words(reply))
    return reply.outcome, failure(line_id, custom_id, fault, reply)


def failure(line_id: str, custom_id: str, fault: Fault, reply: Reply | None = None) -> Result:
    """Why there is no answer, with the engine's last word if it had one."""
    response, body = None, _object(reply.body) if reply is not None else None
    if reply is not None and body is not None:
        request_id = reply.request_id or line_id
        response = {"status_code": reply.status, "request_id": request_id, "body": body}
    told = {
        "id": line_id,
        "custom_id": custom_id,
        "response": response,
        "error": {"code": fault.code, "message": fault.message},
    }
    return Result(line=_json(told), good=False)


def _answer(line_id: str, custom_id: str, reply: Reply) -> tuple[Outcome, Result]:
    """The engine's answer, byte for byte where it is one line; a failure where it is no answer."""
    body = _object(reply.body)
    if body is None:
        told = "the engine's answer is not a JSON object"
        fault = Fault(code="invalid_response", message=told)
        return Outcome.FAILED, failure(line_id, custom_id, fault)
    request_id = reply.request_id or str(body.get("id") or line_id)
    shown = reply.body if _one_line(reply.body) else _json(body)
    filled = (_json(line_id), _json(custom_id), reply.status, _json(request_id), shown)
    usage = body.get("usage")
    return Outcome.ANSWERED, Result(
        line=_SUCCESS % filled,
        good=True,
        prompt_tokens=_count(usage, "prompt_tokens"),
        output_tokens=_count(usage, "completion_tokens"),
    )


def _words(reply: Reply) -> str:
    """What the engine says is wrong."""
    body = _object(reply.body) or {}
    error = body.get("error", body)
    message = error.get("message") if isinstance(error, dict) else error
    said = message if isinstance(message, str) else reply.body.decode(errors="replace")
    return f"{reply.status}: {said}"[:_MESSAGE]


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body.decode())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _count(usage: object, name: str) -> int:
    found = usage.get(name) if isinstance(usage, Mapping) else None
    return found if isinstance(found, int) and found > 0 else 0


def _one_line(body: bytes) -> bool:
    return b"\n" not in body and b"\r" not in body


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
