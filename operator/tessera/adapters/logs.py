"""Logs of a process of ours: a record is a line, whatever words of others are in it."""

import logging
from textwrap import indent
from typing import Any

from typing_extensions import override

from tessera.api.text import one_line, plain_text


class PlainFormatter(logging.Formatter):
    """Formats records without what a terminal executes, and messages without line breaks."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(message)s")

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return one_line(line, len(line))

    @override
    def formatException(self, ei: Any) -> str:
        # Words of others within an error begin no line that reads as a record.
        return indent(super().formatException(ei), "  ")

    @override
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return plain_text(text, len(text))


def configure_logging(level: int) -> None:
    """Write records from a level on to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(handlers=[handler], level=level)
