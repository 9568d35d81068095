"""From a request's body to what the engine and the answer need, or the refusal."""

from dataclasses import dataclass

from tessera.domain.engine_requests import Limits, Reason
from tessera.engine_sim import text
from tessera.engine_sim.bodies import (
    Chat,
    Completion,
    Generation,
    Prompt,
    chat_prompt,
    completion_prompt,
)
from tessera.engine_sim.errors import ApiError, bad_parameter, unknown_model
from tessera.engine_sim.launch import Launch
from tessera.engine_sim.text import Answer, Stop

MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A generation that is in order."""

    model: str
    """The name that the client used."""
    prompt_tokens: int
    max_tokens: int
    """Bound of the answer, as the metrics count it."""
    output_tokens: int
    ends: Reason
    stop: Stop | None
    """The stop string that ends the answer."""
    answer: Answer
    priority: int
    shared: tuple[int, ...]
    """Names of the prompt's beginnings, for the prefix cache."""
    stream: bool
    usage: bool
    """A last chunk tells the usage."""
    running_usage: bool
    """Every chunk tells the usage so far."""

    def visible(self, start: int, end: int) -> str:
        """Text of the tokens `start` to `end` as far as the client may see it."""
        if self.stop is None:
            return self.answer.text(start, end)
        shown = self.answer.text(0, end)[: self.stop.characters]
        return shown[len(self.answer.text(0, start)) :]


def ask(body: Chat | Completion, launch: Launch) -> Ask:
    """Check the request as the engine's API server does, and settle its answer."""
    _check(body, launch)
    prompt = chat_prompt(body.messages) if isinstance(body, Chat) else completion_prompt(body)
    wanted = _wanted_tokens(body)
    longest = _longest(prompt, wanted, launch.limits.max_model_len)
    if body.min_tokens > longest:
        message = f"min_tokens must be at most max_tokens={longest}, got {body.min_tokens}."
        raise bad_parameter(message, "min_tokens", body.min_tokens)
    answer = text.answer_to(prompt.text)
    tokens, ends = _length(body, answer, longest)
    stop = answer.first_stop(_stops(body), tokens)
    if stop is not None and stop.tokens >= body.min_tokens:
        tokens, ends = stop.tokens, Reason.STOP
    else:
        stop = None
    usage, running = _usage(body, force=launch.arguments.enable_force_include_usage)
    return Ask(
        model=body.model or launch.names[0],
        prompt_tokens=prompt.tokens,
        max_tokens=longest,
        output_tokens=tokens,
        ends=ends,
        stop=stop,
        answer=answer,
        priority=body.priority,
        shared=_shared(prompt, launch.limits),
        stream=bool(body.stream),
        usage=usage,
        running_usage=running,
    )


def _shared(prompt: Prompt, limits: Limits) -> tuple[int, ...]:
    if not limits.prefix_cache:
        return ()
    return text.beginnings(prompt.blocks(limits.block_size))


def _check(body: Chat | Completion, launch: Launch) -> None:
    if body.model is not None and body.model not in launch.known:
        raise unknown_model(body.model, launch.names)
    if body.n not in (None, 1):
        raise ApiError(400, "this look-alike gives one answer (n=1)", "BadRequestError", "n")
    if body.stream_options is not None and not body.stream:
        message = "Stream options can only be defined when `stream=True`."
        raise bad_parameter(message, "stream_options", body.stream_options.model_dump())
    if body.temperature is not None and body.temperature < 0:
        message = f"temperature must be non-negative, got {body.temperature}."
        raise bad_parameter(message, "temperature", body.temperature)
    logprobs = body.top_logprobs if isinstance(body, Chat) else body.logprobs
    if (logprobs or 0) > MAX_LOGPROBS:
        message = (
            f"Requested sample logprobs of {logprobs}, "
            f"which is greater than max allowed: {MAX_LOGPROBS}"
        )
        raise bad_parameter(message, "logprobs", logprobs)


def _wanted_tokens(body: Chat | Completion) -> int | None:
    if isinstance(body, Chat) and body.max_completion_tokens is not None:
        return body.max_completion_tokens
    return body.max_tokens


def _longest(prompt: Prompt, wanted: int | None, max_model_len: int) -> int:
    """Tokens that the answer may have at most; prompt and answer share the model's length."""
    if wanted is not None and wanted < 1:
        raise bad_parameter(f"max_tokens must be at least 1, got {wanted}.", "max_tokens", wanted)
    if wanted is not None and wanted > max_model_len:
        message = f"max_tokens={wanted} cannot be greater than max_model_len={max_model_len}."
        told = f"{message} Please request fewer output tokens."
        raise bad_parameter(told, "max_tokens", wanted)
    if prompt.tokens + (wanted or 1) > max_model_len:
        raise _too_long(prompt, wanted, max_model_len)
    return wanted or max_model_len - prompt.tokens


def _too_long(prompt: Prompt, wanted: int | None, max_model_len: int) -> ApiError:
    limit = f"This model's maximum context length is {max_model_len} tokens. However, "
    if prompt.tokens >= max_model_len:
        least = min(prompt.tokens, max_model_len + 1)
        message = (
            f"{limit}your prompt contains at least {least} input tokens, which exceeds this limit "
            "even without any output tokens. Please reduce the length of the input prompt."
        )
        return bad_parameter(message, "input_tokens", least)
    least = max_model_len - (wanted or 0) + 1
    message = (
        f"{limit}you requested {wanted} output tokens and your prompt contains at least {least} "
        f"input tokens, for a total of at least {least + (wanted or 0)} tokens. Please reduce the "
        "length of the input prompt or the number of requested output tokens."
    )
    return bad_parameter(message, "input_tokens", least)


def _length(body: Generation, answer: Answer, longest: int) -> tuple[int, Reason]:
    """How long the answer gets by itself, and why it ends there."""
    own = max(answer.own_length, body.min_tokens)
    if body.ignore_eos or own > longest:
        return longest, Reason.LENGTH
    return own, Reason.STOP


def _stops(body: Generation) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _usage(body: Generation, *, force: bool) -> tuple[bool, bool]:
    options = body.stream_options
    if options is None:
        return force, False
    usage = bool(options.include_usage) or force
    return usage, usage and bool(options.continuous_usage_stats)
