"""The JSON of chats and completions, field by field as vLLM gives it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tessera_lab.engine.requests import FinishReason
from tessera_lab.sim import logprobs, text
from tessera_lab.sim.generation_spec import GenerationSpec, SampleSpec
from tessera_lab.sim.usage import GenerationEnd, Timing, TokenUsage

DONE = b"data: [DONE]\n\n"
_CHAT_CHUNK, _COMPLETION = "chat.completion.chunk", "text_completion"
_UNUSED_IN_MESSAGES = ("refusal", "annotations", "audio", "function_call", "reasoning")


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
    def finish(self) -> dict[str, Any]:
        """Return why the sample ended, in the fields of a choice."""
        ending = self.ending
        return {"finish_reason": ending and ending.reason, "stop_reason": ending and ending.stop}

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
        self,
        kind: str,
        choice: dict[str, Any],
        usage: dict[str, Any] | None,
        *,
        last: bool = False,
        **more: Any,
    ) -> bytes:
        """Return one chunk; the `last` one has the fingerprint where no usage chunk follows."""
        body = {**self.head(kind), "choices": [choice]}
        if last:
            body["system_fingerprint"] = self.fingerprint
        return server_sent_event(body | ({"usage": usage} if usage is not None else {}) | more)

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
        return self.envelope.chunk(
            _CHAT_CHUNK,
            choice,
            usage.chat_chunk() if usage else None,
            prompt_token_ids=sample.prompt.ids() if self.spec.return_token_ids else None,
            prompt_text=None,
        )

    def chunk(self, span: TokenSpan, usage: TokenUsage | None) -> bytes:
        ended, spec = span.ending is not None, self.spec
        choice = {
            "index": span.sample.index,
            "delta": _content(span),
            "logprobs": self._logprobs(span),
            **(_chat_finish(span) if ended else {"finish_reason": None}),
            "token_ids": span.token_ids if spec.return_token_ids else None,
        }
        last = ended and not spec.include_usage
        return self.envelope.chunk(
            _CHAT_CHUNK, choice, usage.chat_chunk() if usage else None, last=last
        )

    def usage(self, usage: TokenUsage, timing: Timing | None) -> bytes:
        usage_body = usage.final_chunk({"created_cache_tokens": 0})
        return self.envelope.usage_chunk(_CHAT_CHUNK, usage_body, timing)

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
        unused = dict.fromkeys(("content", *_UNUSED_IN_MESSAGES))
        message = {"role": "assistant", **unused, **_content(span)}
        return {
            "index": span.sample.index,
            "message": message,
            "logprobs": self._logprobs(span),
            **_chat_finish(span),
            "token_ids": span.token_ids if self.spec.return_token_ids else None,
            "routed_experts": None,
        }

    def _logprobs(self, span: TokenSpan) -> dict[str, Any] | None:
        count = self.spec.logprobs
        if count is None or span.start == span.end:
            return None
        return logprobs.chat_logprobs(span.tokens, span.start, count)


def _content(span: TokenSpan) -> dict[str, Any]:
    """Return the text, or the same as the arguments of the tool that the answer calls."""
    tool = span.sample.tool
    if tool is None:
        return {"content": span.text}
    function, head = {"arguments": span.text}, dict[str, Any]()
    if span.start == 0:
        function = {"name": tool, **function}
        head = {"id": f"call-{span.sample.index}", "type": "function"}
    return {"tool_calls": [{"index": 0, **head, "function": function}]}


def _chat_finish(span: TokenSpan) -> dict[str, Any]:
    is_called = span.sample.tool is not None and span.finish["finish_reason"] is FinishReason.STOP
    return span.finish | ({"finish_reason": "tool_calls"} if is_called else {})


@dataclass(frozen=True, slots=True)
class CompletionEncoder:
    """`/v1/completions`."""

    envelope: Envelope
    spec: GenerationSpec

    def opening(self, sample: SampleSpec, usage: TokenUsage | None) -> bytes:
        """Return the echoed prompt, the only event before the first token."""
        if not self.spec.echo:
            return b""
        choice = self._empty_choice(sample, sample.prompt.text)
        return self.envelope.chunk(_COMPLETION, choice, usage.totals() if usage else None)

    def chunk(self, span: TokenSpan, usage: TokenUsage | None) -> bytes:
        spec = self.spec
        choice = self._empty_choice(span.sample, span.text) | span.finish
        choice["logprobs"] = self._logprobs(span, echo=False)
        if spec.return_token_ids:
            choice["token_ids"] = span.token_ids
            choice["prompt_token_ids"] = None if span.start else span.sample.prompt.ids()
        last = span.ending is not None and not spec.include_usage
        return self.envelope.chunk(
            _COMPLETION, choice, usage.totals() if usage else None, last=last
        )

    def usage(self, usage: TokenUsage, timing: Timing | None) -> bytes:
        return self.envelope.usage_chunk(_COMPLETION, usage.final_chunk({}), timing)

    def whole(
        self, spans: Sequence[TokenSpan], usage: TokenUsage, timing: Timing | None
    ) -> dict[str, Any]:
        return {
            **self.envelope.body(_COMPLETION, list(map(self._choice, spans))),
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
            **span.finish,
            "token_ids": span.token_ids if spec.return_token_ids else None,
            "prompt_logprobs": _prompt_logprobs(spec, span.sample),
            "prompt_token_ids": prompt.ids() if spec.return_token_ids else None,
            "routed_experts": None,
        }

    def _empty_choice(self, sample: SampleSpec, shown_text: str) -> dict[str, Any]:
        unset = ("logprobs", "finish_reason", "stop_reason", "prompt_token_ids", "token_ids")
        return {"index": sample.index, "text": shown_text, **dict.fromkeys(unset)}

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
