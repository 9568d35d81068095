"""Request bodies: the fields that matter here; whatever else a client sends is let pass."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from tessera.engine_sim import text
from tessera.engine_sim.errors import ApiError

COMPLETION_TOKENS = 16
"""Longest answer of `/v1/completions` when the request does not say."""
_JSON = "application/json"


class StreamOptions(BaseModel):
    include_usage: bool | None = True
    continuous_usage_stats: bool | None = False


class Generation(BaseModel):
    """What both kinds of generation take."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    priority: int = 0
    n: int | None = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None


class Completion(Generation):
    """`/v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]] | None = None
    max_tokens: int | None = COMPLETION_TOKENS
    logprobs: int | None = None
    echo: bool | None = False


class Part(BaseModel):
    """A piece of a message; only text counts."""

    type: str = "text"
    text: str = ""


class Message(BaseModel):
    role: str
    content: str | list[Part] | None = None


class Chat(Generation):
    """`/v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None


class ChatBatch(Chat):
    """`/v1/chat/completions/batch`: several conversations in one request."""

    messages: list[list[Message]]  # type: ignore[assignment]  # the engine's own change of the type


class Tokenize(BaseModel):
    """`/tokenize`: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool | None = None


class Detokenize(BaseModel):
    """`/detokenize`."""

    model: str | None = None
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be answered, and its length in tokens."""

    text: str
    tokens: int
    numbers: tuple[int, ...] = ()
    """The tokens, where they were given so."""

    def blocks(self, size: int) -> list[str]:
        """Its whole blocks of so many tokens, as text."""
        if not self.numbers:
            return text.blocks(self.text, size)
        ends = range(size, len(self.numbers) + 1, size)
        return [f"{self.numbers[end - size : end]}" for end in ends]

    def pieces(self) -> list[str]:
        """Its tokens as text."""
        return list(map(text.word, self.numbers)) if self.numbers else text.pieces(self.text)

    def ids(self) -> list[int]:
        return list(self.numbers) or text.ids(self.text)


Parsed = TypeVar("Parsed", bound=BaseModel)


def parse(kind: type[Parsed], raw: bytes, content_type: str = _JSON) -> Parsed:
    """The body of a request; what does not fit is refused field by field."""
    return fit(kind, parse_json(raw, content_type))


def parse_json(raw: bytes, content_type: str = _JSON) -> Any:
    """Any JSON that says it is."""
    if content_type != _JSON:
        told = f"1 validation error:\n  Unsupported Media Type: Only '{_JSON}' is allowed"
        raise ApiError(400, told, "Bad Request")
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        wrong = {"type": "json_invalid", "loc": f"body.{error.pos}", "msg": "JSON decode error"}
        raise invalid([{**wrong, "input": {}, "ctx": {"error": error.msg}}]) from error


def fit(kind: type[Parsed], body: Any) -> Parsed:
    """The JSON as a body of this kind."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise invalid(map(_told, found)) from error


def invalid(errors: Iterable[dict[str, Any]]) -> ApiError:
    """400 for a body that does not fit, field by field."""
    found = list(errors)
    plural = "s" if len(found) > 1 else ""
    lines = "".join(f"\n  {one}" for one in found)
    message = f"{len(found)} validation error{plural}:{lines}"
    return ApiError(400, message, "Bad Request", found[0]["loc"])


def missing(*fields: str, place: str = "body") -> ApiError:
    """400 for fields that a body should have."""
    told = {"type": "missing", "msg": "Field required", "input": None}
    return invalid({**told, "loc": f"{place}.{field}"} for field in fields)


def _told(error: Any) -> dict[str, Any]:
    """One error, its location as a path from the body."""
    place = ".".join(("body", *map(str, error["loc"])))
    return {"type": error["type"], "loc": place, "msg": error["msg"], "input": error["input"]}


def completion_prompts(body: Completion) -> list[Prompt]:
    """The prompts of a completion, each as text or as token numbers."""
    given = body.prompt
    if not given:
        told = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
        raise ApiError(400, told, "BadRequestError", "prompt")
    if isinstance(given, str) or isinstance(given[0], int):
        return [_prompt(given)]
    return [_prompt(one) for one in given]


def _prompt(given: Any) -> Prompt:
    if isinstance(given, str):
        return Prompt(given, text.count(given))
    outside = [token for token in given if not 0 <= token < text.VOCABULARY]
    if outside:
        told = f"Token id {outside[0]} is out of vocabulary"
        raise ApiError(400, told, "BadRequestError")
    return Prompt(str(given), max(1, len(given)), tuple(given))


def chat_prompt(messages: list[Message]) -> Prompt:
    """Messages as a chat template would write them."""
    if not messages:
        told = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise ApiError(400, told, "BadRequestError")
    written = (f"<|{message.role}|>{_content(message)}<|end|>" for message in messages)
    rendered = "".join(itertools.chain(written, ("<|assistant|>",)))
    return Prompt(rendered, text.count(rendered))


def _content(message: Message) -> str:
    if isinstance(message.content, list):
        return "".join(part.text for part in message.content)
    return message.content or ""
