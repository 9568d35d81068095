"""Request bodies: the fields that have an effect; other fields are ignored."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from tessera_lab.sim import text
from tessera_lab.sim.errors import EngineApiError, bad_request

# Longest answer of `/v1/completions` when the request does not say.
COMPLETION_TOKENS = 16
_JSON = "application/json"

# Prompts find each other in the prefix cache where they have the same one.
CacheSalt = Annotated[str, Field(min_length=1, max_length=128)]


class StreamOptions(BaseModel):
    include_usage: bool | None = True
    continuous_usage_stats: bool | None = False


class GenerationBody(BaseModel):
    """Fields that chats and completions share."""

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
    cache_salt: CacheSalt | None = None


class CompletionBody(GenerationBody):
    """`/v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]] | None = None
    max_tokens: int | None = COMPLETION_TOKENS
    logprobs: int | None = None
    echo: bool | None = False


class PoolingBody(BaseModel):
    """Fields that all routes of an engine with `--runner pooling` take."""

    model: str | None = None
    priority: int = 0
    cache_salt: CacheSalt | None = None

    def generation(self, prompt: Any) -> CompletionBody:
        """Return a prompt with one token of output: the engine works on a text as on that."""
        return CompletionBody(
            model=self.model,
            prompt=prompt,
            max_tokens=1,
            priority=self.priority,
            cache_salt=self.cache_salt,
        )


class ContentPart(BaseModel):
    """A part of a message; only text counts."""

    type: str = "text"
    text: str = ""


class ChatMessage(BaseModel):
    role: str
    content: str | list[ContentPart] | None = None


class ConversationBody(BaseModel):
    """Fields that decide how a conversation becomes a prompt."""

    messages: list[ChatMessage]
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class ChatBody(GenerationBody, ConversationBody):
    """`/v1/chat/completions`."""

    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and its length in tokens."""

    text: str
    tokens: int
    token_ids: tuple[int, ...] = ()
    """The tokens, where the request has token ids."""
    output: tuple[str, ...] = ()
    """The tokens at its end that an engine generated, as it would go on with what is before."""

    @classmethod
    def of_text(cls, prompt: str) -> "Prompt":
        """Return a prompt of text."""
        output = tuple(text.begun_output(prompt))
        before = prompt[: len(prompt) - sum(map(len, output))]
        return cls(prompt, text.count_tokens(before) + len(output), output=output)

    def blocks(self, size: int) -> list[str]:
        """Return its full blocks of so many tokens, as text."""
        if not self.token_ids:
            return text.blocks(self.text, size)
        ends = range(size, len(self.token_ids) + 1, size)
        return [f"{self.token_ids[end - size : end]}" for end in ends]

    def pieces(self) -> list[str]:
        """Return its tokens as text."""
        if self.token_ids:
            return list(map(text.word, self.token_ids))
        before = self.text[: len(self.text) - sum(map(len, self.output))]
        return [*text.pieces(before), *self.output]

    def ids(self) -> list[int]:
        return list(self.token_ids) or list(map(text.token_id, self.pieces()))


Parsed = TypeVar("Parsed", bound=BaseModel)


async def read_body(kind: type[Parsed], request: web.Request) -> Parsed:
    """Parse and validate a request's body.

    Raises EngineApiError: 400 naming each wrong field.
    """
    if request.content_type != _JSON:
        message = f"1 validation error:\n  Unsupported Media Type: Only '{_JSON}' is allowed"
        raise EngineApiError(400, message, "Bad Request")
    try:
        body = json.loads(await request.read())
    except json.JSONDecodeError as error:
        entry = {"type": "json_invalid", "loc": f"body.{error.pos}", "msg": "JSON decode error"}
        raise _validation_error([{**entry, "input": {}, "ctx": {"error": error.msg}}]) from error
    return validated(kind, body, "body")


def validated(kind: type[Parsed], values: object, place: str) -> Parsed:
    """Validate the values of a place in the request; raise EngineApiError as `read_body` does."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        raise _validation_error([_error_entry(place, detail) for detail in details]) from error


def _validation_error(entries: Sequence[dict[str, Any]]) -> EngineApiError:
    """Return 400 for what does not validate, field by field."""
    plural = "s" if len(entries) > 1 else ""
    lines = "".join(f"\n  {entry}" for entry in entries)
    message = f"{len(entries)} validation error{plural}:{lines}"
    return EngineApiError(400, message, "Bad Request", entries[0]["loc"])


def _error_entry(place: str, error: Any) -> dict[str, Any]:
    """Return one error with its location as a path."""
    path = ".".join((place, *map(str, error["loc"])))
    return {"type": error["type"], "loc": path, "msg": error["msg"], "input": error["input"]}


def completion_prompts(body: CompletionBody) -> list[Prompt]:
    """Return the prompts of a completion, each as text or as token ids."""
    prompts = body.prompt
    if not prompts:
        message = "Either prompt or prompt_embeds must be provided and non-empty."
        raise bad_request(f"{message} (parameter=prompt)", "prompt")
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        return [_prompt(prompts)]
    return [_prompt(prompt) for prompt in prompts]


def _prompt(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return Prompt.of_text(prompt)
    unknown = [token for token in prompt if not 0 <= token < text.VOCABULARY]
    if unknown:
        raise bad_request(f"Token id {unknown[0]} is out of vocabulary")
    return Prompt(str(prompt), max(1, len(prompt)), tuple(prompt))


def chat_prompt(body: ConversationBody) -> Prompt:
    """Return the messages as a chat template would render them."""
    messages = body.messages
    if body.continue_final_message and body.add_generation_prompt:
        detail = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        raise bad_request(detail)
    if not messages:
        message = "Cannot apply chat template to an empty conversation."
        raise bad_request(f"{message} Provide at least one message.")
    turns = [f"<|{message.role}|>{_content(message)}<|end|>" for message in messages]
    if body.continue_final_message:
        turns[-1] = turns[-1].removesuffix("<|end|>")
    elif body.add_generation_prompt:
        turns.append("<|assistant|>")
    return Prompt.of_text("".join(turns))


def _content(message: ChatMessage) -> str:
    if isinstance(message.content, list):
        return "".join(part.text for part in message.content)
    return message.content or ""
