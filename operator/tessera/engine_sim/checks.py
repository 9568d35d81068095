"""What the engine's API server refuses before a request reaches the queue."""

from collections.abc import Container

from tessera.engine_sim.bodies import Chat, Completion, Generation, Prompt
from tessera.engine_sim.errors import ApiError, bad_parameter, unknown_model
from tessera.engine_sim.launch import Launch

_GREEDY = 1e-5
"""Below this temperature the likeliest token is taken."""


def model(asked: str | None, launch: Launch, adapters: Container[str]) -> str:
    """The name under which the answer comes: an alias answers as the first name."""
    if asked in adapters and asked is not None:
        return asked
    if asked is not None and asked not in launch.names:
        raise unknown_model(asked, launch.names)
    return launch.names[0]


def parameters(body: Generation) -> None:
    """Values out of range."""
    if body.stream_options is not None and not body.stream:
        told = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise _refused(told, "stream_options")
    answers = 1 if body.n is None else body.n
    if answers < 1:
        raise _refused(f"n must be at least 1, got {answers}.")
    if body.temperature is not None and body.temperature < 0:
        message = f"temperature must be non-negative, got {body.temperature}."
        raise bad_parameter(message, "temperature", body.temperature)
    if body.top_p is not None and not 0 < body.top_p <= 1:
        raise bad_parameter(f"top_p must be in (0, 1], got {body.top_p}.", "top_p", body.top_p)
    if body.top_k is not None and body.top_k < -1:
        raise _refused(f"top_k must be 0 (disable), or at least 1, got {body.top_k}.")
    if answers > 1 and body.temperature is not None and body.temperature < _GREEDY:
        raise _refused(f"n must be 1 when using greedy sampling, got {answers}.")


def chat(body: Chat) -> None:
    """What only a chat can get wrong."""
    if body.top_logprobs and not body.logprobs:
        told = "when using `top_logprobs`, `logprobs` must be set to true."
        raise _refused(f"{told} (parameter=top_logprobs)", "top_logprobs")
    if body.tools and body.tool_choice == "auto":
        told = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'
        raise _refused(f"{told} to be set")


def logprobs(body: Chat | Completion, most: int) -> int | None:
    """Alternatives of every token that the answer tells; None: no log-probabilities at all."""
    if isinstance(body, Chat):
        asked = (body.top_logprobs or 0) if body.logprobs else None
    else:
        asked = body.logprobs
    if asked is not None and asked < -1:
        told = "`logprobs` must be a positive value or -1."
        raise bad_parameter(told, "logprobs", asked)
    if most >= 0 and asked is not None and asked > most:
        told = f"Requested sample logprobs of {asked}, which is greater than max allowed: {most}"
        raise bad_parameter(told, "logprobs", asked)
    return asked


def longest(prompt: Prompt, wanted: int | None, max_model_len: int) -> int:
    """Tokens that the answer may have at most; prompt and answer share the model's length."""
    if wanted is not None and wanted < 1:
        raise bad_parameter(f"max_tokens must be at least 1, got {wanted}.", "max_tokens", wanted)
    if wanted is not None and wanted > max_model_len:
        message = f"max_tokens={wanted} cannot be greater than max_model_len={max_model_len}."
        told = f"{message} Please request fewer output tokens."
        raise bad_parameter(told, "max_tokens", wanted)
    left = max_model_len - prompt.tokens
    if left < 1:
        raise _too_long(prompt, max_model_len)
    return left if wanted is None else min(wanted, left)


def shortest(wanted: int, most: int) -> None:
    """`min_tokens` against what the answer may have."""
    if wanted > most:
        told = f"min_tokens must be less than or equal to max_tokens={most}, got {wanted}."
        raise _refused(told)


def _too_long(prompt: Prompt, max_model_len: int) -> ApiError:
    least = min(prompt.tokens, max_model_len + 1)
    message = (
        f"This model's maximum context length is {max_model_len} tokens. However, "
        f"your prompt contains at least {least} input tokens, which exceeds this limit "
        "even without any output tokens. Please reduce the length of the input prompt."
    )
    return bad_parameter(message, "input_tokens", least)


def _refused(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, "BadRequestError", param)
