"""One row of the input: OpenAI's batch request line, and what may be wrong with it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
LONGEST_ID = 512
_TOLD = 120
"""Characters of a wrong value that a message repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A request that can be sent."""

    custom_id: str
    url: str
    body: Mapping[str, Any]

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that the answer may have; None where the row does not say."""
        for name in ("max_completion_tokens", "max_tokens"):
            if isinstance(found := self.body.get(name), int):
                return found
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a row is refused."""

    code: str
    message: str
    param: str | None = None


def read_row(content: bytes) -> Row | Fault:
    """The row of a line, or the first thing that is wrong with it."""
    found = _object(content)
    if isinstance(found, Fault):
        return found
    for part_fault in (_id_fault, _call_fault, _body_fault):
        if (fault := part_fault(found)) is not None:
            return fault
    return Row(custom_id=found["custom_id"], url=found["url"], body=found["body"])


def request_body(row: Row, model: str) -> bytes | Fault:
    """The JSON to send; a row that names no model gets `model`."""
    body = row.body if row.body.get("model") is not None else {**row.body, "model": model}
    try:
        return json.dumps(body, separators=(",", ":")).encode()
    except RecursionError:
        return _TOO_DEEP


def tokens_of(size: int) -> int:
    """An estimate: four bytes of JSON to a token."""
    return -(-size // 4)


def _object(content: bytes) -> dict[str, Any] | Fault:
    try:
        found = _STRICT.decode(content.decode())
    except UnicodeDecodeError as error:
        told = f"the line is not UTF-8 at byte {error.start}; save the file as UTF-8"
        return Fault(code="invalid_json", message=told)
    except ValueError as error:
        return Fault(code="invalid_json", message=_told(content, error))
    except RecursionError:
        return _TOO_DEEP
    if not isinstance(found, dict):
        told = f"the line is {_kind(found)}, not a JSON object"
        return Fault(code="invalid_json", message=told)
    return found


def _id_fault(found: Mapping[str, Any]) -> Fault | None:
    custom_id = found.get("custom_id")
    if custom_id is None or custom_id == "":
        told = "every row needs a custom_id: a text that names it in the results"
        return Fault(code="missing_custom_id", message=told, param="custom_id")
    if not isinstance(custom_id, str):
        told = f"custom_id is {_kind(custom_id)}; it must be a text"
        return Fault(code="invalid_custom_id", message=told, param="custom_id")
    if len(custom_id) > LONGEST_ID:
        told = f"custom_id has {len(custom_id)} characters; at most {LONGEST_ID} are allowed"
        return Fault(code="invalid_custom_id", message=told, param="custom_id")
    return None


def _call_fault(found: Mapping[str, Any]) -> Fault | None:
    method, url = found.get("method", "POST"), found.get("url")
    if method != "POST":
        told = f"method is {_shown(method)}; only POST is possible"
        return Fault(code="invalid_method", message=told, param="method")
    if url not in URLS:
        told = f"url is {_shown(url)}; it must be one of {', '.join(URLS)}"
        return Fault(code="unknown_url", message=told, param="url")
    return None


def _body_fault(found: Mapping[str, Any]) -> Fault | None:
    body = found.get("body")
    if not isinstance(body, dict):
        told = f"body is {_kind(body)}; it must be an object, the request itself"
        return Fault(code="invalid_body", message=told, param="body")
    if body.get("stream"):
        told = "answers cannot be streamed into a file; remove stream from the body"
        return Fault(code="stream_not_supported", message=told, param="body.stream")
    return None


def _told(content: bytes, error: ValueError) -> str:
    if content.startswith(b"\xef\xbb\xbf"):
        return "the line begins with a byte order mark; save the file as UTF-8 without one"
    return f"the line is not JSON: {str(error)[:_TOLD]}"


def _kind(value: object) -> str:
    if value is None:
        return "missing or null"
    kinds = {str: "a text", list: "a list", dict: "an object", bool: "true or false"}
    return kinds.get(type(value), "a number")


def _shown(value: object) -> str:
    shown = json.dumps(value) if isinstance(value, str) else _kind(value)
    return shown if len(shown) <= _TOLD else f"{shown[:_TOLD]}…"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if math.isfinite(value := float(text)):
        return value
    raise ValueError(f"{text[:_TOLD]} is too large a number")


_STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
_TOO_DEEP = Fault(code="invalid_json", message="the line is nested too deeply")
