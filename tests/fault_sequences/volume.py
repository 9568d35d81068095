"""A volume that refuses writes for a while: what the kernel answers, not what the code does."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_CHANGES = frozenset({"os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.symlink"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class FaultyVolume:
    """The folder of a claim; `error` is what each write to it is answered, 0 while it is well.

    Hooks cannot be removed, so that this is for a process of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.error = 0
        self._prefix = f"{folder}/"
        sys.addaudithook(self._audit)
        os.write = self._refuse_descriptor(os.write)
        os.fsync = self._refuse_descriptor(os.fsync)

    def _audit(self, event: str, arguments: Sequence[Any]) -> None:
        if not self.error:
            return
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITING and (self.error != errno.ENOSPC or flags & os.O_CREAT):
                self._refuse(path)
        elif event in _CHANGES:
            for path in arguments[:2]:
                self._refuse(path)

    def _refuse(self, path: object) -> None:
        if isinstance(path, str | Path) and str(path).startswith(self._prefix):
            raise OSError(self.error, os.strerror(self.error), str(path))

    def _refuse_descriptor(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def refusing(descriptor: int, *arguments: Any) -> Any:
            if self.error:
                self._refuse(Path(f"/proc/self/fd/{descriptor}").readlink())
            return call(descriptor, *arguments)

        return refusing
