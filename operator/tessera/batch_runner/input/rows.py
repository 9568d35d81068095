"""Rows of the input: OpenAI's batch request lines, and their validation."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder
from typing import Any

from tessera.domain.batch.names import COMPLETION_URLS, EMBEDDING_URL
from tessera.domain.model.media_tokens import MEDIA_FIELDS

URLS = (*COMPLETION_URLS, EMBEDDING_URL)
MAX_ID_LENGTH = 512
# No model has as many; clients write more for "unlimited".
MAX_TOKENS = 2**31
# Lists and objects around an image or a clip.
_MAX_MEDIA_DEPTH = 8
# Characters of an invalid value that a message repeats.
_MAX_SHOWN_VALUE = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """A valid request."""

    custom_id: str
    url: str
    body: Mapping[str, Any]

    @property
    def max_tokens(self) -> int | None:
        """The limit for tokens of the answer; None where the row sets none."""
        return next((clamp_tokens(limit) for _, limit in self.token_limits()), None)

    @property
    def choices(self) -> int:
        """How many answers it has, each with as many tokens as its limit allows."""
        prompt = self.body.get("input" if self.url == EMBEDDING_URL else "prompt")
        # A list of numbers is one prompt.
        is_several = isinstance(prompt, list) and not isinstance(next(iter(prompt), None), int)
        prompts = len(prompt) if is_several and isinstance(prompt, list) else 1
        answers = max(clamp_tokens(self.body.get(name)) for name in ("n", "best_of"))
        return max(1, prompts) * max(1, answers)

    def token_limits(self) -> Iterator[tuple[str, int]]:
        """Yield the fields that limit the tokens of the answer."""
        for name in ("max_completion_tokens", "max_tokens"):
            if isinstance(limit := self.body.get(name), int):
                yield name, limit


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFault:
    """Why a row is invalid."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTarget:
    """What the engine of a batch serves, which is what its rows may ask for."""

    name: str
    adapters: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    """Other names of the model in the rows."""
    urls: tuple[str, ...] = URLS

    def fault(self, row: BatchRow) -> RowFault | None:
        """Return why the engine would refuse what a valid row asks for."""
        if row.url not in self.urls:
            message = f"url is {row.url}, but the model serves {' and '.join(self.urls)} only"
            return RowFault(code="url_not_served", message=message, param="url")
        # A prompt without an answer is scored.
        least = 0 if row.body.get("echo") else 1
        for name, limit in row.token_limits():
            if not least <= limit <= MAX_TOKENS:
                shown = str(limit) if abs(limit) < 10**20 else "a number of more than 20 digits"
                message = f"{name} is {shown}; use {least} to {MAX_TOKENS}, or omit it"
                return RowFault(code="invalid_max_tokens", message=message, param=f"body.{name}")
        model = row.body.get("model")
        if model is None or model in (self.name, *self.adapters, *self.aliases):
            return None
        served = ", ".join((self.name, *self.adapters))
        message = (
            f"model is {_shorten_value(model)}, but this batch serves {served}; remove it from the "
            "rows, or list it in spec.modelAliases of a new batch"
        )
        return RowFault(code="model_not_served", message=message, param="body.model")

    def request_body(self, row: BatchRow, most: int | None = None) -> bytes:
        """Return the JSON to send, with the name under which the engine serves the model.

        With `most` no choice of its answer has more tokens.
        """
        renamed = row.body.get("model") in (None, *self.aliases)
        body = {**row.body, "model": self.name} if renamed else row.body
        if most is not None:
            names = [name for name, _ in row.token_limits()] or ["max_tokens"]
            body = {**body, **dict.fromkeys(names, most)}
        return json.dumps(body, separators=(",", ":")).encode()


def probe_body(url: str, model: str) -> bytes:
    """Return a request of one token."""
    chat, completion = COMPLETION_URLS
    contents: dict[str, tuple[str, object]] = {
        chat: ("messages", [{"role": "user", "content": "Hi"}]),
        completion: ("prompt", "Hi"),
    }
    field, content = contents.get(url, ("input", "Hi"))
    return json.dumps({"model": model, "max_tokens": 1, field: content}).encode()


def read_row(content: bytes) -> BatchRow | RowFault:
    """Return the row of a line, or its first fault."""
    fields = _parse_object(content, STRICT_DECODER)
    if isinstance(fields, RowFault):
        return fields
    if (fault := next(_faults(fields), None)) is not None:
        return fault
    return BatchRow(custom_id=fields["custom_id"], url=fields["url"], body=fields["body"])


def reply_object(content: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a reply; None for anything else, such as one with NaN."""
    fields = _parse_object(content, _REPLY_DECODER)
    return None if isinstance(fields, RowFault) else fields


def clamp_tokens(count: object) -> int:
    """Return a number of tokens within 0 and 2^31; 0 for anything else."""
    return min(max(0, count), MAX_TOKENS) if isinstance(count, int) else 0


def input_tokens(row: BatchRow, json_bytes: int) -> int:
    """Estimate the tokens of a row with so many bytes of JSON, at four bytes per token.

    An image or a clip counts by its header, and none of its bytes.
    """
    media = tuple(_media([row.body.get("messages"), row.body.get("input")]))
    text_bytes = max(0, json_bytes - sum(inline_bytes for inline_bytes, _ in media))
    return -(-text_bytes // 4) + sum(tokens for _, tokens in media)


def _media(value: object, depth: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the bytes that each image or clip has in the body, and its tokens."""
    if isinstance(value, list) and depth <= _MAX_MEDIA_DEPTH:
        for each in value:
            yield from _media(each, depth + 1)
    elif isinstance(value, dict) and depth <= _MAX_MEDIA_DEPTH:
        for name, (tokens_of, most) in MEDIA_FIELDS.items():
            reference = value.get(name)
            if isinstance(reference, dict):
                fields = ("url", "data", "file_data")
                reference = next((reference[each] for each in fields if each in reference), None)
            if isinstance(reference, str) and reference[:4].lower() == "http":
                yield 0, most
            elif isinstance(reference, str):
                yield len(reference), tokens_of(reference.encode(errors="replace"))
        yield from _media(value.get("content"), depth + 1)


def _parse_object(content: bytes, decoder: JSONDecoder) -> dict[str, Any] | RowFault:
    try:
        value = decoder.decode(content.decode())
    except UnicodeDecodeError as error:
        message = f"the line is not UTF-8 at byte {error.start}; save the file as UTF-8"
        return RowFault(code="invalid_json", message=message)
    except ValueError as error:
        return RowFault(code="invalid_json", message=_json_error_message(content, error))
    except RecursionError:
        return _TOO_DEEP
    if not isinstance(value, dict):
        message = f"the line is {_type_name(value)}, not a JSON object"
        return RowFault(code="invalid_json", message=message)
    return value


def _faults(fields: Mapping[str, Any]) -> Iterator[RowFault]:
    """Yield what is wrong with a line, of which only the first is reported."""
    custom_id, body = fields.get("custom_id"), fields.get("body")
    if custom_id is None or custom_id == "":
        message = "every row needs a custom_id, a string that identifies it in the results"
        yield RowFault(code="missing_custom_id", message=message, param="custom_id")
    elif not isinstance(custom_id, str):
        message = f"custom_id is {_type_name(custom_id)}; it must be a string"
        yield RowFault(code="invalid_custom_id", message=message, param="custom_id")
    elif len(custom_id) > MAX_ID_LENGTH:
        message = f"custom_id has {len(custom_id)} characters; the limit is {MAX_ID_LENGTH}"
        yield RowFault(code="invalid_custom_id", message=message, param="custom_id")
    method, url = fields.get("method", "POST"), fields.get("url")
    if method != "POST":
        message = f"method is {_shorten_value(method)}; only POST is supported"
        yield RowFault(code="invalid_method", message=message, param="method")
    if url not in URLS:
        message = f"url is {_shorten_value(url)}; it must be one of {', '.join(URLS)}"
        yield RowFault(code="unknown_url", message=message, param="url")
    if not isinstance(body, dict):
        message = f"body is {_type_name(body)}; it must be an object with the request"
        yield RowFault(code="invalid_body", message=message, param="body")
    elif body.get("stream"):
        message = "streaming is not supported in batches; remove stream from the body"
        yield RowFault(code="stream_not_supported", message=message, param="body.stream")


def _json_error_message(content: bytes, error: ValueError) -> str:
    if content.startswith(b"\xef\xbb\xbf"):
        return "the line begins with a byte order mark; save the file as UTF-8 without one"
    if (position := content.find(b"\0")) >= 0:
        return (
            f"byte {position + 1} of the line is NUL, as in UTF-16 or after a crash of the writer; "
            "write the file again as UTF-8"
        )
    if (position := content.find(b"\r")) >= 0:
        return (
            f"byte {position + 1} of the line is a carriage return without a line feed; end every "
            "line with a line feed"
        )
    reason = str(error)
    if isinstance(error, JSONDecodeError):  # whose text counts lines, but this is one
        reason = f"{error.msg} at character {error.pos + 1}"
    return f"the line is not JSON: {reason[:_MAX_SHOWN_VALUE]}"


def _type_name(value: object) -> str:
    if value is None:
        return "missing or null"
    kinds = {str: "a string", list: "an array", dict: "an object", bool: "a boolean"}
    return kinds.get(type(value), "a number")


def _shorten_value(value: object) -> str:
    text = json.dumps(value) if isinstance(value, str) else _type_name(value)
    return text if len(text) <= _MAX_SHOWN_VALUE else f"{text[:_MAX_SHOWN_VALUE]}…"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _parse_finite(text: str) -> float:
    if math.isfinite(value := float(text)):
        return value
    raise ValueError(f"{text[:_MAX_SHOWN_VALUE]} exceeds the range of numbers")


# Numbers of a reply are not written again, and an embedding has thousands.
_REPLY_DECODER = JSONDecoder(parse_constant=_refuse_constant)
STRICT_DECODER = JSONDecoder(parse_constant=_refuse_constant, parse_float=_parse_finite)
_TOO_DEEP = RowFault(code="invalid_json", message="the line is nested too deeply")
