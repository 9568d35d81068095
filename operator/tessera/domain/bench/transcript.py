"""A streamed answer, event by event."""

import json
from array import array
from typing import Any

from tessera.domain.bench.answers import Answer, Failure
from tessera.domain.bench.jobs import Job

_DONE = b"[DONE]"
_SAID = ("content", "reasoning", "reasoning_content", "text")
_DETAIL = 300
"""Characters of a server's message that are kept."""


class Transcript:
    """Collects what arrives; `answer` may be asked for at any time."""

    __slots__ = (
        "_cached",
        "_detail",
        "_due",
        "_ended",
        "_failure",
        "_finished",
        "_first",
        "_gaps",
        "_job",
        "_newest",
        "_output",
        "_prompt",
        "_sent",
    )

    def __init__(self, job: Job, due: float, sent: float) -> None:
        self._job = job
        self._due = due
        self._sent = self._newest = self._ended = sent
        self._first: float | None = None
        self._gaps: array[float] = array("d")
        self._prompt: int | None = None
        self._output: int | None = None
        self._cached: int | None = None
        self._finished = False
        self._failure = self._detail = ""

    def event(self, data: bytes, at: float) -> None:
        """One event of the stream."""
        if data == _DONE:
            self._ended = at
            return
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            self.fail(Failure.NO_STREAM, f"not JSON: {data[:_DETAIL].decode(errors='replace')}")
            return
        if "error" in body:
            self.fail(Failure.ERROR, json.dumps(body["error"]))
            return
        try:
            self._choices(body.get("choices") or (), at)
            if body.get("usage"):
                self._usage(body["usage"])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            self.fail(Failure.NO_STREAM, f"not a chunk: {data[:_DETAIL].decode(errors='replace')}")

    def fail(self, failure: str, detail: str) -> None:
        """The first failure is the one that counts."""
        if not self._failure:
            self._failure, self._detail = failure, detail[:_DETAIL]

    def answer(self, at: float) -> Answer:
        """What it came to, when nothing more arrives after `at`."""
        tokens = 0 if self._first is None else 1 + len(self._gaps)
        if self._failure:
            pass
        elif not self._finished:
            self.fail(Failure.CUT, "the stream ended before the answer did")
        elif not (self._output or tokens):
            self.fail(Failure.EMPTY, "the answer has no tokens")
        return Answer(
            job=self._job,
            due=self._due,
            sent=self._sent,
            first=self._first,
            gaps=self._gaps,
            ended=at if self._failure else max(self._ended, self._newest),
            prompt_tokens=self._prompt,
            output_tokens=tokens if self._output is None else self._output,
            cached_tokens=self._cached,
            exact=self._output is not None,
            failure=self._failure,
            detail=self._detail,
        )

    def _choices(self, choices: Any, at: float) -> None:
        if not choices:
            return
        choice = choices[0]
        said = choice.get("delta", choice)
        # The opening chunk of a chat has a role and no text; an empty text may still be a token.
        if any(said.get(key) is not None for key in _SAID) and not (
            "role" in said and not any(said.get(key) for key in _SAID)
        ):
            self._token(at)
        reason = choice.get("finish_reason")
        if reason == "abort":
            self.fail(Failure.ABORTED, "the server ended the answer (finish_reason abort)")
        elif reason:
            self._finished = True
            self._ended = at

    def _token(self, at: float) -> None:
        if self._first is None:
            self._first = at
        else:
            self._gaps.append(at - self._newest)
        self._newest = at

    def _usage(self, usage: Any) -> None:
        self._output = int(usage["completion_tokens"])
        self._prompt = int(usage["prompt_tokens"])
        details = usage.get("prompt_tokens_details")
        if details and details.get("cached_tokens") is not None:
            self._cached = int(details["cached_tokens"])
