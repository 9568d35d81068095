"""Publication: results get their names once, whole, and only by the record that counts.

First one attempt's results are recorded, which one writer alone can do. Then the files that the
record names are linked, errors first: whoever is interrupted in between leaves work that the next
attempt finishes in the same way. That the output exists means that everything is published.
"""

import hashlib
import os
from pathlib import Path

from tessera.batch import records
from tessera.batch.errors import RefusedError, TroubleError, storage
from tessera.batch.files import Link, claim, place, write_whole
from tessera.batch.records import Published, Sealed


def refuse_foreign(work: Path, *targets: Path) -> None:
    """RefusedError if something is in the place of the results that is not from this batch."""
    record = records.recorded(work)
    for target in targets:
        if os.path.lexists(target) and not _ours(work, record, target):
            raise RefusedError(
                f"{target} exists already and is not from this batch; it is never overwritten. "
                "Move it away or give another path"
            )


def is_published(work: Path, record: Published, output: Path) -> bool:
    """Are the results of the record in place?"""
    return _same(work, record.output, output)


def commit(work: Path, record: Published, link: Link = os.link) -> Published:
    """Make this the record, unless there is one already; the record that counts."""
    path, content = records.path_of(work), record.model_dump_json(indent=1).encode()
    try:
        try:
            claim(path, content, link)
        except FileExistsError:
            if (earlier := records.recorded(work)) is not None:
                return earlier
            write_whole(path, content)
        return records.recorded(work) or record
    except OSError as error:
        raise storage(error, path, "write") from error


def publish(
    work: Path, record: Published, output: Path, errors: Path, link: Link = os.link
) -> None:
    """Give the results of the record their names."""
    for sealed, target in ((record.errors, errors), (record.output, output)):
        if _same(work, sealed, target):
            continue
        if not (_whole(work, sealed) or _same(work, sealed, target)):
            raise TroubleError(
                f"{work / sealed.file} is damaged; delete {records.path_of(work)}, and the results "
                "are assembled anew without asking any row again"
            )
        try:
            place(work / sealed.file, target, link)
        except OSError as error:
            if not _same(work, sealed, target):
                refuse_foreign(work, target)
                raise storage(error, target, "publish") from error


def _whole(work: Path, sealed: Sealed) -> bool:
    """Is the file still what was recorded?"""
    path = work / sealed.file
    try:
        return _matches(sealed, path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage(error, path, "read") from error


def _ours(work: Path, record: Published | None, target: Path) -> bool:
    return record is not None and any(
        _same(work, sealed, target) for sealed in (record.output, record.errors)
    )


def _same(work: Path, sealed: Sealed, target: Path) -> bool:
    """Is the target this file, by name or by content?"""
    source = work / sealed.file
    try:
        if source.exists() and source.samefile(target):
            return True
        return _matches(sealed, target)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage(error, target, "read") from error


def _matches(sealed: Sealed, path: Path) -> bool:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != sealed.bytes:
            return False
        return hashlib.file_digest(file, "sha256").hexdigest() == sealed.sha256
