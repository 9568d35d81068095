"""Publication: results get their names once, whole, and only by the record that counts.

First one attempt's results are recorded, which one writer alone can do. Then the files that the
record names are linked, errors first: whoever is interrupted in between leaves work that the next
attempt finishes in the same way. That the output exists means that everything is published.
"""

import hashlib
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.batch_runner.errors import RefusedError, TransientError, storage_error
from tessera.batch_runner.files import Link, create_once, link_or_move, replace_file
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


def refuse_unowned(work: Path, *targets: Path) -> None:
    """RefusedError if something is in the place of the results that is not from this batch."""
    record = read_record(work)
    for target in targets:
        if os.path.lexists(target) and not _is_own_result(work, record, target):
            raise RefusedError(
                f"{target} exists already and is not from this batch; it is never overwritten. "
                "Move it away or give another path"
            )


def is_published(work: Path, record: PublicationRecord, output: Path) -> bool:
    """Are the results of the record in place?"""
    return _is_same_file(work, record.output, output)


def commit_record(work: Path, record: PublicationRecord, link: Link = os.link) -> PublicationRecord:
    """Make this the record, unless there is one already; the record that counts."""
    path, content = record_path(work), record.model_dump_json(indent=1).encode()
    try:
        try:
            create_once(path, content, link)
        except FileExistsError:
            if (existing := read_record(work)) is not None:
                return existing
            replace_file(path, content)
        return read_record(work) or record
    except OSError as error:
        raise storage_error(error, path, "write") from error


def publish(
    work: Path, record: PublicationRecord, output: Path, errors: Path, link: Link = os.link
) -> None:
    """Give the results of the record their names."""
    for result_file, target in ((record.errors, errors), (record.output, output)):
        if _is_same_file(work, result_file, target):
            continue
        if not (_is_intact(work, result_file) or _is_same_file(work, result_file, target)):
            raise TransientError(
                f"{work / result_file.file} is damaged; delete {record_path(work)}, and "
                "the results "
                "are assembled anew without asking any row again"
            )
        try:
            link_or_move(work / result_file.file, target, link)
        except OSError as error:
            if not _is_same_file(work, result_file, target):
                refuse_unowned(work, target)
                raise storage_error(error, target, "publish") from error


def _is_intact(work: Path, result_file: ResultFile) -> bool:
    """Is the file still what was recorded?"""
    path = work / result_file.file
    try:
        return _matches(result_file, path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, path, "read") from error


def _is_own_result(work: Path, record: PublicationRecord | None, target: Path) -> bool:
    return record is not None and any(
        _is_same_file(work, result_file, target) for result_file in (record.output, record.errors)
    )


def _is_same_file(work: Path, result_file: ResultFile, target: Path) -> bool:
    """Is the target this file, by name or by content?"""
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
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != result_file.bytes:
            return False
        return hashlib.file_digest(file, "sha256").hexdigest() == result_file.sha256
