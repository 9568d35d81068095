"""Publication: results appear under their names once, complete, and as the record says.

First one attempt records its results; only one record can exist. Then the files of the record are
linked, errors first: after an interruption the next attempt completes the same record. Once the
output exists, everything is published.
"""

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.batch_runner.answers.ledger import BatchCounts
from tessera.batch_runner.errors import RefusedError, TransientError, storage_error, storage_errors
from tessera.batch_runner.files import (
    Link,
    create_once,
    link_or_move,
    open_regular,
    replace_file,
)


class ResultFile(BaseModel):
    """A complete file of results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Path within the work folder."""
    bytes: int
    rows: int
    sha256: str


class PublicationRecord(BaseModel):
    """The results that count; an attempt that reads a record completes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    attempt: int
    output: ResultFile
    errors: ResultFile
    counts: BatchCounts


def record_path(work: Path) -> Path:
    """Return the path of the record in a work folder."""
    return work / "published.json"


def read_record(work: Path) -> PublicationRecord | None:
    """Return the record; None without one, or with one that was truncated while written."""
    path = record_path(work)
    try:
        return PublicationRecord.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    except OSError as error:
        raise storage_error(error, path, "read") from error


def refuse_unowned(work: Path, *targets: Path) -> None:
    """Raise RefusedError if a target exists that this batch did not write."""
    record = read_record(work)
    own = () if record is None else (record.output, record.errors)
    for target in targets:
        if _exists(target) and not any(_is_same_file(work, result, target) for result in own):
            raise RefusedError(
                f"{target} exists and is not a result of this batch, so it is not overwritten. "
                "Move it or choose another path"
            )


def is_published(work: Path, record: PublicationRecord, output: Path) -> bool:
    """Return whether the results of the record are published."""
    return _is_same_file(work, record.output, output)


def commit_record(work: Path, record: PublicationRecord, link: Link = os.link) -> PublicationRecord:
    """Write the record unless one exists; return the record that counts."""
    path, content = record_path(work), record.model_dump_json(indent=1).encode()
    with storage_errors(path, "write"):
        try:
            create_once(path, content, link)
        except FileExistsError:
            if (existing := read_record(work)) is not None:
                return existing
            replace_file(path, content)
        return read_record(work) or record


def publish(
    work: Path, record: PublicationRecord, output: Path, errors: Path, link: Link = os.link
) -> None:
    """Link the results of the record to their names; raises a BatchError."""
    for result_file, target in ((record.errors, errors), (record.output, output)):
        if _is_same_file(work, result_file, target):
            continue
        if not (_is_intact(work, result_file) or _is_same_file(work, result_file, target)):
            raise TransientError(
                f"{work / result_file.file} is corrupt; delete {record_path(work)} to assemble "
                "the results again, which sends no row"
            )
        try:
            link_or_move(work / result_file.file, target, link)
        except OSError as error:
            if not _is_same_file(work, result_file, target):
                refuse_unowned(work, target)
                raise storage_error(error, target, "publish") from error


def _is_intact(work: Path, result_file: ResultFile) -> bool:
    """Return whether the file still has its recorded checksum."""
    path = work / result_file.file
    try:
        return _matches(result_file, path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, path, "read") from error


def _exists(target: Path) -> bool:
    """Return whether anything has this name; a BatchError when nothing can have it."""
    try:
        target.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, target, "publish") from error
    return True


def _is_same_file(work: Path, result_file: ResultFile, target: Path) -> bool:
    """Return whether the target is this file, by inode or by content."""
    source = work / result_file.file
    try:
        if source.exists() and source.samefile(target):
            return True
        return _matches(result_file, target)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, target, "read") from error


def _matches(result_file: ResultFile, path: Path) -> bool:
    if (file := open_regular(path)) is None:
        return False
    with file:
        if os.fstat(file.fileno()).st_size != result_file.bytes:
            return False
        return hashlib.file_digest(file, "sha256").hexdigest() == result_file.sha256
