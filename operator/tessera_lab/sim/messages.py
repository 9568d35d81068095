"""`/v1/messages`: Anthropic's form of a chat."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from typing_extensions import override

from tessera_lab.engine.requests import FinishReason
from tessera_lab.sim.asks import GenerationSpec, SampleSpec
from tessera_lab.sim.bodies import ChatBody, ChatMessage
from tessera_lab.sim.bodies import ContentPart as TextPart
from tessera_lab.sim.errors import EngineApiError
from tessera_lab.sim.forms import Envelope, TokenSpan, dump_json
from tessera_lab.sim.usage import GenerationEnd, Timing, TokenUsage


class Counted(BaseModel):
    """What is counted: the messages and the system's words before them."""

    model: str
    messages: list[ChatMessage]
    system: str | list[TextPart] | None = None

    def chat(self) -> ChatBody:
        """The same as a chat."""
        return ChatBody(model=self.model, messages=self._all())

    def _all(self) -> list[ChatMessage]:
        if self.system is None:
            return self.messages
        return [ChatMessage(role="system", content=self.system), *self.messages]


class MessagesBody(Counted):
    """A request."""

    max_tokens: int
    stream: bool | None = False
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    @override
    def chat(self) -> ChatBody:
        return ChatBody(
            model=self.model,
            messages=self._all(),
            max_tokens=self.max_tokens,
            stream=self.stream,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )


class MessageForm:
    """Its answers."""

    def __init__(self, envelope: Envelope, ask: GenerationSpec) -> None:
        self._envelope = envelope
        self._ask = ask

    def opening(self, part: SampleSpec, usage: TokenUsage | None) -> bytes:  # noqa: ARG002  # as others
        told = {"input_tokens": part.prompt.tokens, "output_tokens": 0}
        ends = {"stop_reason": None, "stop_sequence": None}
        message = {**self._head(), "content": [], "model": self._ask.model, **ends, "usage": told}
        return _event("message_start", message=message) + _event(
            "content_block_start", content_block={"type": "text", "text": ""}, index=0
        )

    def chunk(self, piece: TokenSpan, usage: TokenUsage | None) -> bytes:  # noqa: ARG002  # as others
        if not piece.text:
            return b""
        delta = {"type": "text_delta", "text": piece.text}
        return _event("content_block_delta", delta=delta, index=0)

    def closing(
        self,
        pieces: Sequence[TokenSpan],
        usage: TokenUsage,
        timing: Timing | None,  # noqa: ARG002
    ) -> bytes:  # as others
        reason, stop = _ended(pieces[0].ending)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        return b"".join(
            (
                _event("content_block_stop", index=0),
                _event("message_delta", delta=delta, usage=_usage(usage)),
                _event("message_stop"),
            )
        )

    def whole(
        self,
        pieces: Sequence[TokenSpan],
        usage: TokenUsage,
        timing: Timing | None,  # noqa: ARG002
    ) -> dict[str, Any]:  # as others
        reason, stop = _ended(pieces[0].ending)
        return {
            **self._head(),
            "content": [{"type": "text", "text": pieces[0].text}],
            "model": self._ask.model,
            "stop_reason": reason,
            **({"stop_sequence": stop} if stop else {}),
            "usage": _usage(usage),
        }

    def _head(self) -> dict[str, Any]:
        return {"id": self._envelope.id, "type": "message", "role": "assistant"}


def refusal(error: EngineApiError) -> dict[str, Any]:
    """The error in this form."""
    told = error.body["error"]
    return {"type": "error", "error": {"type": told["type"], "message": told["message"]}}


def _ended(ending: GenerationEnd | None) -> tuple[str, str | None]:
    if ending is None or ending.reason is FinishReason.LENGTH:
        return "max_tokens", None
    return ("stop_sequence", ending.stop) if ending.stop else ("end_turn", None)


def _usage(usage: TokenUsage) -> dict[str, int]:
    told = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
    if usage.cached_tokens is None:
        return told
    return {
        **told,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {dump_json({'type': kind, **fields})}\n\n".encode()
