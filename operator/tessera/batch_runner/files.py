"""Steps on a shared volume that either happen whole or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

Link = Callable[[Path, Path], None]
# What file systems say to what they do not have, such as hard links.
_UNSUPPORTED = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write_all(descriptor: int, content: bytes) -> None:
    """Write everything; a full volume may take the beginning of it and raise at the rest."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: Path) -> None:
    """Make names in the folder survive the node, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, *_UNSUPPORTED):
            raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Put the content in the place of the file: readers see the old one or the new one."""
    temporary = _temporary_path(path)
    try:
        write_file(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_file(path: Path, content: bytes, exclusive: int = 0) -> None:
    """A file with this content, on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | exclusive, 0o644)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_move(source: Path, target: Path, link: Link = os.link) -> None:
    """Give the file its name, whole and once: FileExistsError when the name is taken.

    Where there are no hard links it is moved instead. Whoever moves does it under the record of
    `publish`, which one writer alone can make, so that all who come here move the same content.
    """
    try:
        link(source, target)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.rename(target)
    sync_folder(target.parent)


def create_once(path: Path, content: bytes, link: Link = os.link) -> None:
    """Create the file with this content; FileExistsError for all but the first who asks.

    Without hard links a process that dies in here may leave a file that is torn.
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
    """Of this process alone; pids are the same in all containers."""
    return os.urandom(6).hex()


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{unique_name()}")
