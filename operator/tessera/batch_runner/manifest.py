"""What a check found, kept beside the parts; every attempt works from it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.batch_runner.errors import RefusedError, storage_error
from tessera.batch_runner.files import replace_file
from tessera.batch_runner.heartbeat import WorkHeartbeat

SHARD_ROWS = 1000
_CHUNK_BYTES = 2**20


class Shard(BaseModel):
    """Successive rows whose answers share a part file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_row: int
    offset: int
    """Byte of the input at which the first row begins."""
    rows: int


class InputManifest(BaseModel):
    """A valid input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    rows: int
    bytes: int
    sha256: str
    url: str
    input_tokens: int
    """An estimate: a quarter of the bodies' bytes."""
    max_tokens: int
    """Sum over the rows that limit their answer."""
    shards: tuple[Shard, ...]

    @property
    def input_id(self) -> str:
        """What ties an answer to this very input; part of every answer's id."""
        return self.sha256[:12]


def build_shards(offsets: Sequence[int], rows: int) -> tuple[Shard, ...]:
    """The shards that begin at these bytes; all but the last one are full."""
    return tuple(
        Shard(
            first_row=number * SHARD_ROWS,
            offset=offset,
            rows=min(SHARD_ROWS, rows - number * SHARD_ROWS),
        )
        for number, offset in enumerate(offsets)
    )


def manifest_path(work: Path) -> Path:
    """Where the manifest of a work folder is."""
    return work / "manifest.json"


def save(work: Path, manifest: InputManifest) -> None:
    """Replace the manifest in one step."""
    replace_file(manifest_path(work), manifest.model_dump_json(indent=1).encode())


def load(work: Path) -> InputManifest:
    """The manifest of the work folder; RefusedError where there is none."""
    path = manifest_path(work)
    try:
        return InputManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        message = f"{path} is missing: the input was not checked, or the work folder was deleted"
        raise RefusedError(f"{message}; create the BatchInference anew") from error
    except OSError as error:
        raise storage_error(error, path, "read") from error
    except ValidationError as error:
        message = f"{path} is no manifest of this version; create the BatchInference anew"
        raise RefusedError(message) from error


def verify(path: Path, manifest: InputManifest, heartbeat: WorkHeartbeat) -> None:
    """Is the input still, byte for byte, what was checked? RefusedError if not."""
    try:
        with path.open("rb") as file:
            unchanged = _digest(file, heartbeat) == (manifest.bytes, manifest.sha256)
    except OSError as error:
        raise storage_error(error, path, "read") from error
    if not unchanged:
        raise RefusedError(
            f"{path} changed after it was checked; its answers would belong to other questions. "
            "Put the old file back, or create a new BatchInference for the new one"
        )


def _digest(file: BinaryIO, heartbeat: WorkHeartbeat) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while piece := file.read(_CHUNK_BYTES):
        heartbeat.beat("%s MiB of the input verified", size // _CHUNK_BYTES)
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()
