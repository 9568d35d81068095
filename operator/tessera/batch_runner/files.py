"""Atomic writes on a shared volume."""

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from io import BufferedReader
from pathlib import Path

Link = Callable[[Path, Path], None]
# Errors of file systems without a feature, such as hard links.
_UNSUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


# Nothing writes into the folder of a batch for so long: a deadline is at most 30 days.
MAX_IDLE_FOLDER = timedelta(days=60)
_BATCH_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def sweep_idle_folders(work: Path) -> None:
    """Delete the folders of other batches beside `work` that nothing wrote to for long.

    `work` was written just now: its time is that of the volume's own clock.
    """
    oldest = work.stat().st_mtime - MAX_IDLE_FOLDER.total_seconds()
    for folder in work.parent.iterdir():
        if not _BATCH_UID.fullmatch(folder.name) or folder.is_symlink() or folder == work:
            continue
        with suppress(OSError):  # another check sweeps it too, or it belongs to another user
            if all(path.lstat().st_mtime < oldest for path in (folder, *folder.rglob("*"))):
                shutil.rmtree(folder)


def open_regular(path: Path) -> BufferedReader | None:
    """Open a regular file for reading; None for anything else, such as a FIFO, which may block."""
    return path.open("rb") if stat.S_ISREG(path.stat().st_mode) else None


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of the content; on a full volume a part may be written before OSError."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Flush the folder's names to disk, where the file system supports that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, *_UNSUPPORTED):
            raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Replace the file atomically: readers see the old content or the new one."""
    temporary = _temporary_path(path)
    try:
        write_file(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_file(path: Path, content: bytes, exclusive: int = 0) -> None:
    """Write the file and flush it to disk; `exclusive` adds flags such as O_EXCL."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | exclusive, 0o644)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_move(source: Path, target: Path, link: Link = os.link) -> None:
    """Link the source to the target atomically; FileExistsError when the target exists.

    Without hard links the source is moved instead, which two processes may do at once.
    """
    try:
        link(source, target)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        # Only one publication record can exist, so that all processes move the same content.
        source.rename(target)
    sync_folder(target.parent)


def create_once(path: Path, content: bytes, link: Link = os.link) -> None:
    """Create the file with this content; FileExistsError for all callers but the first.

    Without hard links a process that is killed in here may leave a truncated file.
    """
    temporary = _temporary_path(path)
    try:
        write_file(temporary, content)
        link(temporary, path)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        write_file(path, content, os.O_EXCL)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def unique_name() -> str:
    """Return a name that no other process uses."""
    # Process ids repeat across containers.
    return os.urandom(6).hex()


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{unique_name()}")
