"""The record of a publication: whose results count, and how to know them."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.batch_runner.errors import storage_error
from tessera.batch_runner.ledger import BatchCounts


class ResultFile(BaseModel):
    """A file of results that will not change any more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Within the work folder."""
    bytes: int
    rows: int
    sha256: str


class PublicationRecord(BaseModel):
    """Made once per batch; whoever finds it finishes what it says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    attempt: int
    output: ResultFile
    errors: ResultFile
    counts: BatchCounts


def record_path(work: Path) -> Path:
    """Where the record of a work folder is."""
    return work / "published.json"


def read_record(work: Path) -> PublicationRecord | None:
    """The record; None while there is none, or one that was torn before it counted."""
    path = record_path(work)
    try:
        return PublicationRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    except OSError as error:
        raise storage_error(error, path, "read") from error
