"""Part files: what an attempt sent and what came back, line by line, each line with its checksum.

A line counts only when it is whole: its checksum tells one that was torn by a kill, a full volume
or the loss of a node, wherever in the file it is.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeAlias


class Sent(NamedTuple):
    """A row was about to be sent, and will have to be paid."""

    row: int
    prompt_tokens: int
    """An estimate."""
    max_tokens: int | None


class Unsent(NamedTuple):
    """The row last sent was not worked on after all, so that nothing was paid."""

    row: int


class Answered(NamedTuple):
    """A row has its line for the output or the errors."""

    row: int
    good: bool
    prompt_tokens: int
    output_tokens: int
    begin: int
    """Where the row's own line begins within the part's line."""


Entry: TypeAlias = Sent | Unsent | Answered

_TAIL = 2
"""The part's line ends with a brace and a line feed more than the row's own."""
_HEAD = len(b'{"crc":"00000000",')
_FORM = re.compile(
    rb'\{"crc":"([0-9a-f]{8})",'
    rb'(?:"sent":(\d+),"in":(\d+),"max":(\d+|null)\}'
    rb'|"unsent":(\d+)\}'
    rb'|"row":(\d+),"good":(true|false),"in":(\d+),"out":(\d+),"line":'
    rb'(?=\{"id":"([^"]*)"))'
)


def line_id(stamp: str, row: int) -> str:
    """The id of a row's line in the results; it names the input and the row."""
    return f"batch_req_{stamp}{row:08x}"


def sent(row: int, prompt_tokens: int, max_tokens: int | None) -> bytes:
    most = "null" if max_tokens is None else max_tokens
    return _sealed(b'"sent":%d,"in":%d,"max":%s}' % (row, prompt_tokens, str(most).encode()))


def unsent(row: int) -> bytes:
    return _sealed(b'"unsent":%d}' % row)


def answered(row: int, line: bytes, *, good: bool, prompt: int = 0, output: int = 0) -> bytes:
    """`line` is the row's own line of the results, without its end."""
    told = (row, b"true" if good else b"false", prompt, output, line)
    return _sealed(b'"row":%d,"good":%s,"in":%d,"out":%d,"line":%s}' % told)


def read(line: bytes, stamp: str) -> Entry | None:
    """What a line says; None when it is not whole or about another input."""
    found = _FORM.match(line)
    if found is None or not line.endswith(b"}\n"):
        return None
    if zlib.crc32(memoryview(line)[_HEAD:-1]) != int(found[1], 16):
        return None
    if found[2] is not None:
        most = None if found[4] == b"null" else int(found[4])
        return Sent(int(found[2]), int(found[3]), most)
    if found[5] is not None:
        return Unsent(int(found[5]))
    row = int(found[6])
    if found[10] != line_id(stamp, row).encode():
        return None
    good = found[7] == b"true"
    return Answered(row, good, int(found[8]), int(found[9]), found.end())


def own_line(begin: int, length: int) -> slice:
    """Where in a part's line of this length the row's own line is."""
    return slice(begin, length - _TAIL)


def _sealed(rest: bytes) -> bytes:
    return b'{"crc":"%08x",%s\n' % (zlib.crc32(rest), rest)


class Parts(Protocol):
    """The part files of all attempts."""

    def attempts(self, shard: int) -> Sequence[int]:
        """Attempts that have a part of this shard, the earliest first."""

    def open(self, shard: int, attempt: int) -> BinaryIO:
        """One part, from its beginning."""


_NAME = re.compile(r"shard-(\d{5,})\.attempt-(\d{5,})\.jsonl")


def path_of(work: Path, shard: int, attempt: int) -> Path:
    """The part file that only this attempt writes."""
    return folder_of(work) / f"shard-{shard:05}.attempt-{attempt:05}.jsonl"


def folder_of(work: Path) -> Path:
    return work / "parts"


def any_in(work: Path) -> bool:
    """Has any attempt sent anything?"""
    folder = folder_of(work)
    return folder.exists() and any(True for _ in folder.iterdir())


@dataclass(frozen=True, slots=True)
class PartFiles:
    """`Parts` in the work folder, as they are at the moment."""

    work: Path
    found: dict[int, list[int]]

    def attempts(self, shard: int) -> Sequence[int]:
        return self.found.get(shard, ())

    def open(self, shard: int, attempt: int) -> BinaryIO:
        return path_of(self.work, shard, attempt).open("rb")


def part_files(work: Path) -> PartFiles:
    """List the part files."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for path in folder_of(work).iterdir():
        if named := _NAME.fullmatch(path.name):
            found[int(named[1])].append(int(named[2]))
    for attempts in found.values():
        attempts.sort()
    return PartFiles(work, dict(found))
