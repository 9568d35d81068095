"""What containers print: one file for each start of a container, as kubelets keep them.

Processes write their file themselves, which costs the world nothing. Coroutines share this process,
so what they log is separated by the context that they run in.
"""

import io
import logging
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO, TextIO

from typing_extensions import override

# As much of a termination message file is read.
MESSAGE_BYTES = 4096
LAST_WORDS_BYTES = 2048
LAST_WORDS_LINES = 80

_sink: ContextVar[BinaryIO | None] = ContextVar("container log", default=None)


def write_here(sink: BinaryIO) -> None:
    """From now on, what this task and its children log goes to this file."""
    _sink.set(sink)


def inside_container() -> bool:
    return _sink.get() is not None


class ContainerHandler(logging.Handler):
    """Takes the records of coroutine containers; of all others, none."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        sink = _sink.get()
        if sink is not None and not sink.closed:
            sink.write(f"{self.format(record)}\n".encode())
            sink.flush()


class ContainerStream(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr`: containers print into their own log."""

    def __init__(self, outside: TextIO) -> None:
        self._outside = outside

    @override
    def write(self, text: str) -> int:
        sink = _sink.get()
        if sink is None or sink.closed:
            return self._outside.write(text)
        sink.write(text.encode())
        sink.flush()
        return len(text)

    @override
    def flush(self) -> None:
        self._outside.flush()


def last_words(path: Path) -> str:
    """The end of a log, as `FallbackToLogsOnError` wants it: 2,048 bytes or 80 lines."""
    words = path.read_bytes()[-LAST_WORDS_BYTES:].decode(errors="replace")
    return "".join(words.splitlines(keepends=True)[-LAST_WORDS_LINES:])


def tail(content: bytes, lines: int) -> bytes:
    """The last lines of a log."""
    return b"".join(content.splitlines(keepends=True)[-lines:]) if lines else b""
