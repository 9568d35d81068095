"""From a request's body to what the engine and the response need, or the error."""

from collections.abc import Container
from dataclasses import dataclass

from tessera.api.text import counted
from tessera_lab.engine.requests import EngineLimits, FinishReason
from tessera_lab.sim import text
from tessera_lab.sim.bodies import (
    ChatBody,
    CompletionBody,
    GenerationBody,
    Prompt,
    chat_prompt,
    completion_prompts,
)
from tessera_lab.sim.errors import EngineApiError, bad_parameter, bad_request, unknown_model
from tessera_lab.sim.launch.engine_config import EngineConfig
from tessera_lab.sim.text import GeneratedText, StopMatch

# Below this temperature the likeliest token is taken.
_GREEDY = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpec:
    """One of the samples that a request asks for."""

    index: int
    prompt: Prompt
    max_tokens: int
    """Limit on the output, as the metrics count it."""
    output_tokens: int
    finish_reason: FinishReason
    stop: StopMatch | None
    """The stop string that ends the output."""
    generated: GeneratedText
    tool: str | None = None
    """The tool that the output calls; it is then the arguments."""
    shared_prefixes: tuple[int, ...]
    """Names of the prompt's prefixes, for the prefix cache."""

    def visible_text(self, start: int, end: int) -> str:
        """Return the text of the tokens `start` to `end` as far as the client may see it."""
        if self.stop is None:
            return self.generated.text(start, end)
        shown = self.generated.text(0, end)[: self.stop.characters]
        return shown[len(self.generated.text(0, start)) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpec:
    """A valid generation."""

    model: str
    """Name in the response."""
    samples: tuple[SampleSpec, ...]
    samples_per_prompt: int
    """Samples of each prompt (`n`)."""
    priority: int
    stream: bool
    include_usage: bool = False
    """Whether a last chunk has the usage."""
    continuous_usage: bool = False
    """Whether every chunk has the usage so far."""
    logprobs: int | None = None
    """Alternatives per token."""
    prompt_logprobs: int | None = None
    echo: bool = False
    return_token_ids: bool = False
    """Whether the response has token ids as well."""

    @property
    def prompt_tokens(self) -> int:
        """Return the prompt tokens, each prompt counted once."""
        return sum(sample.prompt.tokens for sample in self.samples[:: self.samples_per_prompt])


def generation_spec(
    body: ChatBody | CompletionBody, config: EngineConfig, adapters: Container[str]
) -> GenerationSpec:
    """Validate the request as the engine's API server does, and determine its output."""
    model = _served_name(body.model, config, adapters)
    _check_parameters(body)
    if isinstance(body, ChatBody):
        _check_chat(body)
    prompts = _prompts(body)
    arguments = config.arguments
    logprobs = _logprob_count(body, arguments.max_logprobs)
    count = body.n or 1
    samples = [
        _sample_spec(body, config, prompt, prompt_index * count + sample_index, sample_index)
        for prompt_index, prompt in enumerate(prompts)
        for sample_index in range(count)
    ]
    include_usage, continuous = _usage_options(body, force=arguments.enable_force_include_usage)
    echo = isinstance(body, CompletionBody) and bool(body.echo)
    return GenerationSpec(
        model=model,
        samples=tuple(samples),
        samples_per_prompt=count,
        priority=body.priority,
        stream=bool(body.stream),
        include_usage=include_usage,
        continuous_usage=continuous,
        logprobs=logprobs,
        prompt_logprobs=logprobs if echo and body.prompt_logprobs is None else body.prompt_logprobs,
        echo=echo,
        return_token_ids=bool(body.return_token_ids),
    )


def _prompts(body: ChatBody | CompletionBody) -> list[Prompt]:
    if isinstance(body, CompletionBody):
        return completion_prompts(body)
    return [chat_prompt(body)]


def _sample_spec(
    body: ChatBody | CompletionBody,
    config: EngineConfig,
    prompt: Prompt,
    index: int,
    sample_index: int,
) -> SampleSpec:
    limits = config.limits
    max_tokens = _max_answer_tokens(prompt, _requested_tokens(body), limits.max_model_len)
    _check_min_tokens(body.min_tokens, max_tokens)
    given = config.answers.get(prompt.text)
    text = given.text if given is not None else None
    generated = GeneratedText(prompt.text, sample_index, text)
    calls_tool = given is not None and isinstance(body, ChatBody) and body.tools
    tokens, finish_reason = _natural_end(body, generated, max_tokens)
    stop_strings = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    stop = generated.first_stop(stop_strings, tokens)
    if stop is not None and stop.tokens >= body.min_tokens:
        tokens, finish_reason = stop.tokens, FinishReason.STOP
    else:
        stop = None
    return SampleSpec(
        index=index,
        prompt=prompt,
        max_tokens=max_tokens,
        output_tokens=tokens,
        finish_reason=finish_reason,
        stop=stop,
        generated=generated,
        tool=given.tool if given is not None and calls_tool else None,
        shared_prefixes=_shared_prefixes(prompt, limits, body.cache_salt or ""),
    )


def _shared_prefixes(prompt: Prompt, limits: EngineLimits, salt: str) -> tuple[int, ...]:
    if not limits.prefix_cache:
        return ()
    return text.prefix_hashes(prompt.blocks(limits.block_size), salt)


def _requested_tokens(body: ChatBody | CompletionBody) -> int | None:
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        return body.max_completion_tokens
    return body.max_tokens


def _natural_end(
    body: GenerationBody, generated: GeneratedText, max_tokens: int
) -> tuple[int, FinishReason]:
    """Return how long the output gets by itself, and why it ends there."""
    natural_length = max(generated.natural_length, body.min_tokens)
    if body.ignore_eos or natural_length > max_tokens:
        return max_tokens, FinishReason.LENGTH
    return natural_length, FinishReason.STOP


def _usage_options(body: GenerationBody, *, force: bool) -> tuple[bool, bool]:
    options = body.stream_options
    if options is None:
        return force, False
    usage = bool(options.include_usage) or force
    return usage, usage and bool(options.continuous_usage_stats)


def _served_name(requested: str | None, config: EngineConfig, adapters: Container[str]) -> str:
    """Return the name in the response: an alias answers as the first name."""
    if requested in adapters and requested is not None:
        return requested
    if requested is not None and requested not in config.names:
        raise unknown_model(requested, config.names)
    return config.names[0]


def _check_parameters(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        detail = "Stream options can only be defined when `stream=True`. (parameter=stream_options)"
        raise bad_request(detail, "stream_options")
    count = 1 if body.n is None else body.n
    if count < 1:
        raise bad_request(f"n must be at least 1, got {count}.")
    if body.temperature is not None and body.temperature < 0:
        message = f"temperature must be non-negative, got {body.temperature}."
        raise bad_parameter(message, "temperature", body.temperature)
    if body.top_p is not None and not 0 < body.top_p <= 1:
        raise bad_parameter(f"top_p must be in (0, 1], got {body.top_p}.", "top_p", body.top_p)
    if body.top_k is not None and body.top_k < -1:
        raise bad_request(f"top_k must be 0 (disable), or at least 1, got {body.top_k}.")
    if count > 1 and body.temperature is not None and body.temperature < _GREEDY:
        raise bad_request(f"n must be 1 when using greedy sampling, got {count}.")


def _check_chat(body: ChatBody) -> None:
    """Reject what only a chat can get wrong."""
    if body.top_logprobs and not body.logprobs:
        detail = "when using `top_logprobs`, `logprobs` must be set to true."
        raise bad_request(f"{detail} (parameter=top_logprobs)", "top_logprobs")
    if body.tools and body.tool_choice == "auto":
        detail = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'
        raise bad_request(f"{detail} to be set")


def _logprob_count(body: ChatBody | CompletionBody, max_logprobs: int) -> int | None:
    """Return the alternatives per token of the response; None: no log-probabilities at all."""
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


def _max_answer_tokens(prompt: Prompt, requested: int | None, max_model_len: int) -> int:
    """Return the limit on the output; prompt and output share the model's length."""
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


def _check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    if min_tokens > max_tokens:
        detail = (
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
        )
        raise bad_request(detail)


def _too_long(prompt: Prompt, max_model_len: int) -> EngineApiError:
    at_least = min(prompt.tokens, max_model_len + 1)
    message = (
        f"This model's maximum context length is {counted(max_model_len, 'token')}. However, "
        f"your prompt contains at least {at_least} input tokens, which exceeds this limit "
        "even without any output tokens. Please reduce the length of the input prompt."
    )
    return bad_parameter(message, "input_tokens", at_least)
