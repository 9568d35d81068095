"""From a request's body to what the engine and the answer need, or the refusal."""

from collections.abc import Container
from dataclasses import dataclass

from tessera_lab.engine.requests import EngineLimits, FinishReason
from tessera_lab.sim import checks, text
from tessera_lab.sim.bodies import (
    ChatBody,
    CompletionBody,
    GenerationBody,
    Prompt,
    chat_prompt,
    completion_prompts,
)
from tessera_lab.sim.launch import EngineConfig
from tessera_lab.sim.text import GeneratedText, StopMatch


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpec:
    """One of the answers that a request asks for."""

    index: int
    prompt: Prompt
    max_tokens: int
    """Bound of the answer, as the metrics count it."""
    output_tokens: int
    finish_reason: FinishReason
    stop: StopMatch | None
    """The stop string that ends the answer."""
    generated: GeneratedText
    shared_prefixes: tuple[int, ...]
    """Names of the prompt's beginnings, for the prefix cache."""

    def visible_text(self, start: int, end: int) -> str:
        """Text of the tokens `start` to `end` as far as the client may see it."""
        if self.stop is None:
            return self.generated.text(start, end)
        shown = self.generated.text(0, end)[: self.stop.characters]
        return shown[len(self.generated.text(0, start)) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSpec:
    """A generation that is in order."""

    model: str
    """As the answer names it."""
    samples: tuple[SampleSpec, ...]
    samples_per_prompt: int
    """Of each prompt."""
    priority: int
    stream: bool
    include_usage: bool = False
    """A last chunk tells the usage."""
    continuous_usage: bool = False
    """Every chunk tells the usage so far."""
    logprobs: int | None = None
    """Alternatives of every token."""
    prompt_logprobs: int | None = None
    echo: bool = False
    return_token_ids: bool = False
    """The answer tells tokens as numbers, too."""

    @property
    def prompt_tokens(self) -> int:
        """Of each prompt once."""
        return sum(sample.prompt.tokens for sample in self.samples[:: self.samples_per_prompt])


def generation_spec(
    body: ChatBody | CompletionBody, config: EngineConfig, adapters: Container[str]
) -> GenerationSpec:
    """Check the request as the engine's API server does, and settle its answers."""
    model = checks.served_name(body.model, config, adapters)
    checks.check_parameters(body)
    if isinstance(body, ChatBody):
        checks.check_chat(body)
    prompts = _prompts(body)
    logprobs = checks.logprob_count(body, config.arguments.max_logprobs)
    count = body.n or 1
    samples = [
        _sample_spec(body, config.limits, prompt, prompt_index * count + sample_index, sample_index)
        for prompt_index, prompt in enumerate(prompts)
        for sample_index in range(count)
    ]
    include_usage, continuous = _usage_options(
        body, force=config.arguments.enable_force_include_usage
    )
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
    return [chat_prompt(body.messages)]


def _sample_spec(
    body: ChatBody | CompletionBody,
    limits: EngineLimits,
    prompt: Prompt,
    index: int,
    sample_index: int,
) -> SampleSpec:
    max_tokens = checks.max_answer_tokens(prompt, _requested_tokens(body), limits.max_model_len)
    checks.check_min_tokens(body.min_tokens, max_tokens)
    generated = text.generate_text(prompt.text, sample_index)
    tokens, finish_reason = _natural_end(body, generated, max_tokens)
    stop = generated.first_stop(_stop_strings(body), tokens)
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
        shared_prefixes=_shared_prefixes(prompt, limits),
    )


def _shared_prefixes(prompt: Prompt, limits: EngineLimits) -> tuple[int, ...]:
    if not limits.prefix_cache:
        return ()
    return text.prefix_hashes(prompt.blocks(limits.block_size))


def _requested_tokens(body: ChatBody | CompletionBody) -> int | None:
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        return body.max_completion_tokens
    return body.max_tokens


def _natural_end(
    body: GenerationBody, generated: GeneratedText, max_tokens: int
) -> tuple[int, FinishReason]:
    """How long the answer gets by itself, and why it ends there."""
    natural_length = max(generated.natural_length, body.min_tokens)
    if body.ignore_eos or natural_length > max_tokens:
        return max_tokens, FinishReason.LENGTH
    return natural_length, FinishReason.STOP


def _stop_strings(body: GenerationBody) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _usage_options(body: GenerationBody, *, force: bool) -> tuple[bool, bool]:
    options = body.stream_options
    if options is None:
        return force, False
    usage = bool(options.include_usage) or force
    return usage, usage and bool(options.continuous_usage_stats)
