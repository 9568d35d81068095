"""The JSON of chats and completions, field by field as the engine gives it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tessera.engine_sim import logprobs, text
from tessera.engine_sim.asks import Ask, Part
from tessera.engine_sim.usage import Ending, Timing, Usage

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some tokens of one answer, the last of them with its ending."""

    part: Part
    start: int
    end: int
    ending: Ending | None = None

    @property
    def text(self) -> str:
        return self.part.visible(self.start, self.end)

    @property
    def tokens(self) -> list[str]:
        return self.part.answer.pieces(self.start, self.end)

    @property
    def ids(self) -> list[int]:
        return list(map(text.token_id, self.tokens))


class Dialect(Protocol):
    """One of the forms of an answer; what it gives for a stream is bytes to send."""

    def opening(self, part: Part, usage: Usage | None) -> bytes: ...

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes: ...

    def closing(self, pieces: Sequence[Piece], usage: Usage, timing: Timing | None) -> bytes:
        """After the last token; `pieces` are the whole answers."""

    def whole(
        self, pieces: Sequence[Piece], usage: Usage, timing: Timing | None
    ) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What all parts of one answer have in common."""

    id: str
    created: int
    model: str
    fingerprint: str

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The beginning of an answer in one piece."""
        return {
            **self.head(kind),
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": self.fingerprint,
        }

    def chunk(
        self, kind: str, choice: dict[str, Any], usage: dict[str, Any] | None, *, last: bool
    ) -> dict[str, Any]:
        """`last`: the end of an answer, after which nothing tells the fingerprint."""
        body = {**self.head(kind), "choices": [choice]}
        if last:
            body["system_fingerprint"] = self.fingerprint
        return body if usage is None else {**body, "usage": usage}

    def usage_chunk(self, kind: str, usage: dict[str, Any], timing: Timing | None) -> bytes:
        body = {**self.head(kind), "choices": [], "usage": usage}
        body["system_fingerprint"] = self.fingerprint
        return event(body | ({"metrics": timing.told()} if timing else {})) + DONE


@dataclass(frozen=True, slots=True)
class ChatForm:
    """`/v1/chat/completions`."""

    envelope: Envelope
    ask: Ask

    def opening(self, part: Part, usage: Usage | None) -> bytes:
        choice = {
            "index": part.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        body = self._chunk(choice, usage)
        told = part.prompt.ids() if self.ask.ids else None
        return event({**body, "prompt_token_ids": told, "prompt_text": None})

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
        ending = piece.ending
        choice: dict[str, Any] = {
            "index": piece.part.index,
            "delta": {"content": piece.text},
            "logprobs": self._logprobs(piece),
            "finish_reason": ending and ending.reason,
        }
        if ending is not None:
            choice["stop_reason"] = ending.stop
        choice["token_ids"] = piece.ids if self.ask.ids else None
        return event(self._chunk(choice, usage, last=ending is not None and not self.ask.usage))

    def closing(self, pieces: Sequence[Piece], usage: Usage, timing: Timing | None) -> bytes:  # noqa: ARG002  # as others
        if not self.ask.usage:
            return DONE
        told = usage.last({"created_cache_tokens": 0})
        return self.envelope.usage_chunk("chat.completion.chunk", told, timing)

    def whole(self, pieces: Sequence[Piece], usage: Usage, timing: Timing | None) -> dict[str, Any]:
        asked, prompt = self.ask, pieces[0].part.prompt
        return {
            **self.envelope.body("chat.completion", list(map(self._choice, pieces))),
            "usage": usage.whole(created=0),
            "prompt_logprobs": _of_prompt(asked, pieces[0].part),
            "prompt_token_ids": prompt.ids() if asked.ids else None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": _metrics(timing),
        }

    def _choice(self, piece: Piece) -> dict[str, Any]:
        message = {
            "role": "assistant",
            "content": piece.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        return {
            "index": piece.part.index,
            "message": message,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.ending and piece.ending.reason,
            "stop_reason": piece.ending and piece.ending.stop,
            "token_ids": piece.ids if self.ask.ids else None,
            "routed_experts": None,
        }

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        count = self.ask.logprobs
        if count is None or piece.start == piece.end:
            return None
        return logprobs.of_chat(piece.tokens, piece.start, count)

    def _chunk(
        self, choice: dict[str, Any], usage: Usage | None, *, last: bool = False
    ) -> dict[str, Any]:
        told = usage.running() if usage else None
        return self.envelope.chunk("chat.completion.chunk", choice, told, last=last)


@dataclass(frozen=True, slots=True)
class CompletionForm:
    """`/v1/completions`."""

    envelope: Envelope
    ask: Ask

    def opening(self, part: Part, usage: Usage | None) -> bytes:
        """Only an echoed prompt comes before the first token."""
        if not self.ask.echo:
            return b""
        return event(self._chunk(self._piece(part, part.prompt.text), usage))

    def chunk(self, piece: Piece, usage: Usage | None) -> bytes:
        ending, asked = piece.ending, self.ask
        choice = self._piece(piece.part, piece.text)
        choice["logprobs"] = self._logprobs(piece, echo=False)
        choice["finish_reason"] = ending and ending.reason
        choice["stop_reason"] = ending and ending.stop
        if asked.ids:
            choice["token_ids"] = piece.ids
            choice["prompt_token_ids"] = None if piece.start else piece.part.prompt.ids()
        return event(self._chunk(choice, usage, last=ending is not None and not asked.usage))

    def closing(self, pieces: Sequence[Piece], usage: Usage, timing: Timing | None) -> bytes:  # noqa: ARG002  # as others
        if not self.ask.usage:
            return DONE
        return self.envelope.usage_chunk("text_completion", usage.last({}), timing)

    def whole(self, pieces: Sequence[Piece], usage: Usage, timing: Timing | None) -> dict[str, Any]:
        return {
            **self.envelope.body("text_completion", list(map(self._choice, pieces))),
            "usage": usage.whole(created=None),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": _metrics(timing),
        }

    def _choice(self, piece: Piece) -> dict[str, Any]:
        asked, prompt = self.ask, piece.part.prompt
        return {
            "index": piece.part.index,
            "text": (prompt.text if asked.echo else "") + piece.text,
            "logprobs": self._logprobs(piece, echo=asked.echo),
            "finish_reason": piece.ending and piece.ending.reason,
            "stop_reason": piece.ending and piece.ending.stop,
            "token_ids": piece.ids if asked.ids else None,
            "prompt_logprobs": _of_prompt(asked, piece.part),
            "prompt_token_ids": prompt.ids() if asked.ids else None,
            "routed_experts": None,
        }

    def _piece(self, part: Part, shown: str) -> dict[str, Any]:
        return {
            "index": part.index,
            "text": shown,
            "logprobs": None,
            "finish_reason": None,
            "stop_reason": None,
            "prompt_token_ids": None,
            "token_ids": None,
        }

    def _chunk(
        self, choice: dict[str, Any], usage: Usage | None, *, last: bool = False
    ) -> dict[str, Any]:
        told = usage.brief() if usage else None
        return self.envelope.chunk("text_completion", choice, told, last=last)

    def _logprobs(self, piece: Piece, *, echo: bool) -> dict[str, Any] | None:
        count = self.ask.logprobs
        if count is None or (piece.start == piece.end and not echo):
            return None
        prompt = piece.part.prompt.pieces() if echo else []
        offset = len(piece.part.answer.text(0, piece.start))
        return logprobs.of_completion(
            [*prompt, *piece.tokens], piece.start, count, offset, begins=echo
        )


def _of_prompt(ask: Ask, part: Part) -> list[dict[str, Any] | None] | None:
    count = ask.prompt_logprobs
    return None if count is None else logprobs.of_prompt(part.prompt.pieces(), count)


def _metrics(timing: Timing | None) -> dict[str, Any] | None:
    return {**timing.told(), "speculative_decoding": None} if timing else None


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % dumps(body).encode()


def dumps(body: object) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
