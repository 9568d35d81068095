"""What a check found, kept beside the parts; every attempt works from it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.batch.errors import RefusedError, storage
from tessera.batch.files import write_whole
from tessera.batch.pulse import Pulse

SHARD_ROWS = 1000
_PIECE = 2**20


class Shard(BaseModel):
    """Successive rows whose answers share a part file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_row: int
    offset: int
    """Byte of the input at which the first row begins."""
    rows: int


class Manifest(BaseModel):
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
    def stamp(self) -> str:
        """What ties an answer to this very input; part of every answer's id."""
        return self.sha256[:12]


def shards(offsets: Sequence[int], rows: int) -> tuple[Shard, ...]:
    """The shards that begin at these bytes; all but the last one are full."""
    return tuple(
        Shard(
            first_row=number * SHARD_ROWS,
            offset=offset,
            rows=min(SHARD_ROWS, rows - number * SHARD_ROWS),
        )
        for number, offset in enumerate(offsets)
    )


def path_of(work: Path) -> Path:
    """Where the manifest of a work folder is."""
    return work / "manifest.json"


def save(work: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step."""
    write_whole(path_of(work), manifest.model_dump_json(indent=1).encode())


def load(work: Path) -> Manifest:
    """The manifest of the work folder; RefusedError where there is none."""
    path = path_of(work)
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        told = f"{path} is missing: the input was not checked, or the work folder was deleted"
        raise RefusedError(f"{told}; create the BatchInference anew") from error
    except OSError as error:
        raise storage(error, path, "read") from error
    except ValidationError as error:
        told = f"{path} is no manifest of this version; create the BatchInference anew"
        raise RefusedError(told) from error


def verify(path: Path, manifest: Manifest, pulse: Pulse) -> None:
    """Is the input still, byte for byte, what was checked? RefusedError if not."""
    try:
        with path.open("rb") as file:
            same = _digest(file, pulse) == (manifest.bytes, manifest.sha256)
    except OSError as error:
        raise storage(error, path, "read") from error
    if not same:
        raise RefusedError(
            f"{path} changed after it was checked; its answers would belong to other questions. "
            "Put the old file back, or create a new BatchInference for the new one"
        )


def _digest(file: BinaryIO, pulse: Pulse) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while piece := file.read(_PIECE):
        pulse.beat("%s MiB of the input verified", size // _PIECE)
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()
