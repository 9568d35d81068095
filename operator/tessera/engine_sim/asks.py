"""From a request's body to what the engine and the answer need, or the refusal."""

from collections.abc import Container
from dataclasses import dataclass

from tessera.domain.engine_requests import Limits, Reason
from tessera.engine_sim import checks, text
from tessera.engine_sim.bodies import (
    Chat,
    ChatBatch,
    Completion,
    Generation,
    Prompt,
    chat_prompt,
    completion_prompts,
)
from tessera.engine_sim.launch import Launch
from tessera.engine_sim.text import Answer, Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the answers that a request asks for."""

    index: int
    prompt: Prompt
    max_tokens: int
    """Bound of the answer, as the metrics count it."""
    output_tokens: int
    ends: Reason
    stop: Stop | None
    """The stop string that ends the answer."""
    answer: Answer
    shared: tuple[int, ...]
    """Names of the prompt's beginnings, for the prefix cache."""

    def visible(self, start: int, end: int) -> str:
        """Text of the tokens `start` to `end` as far as the client may see it."""
        if self.stop is None:
            return self.answer.text(start, end)
        shown = self.answer.text(0, end)[: self.stop.characters]
        return shown[len(self.answer.text(0, start)) :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A generation that is in order."""

    model: str
    """As the answer names it."""
    parts: tuple[Part, ...]
    answers: int
    """Of each prompt."""
    priority: int
    stream: bool
    usage: bool = False
    """A last chunk tells the usage."""
    running_usage: bool = False
    """Every chunk tells the usage so far."""
    logprobs: int | None = None
    """Alternatives of every token."""
    prompt_logprobs: int | None = None
    echo: bool = False
    ids: bool = False
    """The answer tells tokens as numbers, too."""

    @property
    def prompt_tokens(self) -> int:
        """Of each prompt once."""
        return sum(part.prompt.tokens for part in self.parts[:: self.answers])


def ask(body: Chat | Completion, launch: Launch, adapters: Container[str]) -> Ask:
    """Check the request as the engine's API server does, and settle its answers."""
    model = checks.model(body.model, launch, adapters)
    checks.parameters(body)
    if isinstance(body, Chat):
        checks.chat(body)
    prompts = _prompts(body)
    logprobs = checks.logprobs(body, launch.arguments.max_logprobs)
    answers = body.n or 1
    parts = [
        _part(body, launch.limits, prompt, place * answers + number, number)
        for place, prompt in enumerate(prompts)
        for number in range(answers)
    ]
    usage, running = _usage(body, force=launch.arguments.enable_force_include_usage)
    echo = isinstance(body, Completion) and bool(body.echo)
    return Ask(
        model=model,
        parts=tuple(parts),
        answers=answers,
        priority=body.priority,
        stream=bool(body.stream),
        usage=usage,
        running_usage=running,
        logprobs=logprobs,
        prompt_logprobs=logprobs if echo and body.prompt_logprobs is None else body.prompt_logprobs,
        echo=echo,
        ids=bool(body.return_token_ids),
    )


def _prompts(body: Chat | Completion) -> list[Prompt]:
    if isinstance(body, Completion):
        return completion_prompts(body)
    if isinstance(body, ChatBatch):
        return list(map(chat_prompt, body.messages))
    return [chat_prompt(body.messages)]


def _part(body: Chat | Completion, limits: Limits, prompt: Prompt, index: int, number: int) -> Part:
    longest = checks.longest(prompt, _wanted_tokens(body), limits.max_model_len)
    checks.shortest(body.min_tokens, longest)
    answer = text.answer_to(prompt.text, number)
    tokens, ends = _length(body, answer, longest)
    stop = answer.first_stop(_stops(body), tokens)
    if stop is not None and stop.tokens >= body.min_tokens:
        tokens, ends = stop.tokens, Reason.STOP
    else:
        stop = None
    return Part(
        index=index,
        prompt=prompt,
        max_tokens=longest,
        output_tokens=tokens,
        ends=ends,
        stop=stop,
        answer=answer,
        shared=_shared(prompt, limits),
    )


def _shared(prompt: Prompt, limits: Limits) -> tuple[int, ...]:
    if not limits.prefix_cache:
        return ()
    return text.beginnings(prompt.blocks(limits.block_size))


def _wanted_tokens(body: Chat | Completion) -> int | None:
    if isinstance(body, Chat) and body.max_completion_tokens is not None:
        return body.max_completion_tokens
    return body.max_tokens


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
