"""Reports of model jobs, validated: any process of the pod can write a termination message."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tessera.api.inference_service import ModelShape
from tessera.api.meta import Wire

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Text = Annotated[str, Field(max_length=8192)]
_Commit = Annotated[str, Field(max_length=128)]
ModelReportT = TypeVar("ModelReportT", bound=BaseModel)


class _ModelReport(Wire):
    model_config = ConfigDict(extra="ignore")


class ShapeReport(_ModelReport):
    """What was read of a model."""

    phase: Literal["shape"]
    ok: bool
    shape: ModelShape | None = None
    commit: _Commit = ""
    message: _Text = ""


class FetchReport(_ModelReport):
    """What was fetched of it."""

    phase: Literal["fetch"]
    ok: bool
    bytes: _Count = 0
    commit: _Commit = ""
    message: _Text = ""


class FetchProgress(_ModelReport):
    """What a running fetch answers at `/progress`."""

    done: _Count
    total: _Count | None = None


def parse_report(model: type[ModelReportT], text: str | bytes) -> ModelReportT | None:
    """The report; None when the text is something else, such as the end of a log."""
    try:
        return model.model_validate_json(text)
    except ValidationError:
        return None
