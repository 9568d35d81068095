"""Reports of model jobs, validated: any process of the pod can write a termination message."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tessera.api.meta import Wire
from tessera.api.model_files import ModelShape

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Text = Annotated[str, Field(max_length=8192)]
_Commit = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9._/-]*$")]
ModelReportT = TypeVar("ModelReportT", bound=BaseModel)


class _ModelReport(Wire):
    model_config = ConfigDict(extra="ignore")

    message: _Text = ""


class ShapeReport(_ModelReport):
    """What the job read from a model's config.json."""

    phase: Literal["shape"]
    ok: bool
    shape: ModelShape | None = None
    commit: _Commit = ""


class FetchReport(_ModelReport):
    """What the job fetched of a model's files."""

    phase: Literal["fetch"]
    ok: bool
    bytes: _Count = 0
    commit: _Commit = ""


class FetchProgress(_ModelReport):
    """What a running fetch answers at `/progress`."""

    done: _Count
    total: _Count | None = None
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """SHA-256 of the answers of a gate's Job."""


def parse_report(model: type[ModelReportT], text: str | bytes) -> ModelReportT | None:
    """Return the report, or None if the text is something else, such as the end of a log."""
    try:
        return model.model_validate_json(text)
    except ValidationError:
        return None


def report_message(text: str) -> str:
    """Return the message of any job's report, or the text itself if it is not a report."""
    report = parse_report(_ModelReport, text)
    return report.message if report is not None else text.strip()
