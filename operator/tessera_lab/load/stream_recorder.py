"""A streamed response, event by event."""

import json
from typing import Any

from tessera_lab.load.requests import BenchRequest
from tessera_lab.load.responses import BenchResponse, RequestFailure

_DONE = b"[DONE]"
_TEXT_KEYS = ("content", "reasoning", "reasoning_content", "text")
# Characters of a server's message that are kept.
_MAX_DETAIL = 300


class StreamRecorder:
    """Writes events into a response, which is complete after `finish`."""

    __slots__ = ("_finished", "_newest_at", "response")

    def __init__(self, request: BenchRequest, due: float, sent: float) -> None:
        self.response = BenchResponse(
            request=request, due_at=due, sent_at=sent, ended_at=sent, exact_tokens=False
        )
        self._newest_at = sent
        """When its newest token came."""
        self._finished = False

    def add_event(self, data: bytes, received_at: float) -> None:
        """Add one event of the stream."""
        if data == _DONE:
            self.response.ended_at = received_at
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
        if not self.response.failure:
            self.response.failure, self.response.detail = failure, detail[:_MAX_DETAIL]

    def finish(self, ended_at: float) -> BenchResponse:
        """Return the response, given that nothing more arrives after `ended_at`."""
        response = self.response
        if not response.exact_tokens:
            response.output_tokens = response.chunks
        if not self._finished:
            self.fail(RequestFailure.CUT_OFF, "the stream ended without a finish_reason")
        elif not (response.output_tokens or response.chunks):
            self.fail(RequestFailure.EMPTY, "the response has no tokens")
        last = max(response.ended_at, self._newest_at)
        response.ended_at = ended_at if response.failure else last
        return response

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
            self.response.ended_at = received_at

    def _token(self, received_at: float) -> None:
        if self.response.first_token_at is None:
            self.response.first_token_at = received_at
        else:
            self.response.chunk_gaps.append(received_at - self._newest_at)
        self._newest_at = received_at

    def _usage(self, usage: Any) -> None:
        response = self.response
        response.output_tokens, response.exact_tokens = int(usage["completion_tokens"]), True
        response.prompt_tokens = int(usage["prompt_tokens"])
        details = usage.get("prompt_tokens_details")
        if details and details.get("cached_tokens") is not None:
            response.cached_tokens = int(details["cached_tokens"])
