"""A streamed response, event by event."""

import json
from array import array
from typing import Any

from tessera_lab.load.requests import BenchRequest
from tessera_lab.load.responses import BenchResponse, RequestFailure

_DONE = b"[DONE]"
_TEXT_KEYS = ("content", "reasoning", "reasoning_content", "text")
# Characters of a server's message that are kept.
_MAX_DETAIL = 300


class StreamRecorder:
    """Collects events; `response` may be called at any time."""

    __slots__ = (
        "_cached",
        "_detail",
        "_due_at",
        "_ended",
        "_failure",
        "_finished",
        "_first",
        "_gaps",
        "_newest",
        "_output",
        "_prompt",
        "_request",
        "_sent_at",
    )

    def __init__(self, request: BenchRequest, due: float, sent: float) -> None:
        self._request = request
        self._due_at = due
        self._sent_at = self._newest = self._ended = sent
        self._first: float | None = None
        self._gaps: array[float] = array("d")
        self._prompt: int | None = None
        self._output: int | None = None
        self._cached: int | None = None
        self._finished = False
        self._failure = self._detail = ""

    def add_event(self, data: bytes, received_at: float) -> None:
        """Add one event of the stream."""
        if data == _DONE:
            self._ended = received_at
            return
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            detail = f"not JSON: {data[:_MAX_DETAIL].decode(errors='replace')}"
            self.fail(RequestFailure.NO_STREAM, detail)
            return
        if "error" in body:
            self.fail(RequestFailure.ERROR, json.dumps(body["error"]))
            return
        try:
            self._choices(body.get("choices") or (), received_at)
            if body.get("usage"):
                self._usage(body["usage"])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            self.fail(
                RequestFailure.NO_STREAM,
                f"not a chunk: {data[:_MAX_DETAIL].decode(errors='replace')}",
            )

    def fail(self, failure: str, detail: str) -> None:
        """Record a failure; only the first one counts."""
        if not self._failure:
            self._failure, self._detail = failure, detail[:_MAX_DETAIL]

    def response(self, ended_at: float) -> BenchResponse:
        """Return the response, given that nothing more arrives after `ended_at`."""
        tokens = 0 if self._first is None else 1 + len(self._gaps)
        if self._failure:
            pass
        elif not self._finished:
            self.fail(RequestFailure.CUT_OFF, "the stream ended without a finish_reason")
        elif not (self._output or tokens):
            self.fail(RequestFailure.EMPTY, "the response has no tokens")
        return BenchResponse(
            request=self._request,
            due_at=self._due_at,
            sent_at=self._sent_at,
            first_token_at=self._first,
            chunk_gaps=self._gaps,
            ended_at=ended_at if self._failure else max(self._ended, self._newest),
            prompt_tokens=self._prompt,
            output_tokens=tokens if self._output is None else self._output,
            cached_tokens=self._cached,
            exact_tokens=self._output is not None,
            failure=self._failure,
            detail=self._detail,
        )

    def _choices(self, choices: Any, received_at: float) -> None:
        if not choices:
            return
        choice = choices[0]
        delta = choice.get("delta", choice)
        # The opening chunk of a chat has a role and no text; an empty text may still be a token.
        if any(delta.get(key) is not None for key in _TEXT_KEYS) and not (
            "role" in delta and not any(delta.get(key) for key in _TEXT_KEYS)
        ):
            self._token(received_at)
        reason = choice.get("finish_reason")
        if reason == "abort":
            self.fail(RequestFailure.ABORTED, "the server ended the response (finish_reason abort)")
        elif reason:
            self._finished = True
            self._ended = received_at

    def _token(self, received_at: float) -> None:
        if self._first is None:
            self._first = received_at
        else:
            self._gaps.append(received_at - self._newest)
        self._newest = received_at

    def _usage(self, usage: Any) -> None:
        self._output = int(usage["completion_tokens"])
        self._prompt = int(usage["prompt_tokens"])
        details = usage.get("prompt_tokens_details")
        if details and details.get("cached_tokens") is not None:
            self._cached = int(details["cached_tokens"])
