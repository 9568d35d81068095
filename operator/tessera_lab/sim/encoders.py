"""The JSON of chats and completions, field by field as vLLM gives it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tessera_lab.sim import logprobs, text
from tessera_lab.sim.generation_spec import GenerationSpec, SampleSpec
from tessera_lab.sim.usage import GenerationEnd, Timing, TokenUsage

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """Consecutive tokens of one sample; the last span has its ending."""

    sample: SampleSpec
    start: int
    end: int
    ending: GenerationEnd | None = None

    @property
    def text(self) -> str:
        return self.sample.visible_text(self.start, self.end)

    @property
    def tokens(self) -> list[str]:
        return self.sample.generated.pieces(self.start, self.end)

    @property
    def token_ids(self) -> list[int]:
        return list(map(text.token_id, self.tokens))


class WholeEncoder(Protocol):
    """Encodes a response as one body."""

    def whole(
        self, spans: Sequence[TokenSpan], usage: TokenUsage, timing: Timing | None
    ) -> dict[str, Any]: ...


class ResponseEncoder(WholeEncoder, Protocol):
    """Encodes a response as one body, or as the bytes of a stream."""

    def opening(self, sample: SampleSpec, usage: TokenUsage | None) -> bytes: ...

    def chunk(self, span: TokenSpan, usage: TokenUsage | None) -> bytes: ...

    def usage(self, usage: TokenUsage, timing: Timing | None) -> bytes:
        """Return the event after the last token, where the request asks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Fields that all parts of one response share."""

    id: str
    created: int
    model: str
    fingerprint: str

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the beginning of a response in one piece."""
        return {
            **self.head(kind),
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": self.fingerprint,
        }

    def chunk(
        self, kind: str, choice: dict[str, Any], usage: dict[str, Any] | None, *, last: bool
    ) -> dict[str, Any]:
        """Return one chunk; the `last` one has the fingerprint where no usage chunk follows."""
        body = {**self.head(kind), "choices": [choice]}
        if last:
            body["system_fingerprint"] = self.fingerprint
        return body if usage is None else {**body, "usage": usage}

    def usage_chunk(self, kind: str, usage: dict[str, Any], timing: Timing | None) -> bytes:
        body = {**self.head(kind), "choices": [], "usage": usage}
        body["system_fingerprint"] = self.fingerprint
        return server_sent_event(body | ({"metrics": timing.to_milliseconds()} if timing else {}))


@dataclass(frozen=True, slots=True)
class ChatEncoder:
    """`/v1/chat/completions`."""

    envelope: Envelope
    spec: GenerationSpec

    def opening(self, sample: SampleSpec, usage: TokenUsage | None) -> bytes:
        choice = {
            "index": sample.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        body = self._chunk(choice, usage)
        token_ids = sample.prompt.ids() if self.spec.return_token_ids else None
        return server_sent_event({**body, "prompt_token_ids": token_ids, "prompt_text": None})

    def chunk(self, span: TokenSpan, usage: TokenUsage | None) -> bytes:
        ending = span.ending
        choice: dict[str, Any] = {
            "index": span.sample.index,
            "delta": {"content": span.text},
            "logprobs": self._logprobs(span),
            "finish_reason": ending and ending.reason,
        }
        if ending is not None:
            choice["stop_reason"] = ending.stop
        choice["token_ids"] = span.token_ids if self.spec.return_token_ids else None
        body = self._chunk(choice, usage, last=ending is not None and not self.spec.include_usage)
        return server_sent_event(body)

    def usage(self, usage: TokenUsage, timing: Timing | None) -> bytes:
        usage_body = usage.final_chunk({"created_cache_tokens": 0})
        return self.envelope.usage_chunk("chat.completion.chunk", usage_body, timing)

    def whole(
        self, spans: Sequence[TokenSpan], usage: TokenUsage, timing: Timing | None
    ) -> dict[str, Any]:
        spec, prompt = self.spec, spans[0].sample.prompt
        return {
            **self.envelope.body("chat.completion", list(map(self._choice, spans))),
            "usage": usage.full(created=0),
            "prompt_logprobs": _prompt_logprobs(spec, spans[0].sample),
            "prompt_token_ids": prompt.ids() if spec.return_token_ids else None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": _timing_metrics(timing),
        }

    def _choice(self, span: TokenSpan) -> dict[str, Any]:
        message = {
            "role": "assistant",
            "content": span.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        return {
            "index": span.sample.index,
            "message": message,
            "logprobs": self._logprobs(span),
            "finish_reason": span.ending and span.ending.reason,
            "stop_reason": span.ending and span.ending.stop,
            "token_ids": span.token_ids if self.spec.return_token_ids else None,
            "routed_experts": None,
        }

    def _logprobs(self, span: TokenSpan) -> dict[str, Any] | None:
        count = self.spec.logprobs
        if count is None or span.start == span.end:
            return None
        return logprobs.chat_logprobs(span.tokens, span.start, count)

    def _chunk(
        self, choice: dict[str, Any], usage: TokenUsage | None, *, last: bool = False
    ) -> dict[str, Any]:
        usage_body = usage.chat_chunk() if usage else None
        return self.envelope.chunk("chat.completion.chunk", choice, usage_body, last=last)


@dataclass(frozen=True, slots=True)
class CompletionEncoder:
    """`/v1/completions`."""

    envelope: Envelope
    spec: GenerationSpec

    def opening(self, sample: SampleSpec, usage: TokenUsage | None) -> bytes:
        """Return the echoed prompt, the only event before the first token."""
        if not self.spec.echo:
            return b""
        return server_sent_event(self._chunk(self._empty_choice(sample, sample.prompt.text), usage))

    def chunk(self, span: TokenSpan, usage: TokenUsage | None) -> bytes:
        ending, spec = span.ending, self.spec
        choice = self._empty_choice(span.sample, span.text)
        choice["logprobs"] = self._logprobs(span, echo=False)
        choice["finish_reason"] = ending and ending.reason
        choice["stop_reason"] = ending and ending.stop
        if spec.return_token_ids:
            choice["token_ids"] = span.token_ids
            choice["prompt_token_ids"] = None if span.start else span.sample.prompt.ids()
        body = self._chunk(choice, usage, last=ending is not None and not spec.include_usage)
        return server_sent_event(body)

    def usage(self, usage: TokenUsage, timing: Timing | None) -> bytes:
        return self.envelope.usage_chunk("text_completion", usage.final_chunk({}), timing)

    def whole(
        self, spans: Sequence[TokenSpan], usage: TokenUsage, timing: Timing | None
    ) -> dict[str, Any]:
        return {
            **self.envelope.body("text_completion", list(map(self._choice, spans))),
            "usage": usage.full(created=None),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": _timing_metrics(timing),
        }

    def _choice(self, span: TokenSpan) -> dict[str, Any]:
        spec, prompt = self.spec, span.sample.prompt
        return {
            "index": span.sample.index,
            "text": (prompt.text if spec.echo else "") + span.text,
            "logprobs": self._logprobs(span, echo=spec.echo),
            "finish_reason": span.ending and span.ending.reason,
            "stop_reason": span.ending and span.ending.stop,
            "token_ids": span.token_ids if spec.return_token_ids else None,
            "prompt_logprobs": _prompt_logprobs(spec, span.sample),
            "prompt_token_ids": prompt.ids() if spec.return_token_ids else None,
            "routed_experts": None,
        }

    def _empty_choice(self, sample: SampleSpec, shown_text: str) -> dict[str, Any]:
        return {
            "index": sample.index,
            "text": shown_text,
            "logprobs": None,
            "finish_reason": None,
            "stop_reason": None,
            "prompt_token_ids": None,
            "token_ids": None,
        }

    def _chunk(
        self, choice: dict[str, Any], usage: TokenUsage | None, *, last: bool = False
    ) -> dict[str, Any]:
        usage_body = usage.totals() if usage else None
        return self.envelope.chunk("text_completion", choice, usage_body, last=last)

    def _logprobs(self, span: TokenSpan, *, echo: bool) -> dict[str, Any] | None:
        count = self.spec.logprobs
        if count is None or (span.start == span.end and not echo):
            return None
        prompt = span.sample.prompt.pieces() if echo else []
        offset = len(span.sample.generated.text(0, span.start))
        return logprobs.completion_logprobs(
            [*prompt, *span.tokens], span.start, count, offset, begins=echo
        )


def _prompt_logprobs(
    spec: GenerationSpec, sample: SampleSpec
) -> list[dict[str, Any] | None] | None:
    count = spec.prompt_logprobs
    return None if count is None else logprobs.prompt_logprobs(sample.prompt.pieces(), count)


def _timing_metrics(timing: Timing | None) -> dict[str, Any] | None:
    return {**timing.to_milliseconds(), "speculative_decoding": None} if timing else None


def server_sent_event(body: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: %b\n\n" % dump_json(body).encode()


def dump_json(body: object) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
