"""Volumes that refuse writes for a while: what the kernel answers, not what the code does.

A process of a world that has WORLD_FAULTS in its environment follows `set_error`.
"""

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAULTS = "WORLD_FAULTS"
_CHANGES = frozenset({"os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.symlink"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# The folder of a claim of a world, which is named after the volume.
_CLAIM = re.compile(r"(.*/claims/pvc-[^/]+)/")


@dataclass(slots=True)
class FaultyVolume:
    """The folder of a claim; `error` is what each write to it is answered, 0 while it is well."""

    folder: Path
    error: int = 0

    def __post_init__(self) -> None:
        refuse_writes(self._error_of)

    def _error_of(self, path: str) -> int:
        return self.error if path.startswith(f"{self.folder}/") else 0


def set_error(folder: Path, name: str | None) -> None:
    """Let writes to a claim of a world fail with an error of this name; None ends that."""
    marker = folder.with_name(f"{folder.name}.error")
    if name is None:
        marker.unlink(missing_ok=True)
        return
    complete = marker.with_suffix(".new")
    complete.write_text(str(getattr(errno, name)), encoding="ascii")
    complete.rename(marker)


def marked_error(path: str) -> int:
    """Return what `set_error` says about the claim of a path; 0 while it is well."""
    if claim := _CLAIM.match(path):
        with suppress(FileNotFoundError):
            return int(Path(f"{claim[1]}.error").read_text(encoding="ascii"))
    return 0


def refuse_writes(error_of: Callable[[str], int]) -> None:
    """Answer writes of this process with the errors of their paths.

    Hooks cannot be removed, so that this is for a process of its own.
    """

    def refuse(path: object) -> None:
        if isinstance(path, str | Path) and (error := error_of(str(path))):
            raise OSError(error, os.strerror(error), str(path))

    def audit(event: str, arguments: Sequence[Any]) -> None:
        if event == "open":
            path, _, flags = arguments
            # A full volume still opens what is there.
            if flags & _WRITING and (flags & os.O_CREAT or error_of(str(path)) != errno.ENOSPC):
                refuse(path)
        elif event in _CHANGES:
            for path in arguments[:2]:
                refuse(path)

    def refuse_descriptor(call: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(descriptor: int, *arguments: Any) -> Any:
            refuse(Path(f"/proc/self/fd/{descriptor}").readlink())
            return call(descriptor, *arguments)

        return refusing

    sys.addaudithook(audit)
    os.write = refuse_descriptor(os.write)
    os.fsync = refuse_descriptor(os.fsync)
