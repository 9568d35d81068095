"""The file of answers of one version: a line for each, appended, so that the next Job goes on."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationError

from tessera.api.meta import Wire
from tessera.api.quality_gate import AnswerShares, StratumName
from tessera.batch_runner.errors import storage_errors
from tessera.batch_runner.files import write_all
from tessera.batch_runner.gate.asking import QuestionKey
from tessera.batch_runner.gate.scorers import ModelAnswer
from tessera.batch_runner.gate.suite import SuitePrompt

# So many characters of an answer are stored, and none once the file is so large: scores are small.
MAX_STORED_TEXT = 8192
_MAX_TEXT_FILE = 256 * 2**20
_MAX_LINE_BYTES = 64 * 2**10
_MAX_WORD = 16
# Gaps between tokens are counted by their logarithm: to 5 %, from 1 us to 20 minutes.
_GAP_BASE = math.log(1.05)
_Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class ScoredAnswer(Wire):
    """A line of the file."""

    prompt: str
    run: int
    repeat: int = 0
    stratum: StratumName = "all"
    group: Annotated[str, Field(max_length=128)] = ""
    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    is_judged: bool = False
    """A judge scores it, so its own score says nothing."""
    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    is_truncated: bool = False
    is_empty: bool = False
    is_refused: bool = False
    output_tokens: Annotated[int, Field(ge=0, le=2**31)] = 0
    ttft_seconds: _Seconds | None = None
    gaps: Mapping[int, int] = Field(default_factory=dict)
    """Number of gaps between tokens by size, in twentieths on a logarithmic scale."""
    text: str = ""
    """The answer, or the begin of it."""

    # A newer runner may write more.
    model_config = ConfigDict(extra="ignore")

    @property
    def key(self) -> QuestionKey:
        return QuestionKey(self.prompt, self.run, self.repeat)


def score_answer(prompt: SuitePrompt, key: QuestionKey, answer: ModelAnswer) -> ScoredAnswer:
    """Return the line of an answer; what is empty or refused is never right."""
    is_good = prompt.scorer is not None and not (answer.is_refused or answer.is_empty)
    # A choice is asked for one token.
    is_truncated = answer.finish_reason == "length" and prompt.row.scorer != "choice"
    buckets = Counter(round(math.log(min(max(gap, 1e-6), 1e3)) / _GAP_BASE) for gap in answer.gaps)
    calls = "".join(f"{call.name}({call.arguments})" for call in answer.tool_calls)
    return ScoredAnswer(
        prompt=key.prompt,
        run=key.run,
        repeat=key.repeat,
        stratum=prompt.row.stratum,
        group=prompt.row.group,
        weight=prompt.row.weight,
        is_judged=prompt.scorer is None,
        score=prompt.scorer(answer) if prompt.scorer and is_good else 0.0,
        is_truncated=is_truncated,
        is_empty=answer.is_empty and not answer.is_refused,
        is_refused=answer.is_refused,
        output_tokens=answer.output_tokens,
        ttft_seconds=answer.ttft_seconds,
        gaps=dict(buckets),
        text=(answer.text + calls).encode(errors="replace").decode()[:MAX_STORED_TEXT],
    )


@dataclass(slots=True, eq=False)
class AnswersFile:
    """Answers of one version to one suite, by question."""

    path: Path
    answers: dict[QuestionKey, ScoredAnswer] = field(default_factory=dict)
    _descriptor: int = -1
    _bytes: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)
    _valid_bytes: int | None = None
    """The first of them count, and what follows is written over; None where all do."""

    @classmethod
    def read(cls, path: Path, digest: str | None = None) -> Self:
        """Return the answers so far; lines that are torn or of another form do not count.

        With a `digest`, only those lines count that have this SHA-256 together, and what comes
        after them is written over: all of a file in which no lines have it.
        """
        file = cls(path)
        with storage_errors(path, "read"):
            try:
                with path.open("rb") as lines:
                    for line in iter(lambda: lines.readline(_MAX_LINE_BYTES), b""):
                        file._take(line)
                        if digest is not None and file.digest == digest:
                            file._valid_bytes = file._bytes
                            return file
            except FileNotFoundError:
                pass
        return file if digest is None else cls(path, _valid_bytes=0)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of what was read and written, whatever others wrote meanwhile."""
        digest: str = self._hash.hexdigest()
        return digest

    def _take(self, line: bytes) -> None:
        self._bytes += len(line)
        self._hash.update(line)
        try:
            answer = ScoredAnswer.model_validate_json(line)
        except ValidationError:
            return
        self.answers.setdefault(answer.key, _without_text(answer))

    def append(self, answer: ScoredAnswer, *, needs_text: bool = True) -> None:
        """Write an answer that was not known; what nothing needs is left out of a large file."""
        with storage_errors(self.path, "write"):
            if self._descriptor < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                self._descriptor = os.open(self.path, flags, 0o644)
                if self._valid_bytes is not None:
                    os.ftruncate(self._descriptor, self._valid_bytes)
                    self._valid_bytes = None
                # What a killed Job wrote last may have no end.
                self._write(b"\n")
            if self._bytes > _MAX_TEXT_FILE and not needs_text:
                answer = answer.model_copy(update={"text": ""})
            line = answer.model_dump_json(by_alias=True, exclude_defaults=True).encode() + b"\n"
            self._write(line)
        self._bytes += len(line)
        self.answers[answer.key] = _without_text(answer)

    def _write(self, line: bytes) -> None:
        write_all(self._descriptor, line)
        self._hash.update(line)

    def close(self) -> None:
        """Close the file; answers are in it as they came."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def of_run(self, run: int) -> Iterator[ScoredAnswer]:
        return (answer for answer in self.answers.values() if answer.run == run)


def _without_text(answer: ScoredAnswer) -> ScoredAnswer:
    """Return an answer as it is held in memory: the text is for a judge, and for people."""
    # What a judge said is a word.
    if answer.is_judged or len(answer.text) <= _MAX_WORD:
        return answer
    return answer.model_copy(update={"text": ""})


def mean_scores(answers: Iterable[ScoredAnswer]) -> dict[str, float]:
    """Return the score of each prompt: the mean of its repeats."""
    scores: dict[str, list[float]] = {}
    for answer in answers:
        scores.setdefault(answer.prompt, []).append(answer.score)
    return {prompt: math.fsum(values) / len(values) for prompt, values in scores.items()}


def answer_shares(answers: Iterable[ScoredAnswer]) -> AnswerShares | None:
    """Return what the answers were like; None without any."""
    answers = tuple(answers)
    if not answers:
        return None
    gaps = sum((Counter(answer.gaps) for answer in answers), Counter[int]())
    firsts = Counter(answer.ttft_seconds for answer in answers if answer.ttft_seconds is not None)
    ttft, itl = percentile(firsts, 0.95), percentile(gaps, 0.95)
    itl_seconds = None if itl is None else math.exp(itl * _GAP_BASE)
    return AnswerShares(
        truncated=_share(answer.is_truncated for answer in answers),
        empty=_share(answer.is_empty for answer in answers),
        refused=_share(answer.is_refused for answer in answers),
        mean_tokens=_decimal(sum(answer.output_tokens for answer in answers) / len(answers), 2),
        ttft_p95_seconds=None if ttft is None else _decimal(ttft, 4),
        itl_p95_seconds=None if itl_seconds is None else _decimal(itl_seconds, 5),
    )


def _share(flags: Iterable[bool]) -> Decimal:
    values = tuple(flags)
    return _decimal(sum(values) / len(values), 4)


def _decimal(value: float, places: int) -> Decimal:
    return Decimal(f"{value:.{places}f}").normalize() + 0


def percentile(counts: Mapping[Any, int], share: float) -> float | None:
    """Return the least value that is not below this share of what was counted."""
    left = math.ceil(share * sum(counts.values()))
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return float(value)
    return None
