"""What a runner says of itself; anybody may write a termination message, so all is checked."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tessera.api.meta import Wire

Count = Annotated[int, Field(ge=0, le=2**53)]
Text = Annotated[str, Field(max_length=8192)]


class _Report(Wire):
    model_config = ConfigDict(extra="ignore")


class InputFault(_Report):
    """One fault of the input, as in OpenAI's batch errors."""

    line: Count | None = None
    code: Text = ""
    message: Text = ""
    param: Text | None = None


class CheckReport(_Report):
    """What the check found."""

    phase: Literal["check"]
    ok: bool
    rows: Count = 0
    url: Text = ""
    input_tokens: Count = 0
    error_count: Count = 0
    errors: tuple[InputFault, ...] = ()
    message: Text = ""


class RunReport(_Report):
    """What an attempt left behind; its counts are those of the whole batch."""

    phase: Literal["run"]
    attempt: Count
    state: Literal["completed", "stopped", "fenced", "failed"]
    rows: Count = 0
    completed: Count = 0
    failed: Count = 0
    repaid_rows: Count = 0
    repaid_tokens: Count = 0
    prompt_tokens: Count = 0
    output_tokens: Count = 0
    message: Text = ""


class RunnerProgress(_Report):
    """What a running attempt answers at `/progress`; `done` counts failed rows too."""

    attempt: Count
    state: Text = "running"
    rows: Count = 0
    done: Count = 0
    failed: Count = 0
    repaid_rows: Count = 0
    repaid_tokens: Count = 0
    prompt_tokens: Count = 0
    output_tokens: Count = 0


ReportT = TypeVar("ReportT", bound=BaseModel)


def check_report(text: str) -> CheckReport | None:
    """The report of a check; None when the text is something else, such as the end of a log."""
    return _read(CheckReport, text)


def run_report(text: str) -> RunReport | None:
    """The report of an attempt, likewise."""
    return _read(RunReport, text)


def runner_progress(text: str | bytes) -> RunnerProgress | None:
    """The answer of `/progress`, likewise."""
    return _read(RunnerProgress, text)


def _read(model: type[ReportT], text: str | bytes) -> ReportT | None:
    try:
        return model.model_validate_json(text)
    except ValidationError:
        return None
