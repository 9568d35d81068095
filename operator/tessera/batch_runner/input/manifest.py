"""The manifest of a valid input, which the check writes and every attempt reads."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.batch_runner.errors import (
    RefusedError,
    TransientError,
    WorkMissingError,
    storage_error,
)
from tessera.batch_runner.files import replace_file

SHARD_ROWS = 1000


class Shard(BaseModel):
    """Consecutive rows whose answers share a part file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_row: int
    offset: int
    """Offset of the first row in the input, in bytes."""
    rows: int


class InputManifest(BaseModel):
    """Size, checksum and shards of a valid input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    rows: int
    bytes: int
    sha256: str
    url: str
    input_tokens: int
    """An estimate: a quarter of the bodies' bytes."""
    max_tokens: int
    """Sum of max_tokens over the rows that have it."""
    shards: tuple[Shard, ...]

    @property
    def input_id(self) -> str:
        """A digest that is part of every answer's id and so binds it to this input."""
        return self.sha256[:12]


def build_shards(offsets: Sequence[int], rows: int) -> tuple[Shard, ...]:
    """Return the shards that begin at these offsets; all but the last are full."""
    return tuple(
        Shard(
            first_row=number * SHARD_ROWS,
            offset=offset,
            rows=min(SHARD_ROWS, rows - number * SHARD_ROWS),
        )
        for number, offset in enumerate(offsets)
    )


def manifest_path(work: Path) -> Path:
    """Return the path of the manifest in a work folder."""
    return work / "manifest.json"


def save(work: Path, manifest: InputManifest) -> None:
    """Write the manifest atomically."""
    replace_file(manifest_path(work), manifest.model_dump_json(indent=1).encode())


def load(work: Path) -> InputManifest:
    """Return the manifest of the work folder; a BatchError without a valid one.

    WorkMissingError means that the folder of this batch alone is gone.
    """
    path = manifest_path(work)
    try:
        return InputManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        # An export that is not mounted is an empty folder, and may be back for the next attempt.
        if not os.path.lexists(work.parent) and not _has_files(work.parent.parent):
            raise TransientError(f"{path} is missing, as is all else on the volume") from error
        raise WorkMissingError(
            f"{path} is missing: the work folder was deleted, and with it the answers of finished "
            "rows. Create another BatchInference"
        ) from error
    except OSError as error:
        raise storage_error(error, path, "read") from error
    except ValidationError as error:
        message = f"{path} is not a manifest of this version; recreate the BatchInference"
        raise RefusedError(message) from error


def _has_files(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False
