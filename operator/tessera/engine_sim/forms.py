"""The JSON of answers, field by field as the engine gives it."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from tessera.domain.engine_requests import Reason
from tessera.engine_sim.launch import VERSION, Launch

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of a request so far."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    """What came from the prefix cache, where it is to be told."""

    def brief(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def running(self) -> dict[str, Any]:
        """In the chunks of a chat."""
        return {**self.brief(), "completion_tokens_details": None}

    def last(self) -> dict[str, Any]:
        """In the last chunk."""
        details = self._details()
        return {**self.brief(), **({"prompt_tokens_details": details} if details else {})}

    def whole(self) -> dict[str, Any]:
        """In an answer that is no stream."""
        return {
            **self.brief(),
            "prompt_tokens_details": self._details(),
            "completion_tokens_details": None,
        }

    def _details(self) -> dict[str, Any] | None:
        if self.cached_tokens is None:
            return None
        unknown = {"created_cache_tokens": None, "multimodal_tokens": None}
        return {"cached_tokens": self.cached_tokens, **unknown}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an answer ended."""

    reason: Reason
    stop: str | None = None


class Dialect(Protocol):
    """One of the two forms of generation; chunks are given without their envelope."""

    def opening(self, usage: Usage | None) -> bytes: ...

    def chunk(self, text: str, usage: Usage | None, ending: Ending | None) -> bytes: ...

    def usage_chunk(self, usage: Usage) -> bytes: ...

    def whole(self, text: str, usage: Usage, ending: Ending) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What all parts of one answer have in common."""

    id: str
    created: int
    model: str
    fingerprint: str

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage_chunk(self, kind: str, usage: Usage) -> bytes:
        body = {**self.head(kind), "choices": [], "usage": usage.last()}
        return event({**body, "system_fingerprint": self.fingerprint})


@dataclass(frozen=True, slots=True)
class ChatForm:
    """`/v1/chat/completions`."""

    envelope: Envelope

    def opening(self, usage: Usage | None) -> bytes:
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        body = self._chunk(choice, usage)
        return event({**body, "prompt_token_ids": None, "prompt_text": None})

    def chunk(self, text: str, usage: Usage | None, ending: Ending | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "logprobs": None}
        choice["finish_reason"] = ending and ending.reason
        if ending is not None:
            choice["stop_reason"] = ending.stop
        choice["token_ids"] = None
        return event(self._chunk(choice, usage))

    def usage_chunk(self, usage: Usage) -> bytes:
        return self.envelope.usage_chunk("chat.completion.chunk", usage)

    def whole(self, text: str, usage: Usage, ending: Ending) -> dict[str, Any]:
        message = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": ending.reason,
            "stop_reason": ending.stop,
            "token_ids": None,
            "routed_experts": None,
        }
        return {
            **self.envelope.head("chat.completion"),
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": self.envelope.fingerprint,
            "usage": usage.whole(),
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _chunk(self, choice: dict[str, Any], usage: Usage | None) -> dict[str, Any]:
        body = {**self.envelope.head("chat.completion.chunk"), "choices": [choice]}
        return body if usage is None else {**body, "usage": usage.running()}


@dataclass(frozen=True, slots=True)
class CompletionForm:
    """`/v1/completions`."""

    envelope: Envelope

    def opening(self, usage: Usage | None) -> bytes:  # noqa: ARG002  # a completion has none
        return b""

    def chunk(self, text: str, usage: Usage | None, ending: Ending | None) -> bytes:
        choice = {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": ending and ending.reason,
            "stop_reason": ending and ending.stop,
            "prompt_token_ids": None,
            "token_ids": None,
        }
        body = {**self.envelope.head("text_completion"), "choices": [choice]}
        return event(body if usage is None else {**body, "usage": usage.brief()})

    def usage_chunk(self, usage: Usage) -> bytes:
        return self.envelope.usage_chunk("text_completion", usage)

    def whole(self, text: str, usage: Usage, ending: Ending) -> dict[str, Any]:
        choice = {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": ending.reason,
            "stop_reason": ending.stop,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "routed_experts": None,
        }
        return {
            **self.envelope.head("text_completion"),
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": self.envelope.fingerprint,
            "usage": usage.whole(),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }


def models(launch: Launch, created: int) -> dict[str, Any]:
    """`/v1/models`: one entry for each served name, then the adapters with their base."""
    adapters = [
        _model(name, launch, created)
        | {"root": path, "parent": launch.names[0], "max_model_len": None}
        for name, path in launch.adapters.items()
    ]
    data = [*(_model(name, launch, created) for name in launch.names), *adapters]
    return {"object": "list", "data": data}


def _model(name: str, launch: Launch, created: int) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": launch.arguments.named_model,
        "parent": None,
        "max_model_len": launch.limits.max_model_len,
        "permission": [permission],
    }


def fingerprint(digest: str) -> str:
    return f"vllm-{VERSION}-{digest}"


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % dumps(body).encode()


def dumps(body: object) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))
