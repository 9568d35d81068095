"""The record of a publication: whose results count, and how to know them."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.batch.errors import storage
from tessera.batch.ledger import Counts


class Sealed(BaseModel):
    """A file of results that will not change any more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Within the work folder."""
    bytes: int
    rows: int
    sha256: str


class Published(BaseModel):
    """Made once per batch; whoever finds it finishes what it says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    attempt: int
    output: Sealed
    errors: Sealed
    counts: Counts


def path_of(work: Path) -> Path:
    """Where the record of a work folder is."""
    return work / "published.json"


def recorded(work: Path) -> Published | None:
    """The record; None while there is none, or one that was torn before it counted."""
    path = path_of(work)
    try:
        return Published.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    except OSError as error:
        raise storage(error, path, "read") from error
