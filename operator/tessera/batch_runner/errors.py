"""How a command ends early, with its exit code; and what an error of the volume means to a user."""

import errno
from pathlib import Path
from typing import ClassVar


class BatchError(Exception):
    """The command is over; the text is fit for the report and says what to do."""

    code: ClassVar[int]
    state: ClassVar[str] = "failed"


class RefusedError(BatchError):
    """The user has to change something; trying again alone does not help."""

    code = 3


class TransientError(BatchError):
    """Something outside failed that may pass."""

    code = 1


class FencedError(BatchError):
    """A newer attempt is the current one; this one must not publish."""

    code = 4
    state = "fenced"


class StoppedError(BatchError):
    """The process was told to stop; the next attempt goes on from here."""

    code = 0
    state = "stopped"


_FULL = "the volume is full; free some space or enlarge the claim"
_NOT_ALLOWED = "the pod's user may not do that; let the folder's group write, or set its fsGroup"
_NOT_A_FOLDER = "a part of the path is no folder; give the path of a file in a folder"
_REFUSED = {
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.EROFS: "the volume is mounted read-only; use a claim that may be written",
    errno.ENOENT: "it does not exist; correct the path or create it on the claim",
    errno.ENOTDIR: _NOT_A_FOLDER,
    errno.EEXIST: _NOT_A_FOLDER,
    errno.EISDIR: "it is a folder; give the path of a file",
    errno.ENAMETOOLONG: "the name is too long; shorten the path",
    errno.ELOOP: "its symbolic links go in a circle; give a plain path",
    errno.EXDEV: "it is on another volume than the batch's work folder; use the same claim",
}
_TRANSIENT = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "the file would become larger than its limit allows; raise the limit",
}


def storage_error(error: OSError, path: Path, action: str) -> BatchError:
    """What the volume's refusal means: the user's fault, or trouble that may pass."""
    number = error.errno or 0
    if (advice := _REFUSED.get(number)) is not None:
        return RefusedError(f"cannot {action} {path}: {advice}")
    advice = _TRANSIENT.get(number) or f"{error.strerror or error}; it is tried again"
    return TransientError(f"cannot {action} {path}: {advice}")
