"""Request bodies: the fields that matter here; whatever else a client sends is let pass."""

import itertools
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from tessera.engine_sim import text
from tessera.engine_sim.errors import ApiError

COMPLETION_TOKENS = 16
"""Longest answer of `/v1/completions` when the request does not say."""


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


class Completion(Generation):
    """`/v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = COMPLETION_TOKENS
    logprobs: int | None = None


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


class Tokenize(BaseModel):
    """`/tokenize`: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: Literal[False] | None = None


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


Parsed = TypeVar("Parsed", bound=BaseModel)


def parse(kind: type[Parsed], raw: bytes) -> Parsed:
    """The body of a request; what does not fit is refused field by field."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        found = [_told(one) for one in error.errors(include_url=False, include_context=False)]
        plural = "s" if len(found) > 1 else ""
        lines = "".join(f"\n  {one}" for one in found)
        message = f"{len(found)} validation error{plural}:{lines}"
        raise ApiError(400, message, "Bad Request", found[0]["loc"]) from error


def _told(error: Any) -> dict[str, Any]:
    """One error, its location as a path from the body."""
    place = ".".join(("body", *map(str, error["loc"])))
    given = error["input"].decode(errors="replace") if error["loc"] == () else error["input"]
    return {"type": error["type"], "loc": place, "msg": error["msg"], "input": given}


def completion_prompt(body: Completion) -> Prompt:
    """The one prompt of a completion, as text or as token numbers."""
    given = body.prompt
    if isinstance(given, list) and given and isinstance(given[0], str | list):
        if len(given) > 1:
            message = "this look-alike answers one prompt per request"
            raise ApiError(400, message, "BadRequestError", "prompt")
        given = given[0]
    if isinstance(given, str):
        return Prompt(given, text.count(given))
    numbers = tuple(token for token in given if isinstance(token, int))
    return Prompt(str(given), max(1, len(given)), numbers)


def chat_prompt(messages: list[Message]) -> Prompt:
    """Messages as a chat template would write them."""
    written = (f"<|{message.role}|>{_content(message)}<|end|>" for message in messages)
    rendered = "".join(itertools.chain(written, ("<|assistant|>",)))
    return Prompt(rendered, text.count(rendered))


def _content(message: Message) -> str:
    if isinstance(message.content, list):
        return "".join(part.text for part in message.content)
    return message.content or ""
