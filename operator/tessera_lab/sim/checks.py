"""What the engine's API server refuses before a request reaches the queue."""

from collections.abc import Container

from tessera_lab.sim.bodies import ChatBody, CompletionBody, GenerationBody, Prompt
from tessera_lab.sim.errors import EngineApiError, bad_parameter, unknown_model
from tessera_lab.sim.launch import EngineConfig

# Below this temperature the likeliest token is taken.
_GREEDY = 1e-5


def served_name(requested: str | None, config: EngineConfig, adapters: Container[str]) -> str:
    """The name under which the answer comes: an alias answers as the first name."""
    if requested in adapters and requested is not None:
        return requested
    if requested is not None and requested not in config.names:
        raise unknown_model(requested, config.names)
    return config.names[0]


def check_parameters(body: GenerationBody) -> None:
    """Values out of range."""
    if body.stream_options is not None and not body.stream:
        detail = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise _bad_request(detail, "stream_options")
    count = 1 if body.n is None else body.n
    if count < 1:
        raise _bad_request(f"n must be at least 1, got {count}.")
    if body.temperature is not None and body.temperature < 0:
        message = f"temperature must be non-negative, got {body.temperature}."
        raise bad_parameter(message, "temperature", body.temperature)
    if body.top_p is not None and not 0 < body.top_p <= 1:
        raise bad_parameter(f"top_p must be in (0, 1], got {body.top_p}.", "top_p", body.top_p)
    if body.top_k is not None and body.top_k < -1:
        raise _bad_request(f"top_k must be 0 (disable), or at least 1, got {body.top_k}.")
    if count > 1 and body.temperature is not None and body.temperature < _GREEDY:
        raise _bad_request(f"n must be 1 when using greedy sampling, got {count}.")


def check_chat(body: ChatBody) -> None:
    """What only a chat can get wrong."""
    if body.top_logprobs and not body.logprobs:
        detail = "when using `top_logprobs`, `logprobs` must be set to true."
        raise _bad_request(f"{detail} (parameter=top_logprobs)", "top_logprobs")
    if body.tools and body.tool_choice == "auto":
        detail = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'
        raise _bad_request(f"{detail} to be set")


def logprob_count(body: ChatBody | CompletionBody, max_logprobs: int) -> int | None:
    """Alternatives of every token that the answer tells; None: no log-probabilities at all."""
    if isinstance(body, ChatBody):
        count = (body.top_logprobs or 0) if body.logprobs else None
    else:
        count = body.logprobs
    if count is not None and count < -1:
        detail = "`logprobs` must be a positive value or -1."
        raise bad_parameter(detail, "logprobs", count)
    if max_logprobs >= 0 and count is not None and count > max_logprobs:
        detail = (
            f"Requested sample logprobs of {count}, which is greater than max allowed: "
            f"{max_logprobs}"
        )
        raise bad_parameter(detail, "logprobs", count)
    return count


def max_answer_tokens(prompt: Prompt, requested: int | None, max_model_len: int) -> int:
    """Tokens that the answer may have at most; prompt and answer share the model's length."""
    if requested is not None and requested < 1:
        raise bad_parameter(
            f"max_tokens must be at least 1, got {requested}.", "max_tokens", requested
        )
    if requested is not None and requested > max_model_len:
        message = f"max_tokens={requested} cannot be greater than max_model_len={max_model_len}."
        detail = f"{message} Please request fewer output tokens."
        raise bad_parameter(detail, "max_tokens", requested)
    remaining = max_model_len - prompt.tokens
    if remaining < 1:
        raise _too_long(prompt, max_model_len)
    return remaining if requested is None else min(requested, remaining)


def check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    """`min_tokens` against what the answer may have."""
    if min_tokens > max_tokens:
        detail = (
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
        )
        raise _bad_request(detail)


def _too_long(prompt: Prompt, max_model_len: int) -> EngineApiError:
    at_least = min(prompt.tokens, max_model_len + 1)
    message = (
        f"This model's maximum context length is {max_model_len} tokens. However, "
        f"your prompt contains at least {at_least} input tokens, which exceeds this limit "
        "even without any output tokens. Please reduce the length of the input prompt."
    )
    return bad_parameter(message, "input_tokens", at_least)


def _bad_request(message: str, param: str | None = None) -> EngineApiError:
    return EngineApiError(400, message, "BadRequestError", param)
