"""`/v1/messages`, the API of Anthropic that vLLM has beside that of OpenAI."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tessera_lab.engine.requests import FinishReason
from tessera_lab.sim.bodies import ChatBody, ChatMessage, ContentPart
from tessera_lab.sim.encoders import Envelope, TokenSpan, dump_json
from tessera_lab.sim.generation_spec import GenerationSpec, SampleSpec
from tessera_lab.sim.usage import GenerationEnd, Timing, TokenUsage


class MessagesBody(BaseModel):
    """The fields of `/v1/messages` that have an effect."""

    model: str
    max_tokens: int
    messages: list[ChatMessage]
    system: str | list[ContentPart] | None = None
    stream: bool = False
    stop_sequences: list[str] | None = None
    temperature: float | None = None

    def chat(self) -> ChatBody:
        """Return the same as a chat, as vLLM serves it."""
        system = [ChatMessage(role="system", content=self.system)] if self.system else []
        return ChatBody(
            model=self.model,
            max_tokens=self.max_tokens,
            messages=[*system, *self.messages],
            stream=self.stream,
            stop=self.stop_sequences,
            temperature=self.temperature,
        )


@dataclass(frozen=True, slots=True)
class MessagesEncoder:
    """Encodes an answer of text as one message, or as its events."""

    envelope: Envelope
    spec: GenerationSpec

    def opening(self, sample: SampleSpec, usage: TokenUsage | None) -> bytes:
        del usage
        message = self._message([], sample.prompt.tokens, 0, None)
        block = {"index": 0, "content_block": {"type": "text", "text": ""}}
        return _event("message_start", message=message) + _event("content_block_start", **block)

    def chunk(self, span: TokenSpan, usage: TokenUsage | None) -> bytes:
        del usage
        events = b""
        if span.start < span.end:
            delta = {"type": "text_delta", "text": span.text}
            events = _event("content_block_delta", index=0, delta=delta)
        if span.ending is None:
            return events
        counts = _usage(span.sample.prompt.tokens, span.end)
        return b"".join(
            (
                events,
                _event("content_block_stop", index=0),
                _event("message_delta", delta=_stop(span.ending), usage=counts),
                _event("message_stop"),
            )
        )

    def usage(self, usage: TokenUsage, timing: Timing | None) -> bytes:
        """Return nothing: the last events of the message have it."""
        del usage, timing
        return b""

    def whole(
        self, spans: Sequence[TokenSpan], usage: TokenUsage, timing: Timing | None
    ) -> dict[str, Any]:
        del timing
        (span,) = spans
        content = [{"type": "text", "text": span.text}]
        return self._message(content, usage.prompt_tokens, usage.completion_tokens, span.ending)

    def _message(
        self,
        content: list[dict[str, Any]],
        input_tokens: int,
        output_tokens: int,
        ending: GenerationEnd | None,
    ) -> dict[str, Any]:
        return {
            "id": self.envelope.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.envelope.model,
            **_stop(ending),
            "usage": _usage(input_tokens, output_tokens),
        }


def _stop(ending: GenerationEnd | None) -> dict[str, Any]:
    if ending is None:
        return {"stop_reason": None, "stop_sequence": None}
    reason = "max_tokens" if ending.reason is FinishReason.LENGTH else "end_turn"
    return {"stop_reason": "stop_sequence" if ending.stop else reason, "stop_sequence": ending.stop}


def _usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    return {"input_tokens": input_tokens, "output_tokens": output_tokens}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {dump_json({'type': kind, **fields})}\n\n".encode()
