"""The suite of a gate: prompts with what a good answer to each has to contain, as JSONL."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from tessera.api.meta import Wire
from tessera.api.quality_gate import MAX_STRATA, StratumName
from tessera.api.text import counted
from tessera.batch_runner.errors import RefusedError, storage_errors
from tessera.batch_runner.files import open_regular
from tessera.batch_runner.gate.scorers import (
    Scorer,
    SuiteBudget,
    compile_scorer,
    parse_json,
)

MAX_SUITE_BYTES = 64 * 2**20
MAX_ROWS = 100_000
MAX_ROW_BYTES = 512 * 2**10
# A judge that was compared with fewer answers of known order decides nothing.
MIN_LABELLED = 20
# Broken lines that a message names; the rest is counted.
_MAX_SHOWN = 5
_MAX_SHOWN_FIELD = 80
# Names that a verdict has for strata of its own.
_RESERVED = ("small", "total")

ScorerName = Literal[
    "exact", "contains", "regex", "jsonSchema", "number", "choice", "toolCall", "ranking", "judge"
]
_Text = Annotated[str, StringConstraints(min_length=1)]


_JudgedText = Annotated[_Text, StringConstraints(max_length=8192)]


class LabelledAnswers(Wire):
    """Two answers of known order, with which a judge is compared."""

    better: _JudgedText
    worse: _JudgedText


class SuiteRow(Wire):
    """One line of a suite."""

    id: Annotated[str, Field(max_length=128)] = ""
    """Name of the row in files of answers; omitted, `line-` and its number."""
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=128)] | None = None
    query: _Text | None = None
    documents: Annotated[list[_Text], Field(min_length=2, max_length=1000)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=32_768)] = 512
    """Most tokens of the answer."""
    scorer: ScorerName
    expected: Any = None
    example: str | None = None
    """An answer that is right, where the suite cannot find out that there is any."""
    labelled: LabelledAnswers | None = None
    """Makes it a row that asks the judge alone."""
    weight: Annotated[float, Field(ge=0.001, le=1000, allow_inf_nan=False)] = 1.0
    stratum: StratumName = "all"
    group: Annotated[str, Field(max_length=128)] = ""
    """Name that prompts share which win and lose together, such as paraphrases of one."""
    tags: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=16)] = Field(
        default_factory=list
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SuitePrompt:
    """A valid row."""

    line: int
    """Its number in the file, from 1 on."""
    row: SuiteRow
    scorer: Scorer | None
    """None where a judge compares two answers."""

    @property
    def name(self) -> str:
        return self.row.id or f"line-{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSuite:
    """A valid suite."""

    digest: str
    """SHA-256 of the file."""
    prompts: tuple[SuitePrompt, ...]
    labelled: tuple[SuitePrompt, ...] = ()
    """Rows for the judge alone."""

    @property
    def counts(self) -> dict[str, int]:
        """Return the prompts of each stratum."""
        return dict(sorted(Counter(prompt.row.stratum for prompt in self.prompts).items()))

    @property
    def is_ranked(self) -> bool:
        """Whether it is for models that rank documents."""
        return self.prompts[0].row.query is not None

    @property
    def is_judged(self) -> bool:
        return any(prompt.scorer is None for prompt in self.prompts)


class SuiteError(RefusedError):
    """The suite cannot judge; `faults` are the broken lines by number."""

    def __init__(self, message: str, faults: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.faults = faults or {}


def read_suite(path: Path) -> PromptSuite:
    """Return the suite of a file; SuiteError says what is wrong with it."""
    with storage_errors(path, "read"):
        file = open_regular(path)
        if file is None:
            raise SuiteError(f"{path} is no regular file; name the JSONL file of the suite")
        with file:
            content = file.read(MAX_SUITE_BYTES + 1)
    return parse_suite(content, path.name)


def parse_suite(content: bytes, name: str = "suite") -> PromptSuite:
    """Return the suite that the lines have; SuiteError names the broken ones."""
    if len(content) > MAX_SUITE_BYTES:
        limit = MAX_SUITE_BYTES // 2**20
        raise SuiteError(f"{name} has more than {limit} MiB; split it into several gates")
    lines = content.split(b"\n")
    if len(lines) > MAX_ROWS + 1:
        most = counted(MAX_ROWS, "line")
        raise SuiteError(f"{name} has more than {most}; split it into several gates")
    faults: dict[int, str] = {}
    prompts: list[SuitePrompt] = []
    budget = SuiteBudget()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompts.append(_read_prompt(number, line, budget))
        except ValueError as error:
            faults[number] = str(error)
    for number, fault in _conflicts(prompts):
        faults.setdefault(number, fault)
    if faults:
        raise SuiteError(_broken(name, faults), faults)
    asked = tuple(prompt for prompt in prompts if prompt.row.labelled is None)
    labelled = tuple(prompt for prompt in prompts if prompt.row.labelled is not None)
    suite = PromptSuite(
        digest=hashlib.sha256(content).hexdigest(), prompts=asked, labelled=labelled
    )
    if (problem := _suite_fault(suite)) is not None:
        raise SuiteError(f"{name} {problem}")
    return suite


def _suite_fault(suite: PromptSuite) -> str | None:
    if not suite.prompts:
        return "has no prompts; write at least one row, or run tessera gate init"
    if len(suite.counts) > MAX_STRATA:
        return f"has {len(suite.counts)} strata, and the limit is {MAX_STRATA}: merge some"
    if suite.is_judged and len(suite.labelled) < MIN_LABELLED:
        return (
            f"has rows for a judge and {counted(len(suite.labelled), 'labelled row')}: a judge is "
            f"compared with at least {MIN_LABELLED}, so add rows with the field labelled"
        )
    if len({prompt.row.query is None for prompt in suite.prompts}) > 1:
        return "asks for answers and for rankings; write a suite for each kind of model"
    return None


def _broken(name: str, faults: Mapping[int, str]) -> str:
    shown = "; ".join(f"line {number}: {faults[number]}" for number in sorted(faults)[:_MAX_SHOWN])
    rest = len(faults) - _MAX_SHOWN
    more = f"; and {counted(rest, 'line')} more" if rest > 0 else ""
    return f"{name} has {counted(len(faults), 'broken line')}: {shown}{more}"


def _read_prompt(number: int, line: bytes, budget: SuiteBudget) -> SuitePrompt:
    """Return the prompt of a line; ValueError says what to do."""
    if len(line) > MAX_ROW_BYTES:
        raise ValueError(f"it has more than {MAX_ROW_BYTES // 1024} KiB; shorten it")
    fields = parse_json(line)
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object; write one object a line")
    try:
        row = SuiteRow.model_validate(fields)
    except ValidationError as error:
        raise ValueError(_first_fault(error)) from None
    if (fault := next(_row_faults(row), None)) is not None:
        raise ValueError(fault)
    scorer = compile_scorer(row.scorer, row.expected, row.example, row.documents or (), budget)
    return SuitePrompt(line=number, row=row, scorer=scorer)


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, fault["loc"]))[:_MAX_SHOWN_FIELD]
    return f"{field}: {fault['msg']}; correct it"


def _row_faults(row: SuiteRow) -> Iterator[str]:
    if row.stratum in _RESERVED:
        yield f"stratum: {row.stratum} is the name of a sum; use another"
    is_ranked = row.query is not None and row.documents is not None
    if row.scorer == "ranking" and (not is_ranked or row.messages or row.tools):
        yield "ranking needs query and documents, and neither messages nor tools"
    if row.scorer != "ranking" and (row.messages is None or row.query or row.documents):
        yield f"{row.scorer} needs messages, and neither query nor documents"
    if row.scorer == "toolCall" and not row.tools:
        yield "toolCall needs tools, of which the model calls one"
    if row.labelled is not None and row.scorer != "judge":
        yield "labelled: only rows of scorer judge have it; remove it"
    if row.labelled is not None and row.labelled.better == row.labelled.worse:
        yield "labelled: better and worse are the same answer; no judge can order them"


def _conflicts(prompts: Sequence[SuitePrompt]) -> Iterator[tuple[int, str]]:
    """Yield rows that repeat or contradict an earlier one, by their line."""
    by_name: dict[str, int] = {}
    by_question: dict[str, tuple[int, str]] = {}
    for prompt in prompts:
        row = prompt.row
        first = by_name.setdefault(prompt.name, prompt.line)
        if first != prompt.line:
            yield prompt.line, f"id: {prompt.name} is that of line {first}; use another"
        question = _digest(row.messages, row.tools, row.query, row.documents, row.scorer)
        answer = _digest(row.expected)
        if row.labelled is not None:
            question, answer = (
                _digest(question, *sorted(row.labelled.model_dump().values())),
                row.labelled.better,
            )
        line, earlier = by_question.setdefault(question, (prompt.line, answer))
        if line != prompt.line and earlier == answer:
            yield prompt.line, f"it repeats line {line}, and no prompt counts twice; remove it"
        elif line != prompt.line:
            yield prompt.line, f"expected contradicts that of line {line}; remove one of them"


def _digest(*values: object) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
