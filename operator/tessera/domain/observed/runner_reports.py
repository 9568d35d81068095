"""Reports of batch runners: any process of the pod can write a termination message.

A figure is clamped and a text is cut, so that neither hides the state beside it.
"""

import json
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from tessera.api.meta import Wire

# Exit code of a runner: the user has to change something.
REFUSED_EXIT_CODE = 3
# State of an attempt whose engine refused the first rows, and answered none.
ROWS_REFUSED: Literal["rowsRefused"] = "rowsRefused"
# State of an attempt without an engine that found rows without an answer.
ROWS_MISSING: Literal["rowsMissing"] = "rowsMissing"
# State of an attempt with rows to send whose input is not the one of the check.
INPUT_CHANGED: Literal["inputChanged"] = "inputChanged"
# State of an attempt for whose rows a limit of charges has nothing left.
BUDGET_EXCEEDED: Literal["budgetExceeded"] = "budgetExceeded"
# State of an attempt whose work folder was deleted, and with it all answers.
WORK_MISSING: Literal["workMissing"] = "workMissing"

# The number with which the check of an input answers instead of that of an attempt.
CHECK_NUMBER = 0

# After so many seconds without a row or a byte a runner ends its attempt.
STALL_SECONDS = 900

_MAX_COUNT = 2**53
_MAX_TEXT_LENGTH = 8192


def _clamp(value: object) -> int:
    """Return a count of at most 2^53; 0 for what is no number."""
    if not isinstance(value, int | float) or not value > 0:  # nor is NaN above 0
        return 0
    return int(min(value, _MAX_COUNT))


def _parse_int(digits: str) -> int:
    # More digits than an int may be read from.
    return int(digits[:20])


Count = Annotated[int, BeforeValidator(_clamp)]
Flag = Annotated[bool, BeforeValidator(lambda value: value is True)]
Text = Annotated[
    str, BeforeValidator(lambda value: value[:_MAX_TEXT_LENGTH] if isinstance(value, str) else "")
]


class _RunnerReport(Wire):
    model_config = ConfigDict(extra="ignore")


class _RowCounts(_RunnerReport):
    """Counts of the whole batch."""

    attempt: Count
    rows: Count = 0
    failed: Count = 0
    resent_rows: Count = 0
    resent_tokens: Count = 0
    prompt_tokens: Count = 0
    output_tokens: Count = 0
    input_changed: Flag = False
    """The input is another file by now; the attempt goes on with the checked one."""


class InputFault(_RunnerReport):
    """One fault of the input, as in OpenAI's batch errors."""

    line: Count | None = None
    lines: Text = ""
    """All lines with this fault, such as `1-48 and 2 more`; empty for one."""
    code: Text = ""
    message: Text = ""
    param: Text | None = None


class CheckReport(_RunnerReport):
    """Result of a check."""

    phase: Literal["check"]
    ok: bool
    rows: Count = 0
    url: Text = ""
    input_tokens: Count = 0
    answers: Count = 0
    files: tuple[Text, ...] = ()
    """The paths of the output and the errors on the claim, where symbolic links lead."""
    error_count: Count = 0
    errors: tuple[InputFault, ...] = ()
    message: Text = ""


class RunReport(_RowCounts):
    """Result of an attempt."""

    phase: Literal["run"]
    state: Literal[
        "completed",
        "stopped",
        "fenced",
        "failed",
        "rowsRefused",
        "rowsMissing",
        "inputChanged",
        "budgetExceeded",
        "workMissing",
    ]
    completed: Count = 0
    message: Text = ""


class RunnerProgress(_RowCounts):
    """Answer of a running attempt or check at `/progress`; `done` includes failed rows."""

    state: Text = "running"
    idle_seconds: Count = 0
    """Since a row or a byte last moved."""
    done: Count = 0


ReportT = TypeVar("ReportT", bound=BaseModel)


def check_report(text: str) -> CheckReport | None:
    """Return the report of a check; None for any other text, such as the end of a log."""
    return _read(CheckReport, text)


def run_report(text: str) -> RunReport | None:
    """Return the report of an attempt; None for any other text."""
    return _read(RunReport, text)


def runner_progress(text: str | bytes) -> RunnerProgress | None:
    """Return the progress of an attempt; None for any other text."""
    return _read(RunnerProgress, text)


def _read(model: type[ReportT], text: str | bytes) -> ReportT | None:
    try:
        return model.model_validate(json.loads(text, parse_int=_parse_int))
    except (ValueError, RecursionError):
        return None
