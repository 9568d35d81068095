"""Errors that end a command, with their exit codes, and the translation of volume errors."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from tessera.domain.observed.runner_reports import (
    BUDGET_EXCEEDED,
    INPUT_CHANGED,
    REFUSED_EXIT_CODE,
    ROWS_MISSING,
    ROWS_REFUSED,
    WORK_MISSING,
)


class BatchError(Exception):
    """Ends the command; its text goes into the report and says what to do."""

    code: ClassVar[int]
    state: ClassVar[str] = "failed"


class RefusedError(BatchError):
    """The user has to change something; a retry alone does not help."""

    code = REFUSED_EXIT_CODE


class StorageRefusedError(RefusedError):
    """The volume refuses a path; an attempt retries, since its check could use the path."""


class RowsRefusedError(RefusedError):
    """The engine refused the first rows, and answered none."""

    state = ROWS_REFUSED


class InputChangedError(RefusedError):
    """The input is not the one of the check; rows without an answer wait until it is again."""

    state = INPUT_CHANGED


class WorkMissingError(RefusedError):
    """The work folder was deleted, and with it all answers."""

    state = WORK_MISSING


class TransientError(BatchError):
    """An external failure that a retry may fix."""

    code = 1


class RowsMissingError(TransientError):
    """Rows have no answer, and the attempt has no engine."""

    state = ROWS_MISSING


class BudgetExceededError(TransientError):
    """A limit of charges has nothing left for a row; rows without an answer wait until it has."""

    state = BUDGET_EXCEEDED


class FencedError(BatchError):
    """A newer attempt is current, so this one must not publish."""

    code = 4
    state = "fenced"


class StoppedError(BatchError):
    """The process received SIGTERM; the next attempt continues from here."""

    code = 0
    state = "stopped"


_FULL = "the volume is full; free space or expand the PersistentVolumeClaim"
_NOT_ALLOWED = (
    "permission denied; make the folder writable for the group of the pod, or set its fsGroup"
)
_NOT_A_FOLDER = "a part of the path is not a folder; use the path of a file in a folder"
_REFUSED = {
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: "the volume is read-only; use a PersistentVolumeClaim that can be written",
    errno.ENOENT: "it does not exist; correct the path or create it on the volume",
    errno.ENOTDIR: _NOT_A_FOLDER,
    errno.EEXIST: _NOT_A_FOLDER,
    errno.EISDIR: "it is a folder; use the path of a file",
    errno.ENAMETOOLONG: "the name is too long; shorten the path",
    errno.ELOOP: "its symbolic links form a loop; use a path without them",
    errno.EXDEV: "it is on another volume than the work folder of the batch; use the same volume",
}
_TRANSIENT = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "the file would exceed the size limit of the volume; raise the limit",
}


@contextmanager
def storage_errors(path: Path, action: str) -> Iterator[None]:
    """Raise the BatchError of an OSError within the block, which performs `action` on `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, action) from error


def storage_error(error: OSError, path: Path, action: str) -> BatchError:
    """Return the error for a failed `action` on `path`: refused, or transient."""
    error_number = error.errno or 0
    if (advice := _REFUSED.get(error_number)) is not None:
        return StorageRefusedError(f"cannot {action} {path}: {advice}")
    advice = _TRANSIENT.get(error_number) or f"{error.strerror or error}; the next attempt retries"
    return TransientError(f"cannot {action} {path}: {advice}")
