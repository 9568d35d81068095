"""What a place with files of a model answers, and which of its files engines read."""

import hashlib
import json
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tessera.api.text import counted
from tessera.batch_runner.errors import RefusedError, TransientError
from tessera.domain.model.weight_files import INDEX, missing_file, unloaded_files

# A part of a file, as its source has it in memory.
Chunk: TypeAlias = bytes | memoryview
# The digests of a folder's files, as `sha256sum` writes them.
SUMS = "SHA256SUMS"
MAX_JSON_BYTES = 32 * 2**20
_MAX_SUMS_BYTES = 4 * 2**20
_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(.+)")
_MAX_FILES = 10_000
_MAX_TOTAL_BYTES = 8 * 2**40
# Files that the engine does not read.
_UNUSED_FILES = re.compile(
    r"^original/|^onnx/|^openvino/|\.(onnx|msgpack|h5|ot|gguf|tflite|md|png|jpg|jpeg|gif)$",
    re.IGNORECASE,
)
# Weights for other engines.
_OTHER_WEIGHTS = re.compile(r"\.(gguf|ggml|onnx|msgpack|h5|tflite)$", re.IGNORECASE)
# Loading one of these runs code that it contains.
_PICKLES = re.compile(r"\.(bin|pt|pth|ckpt|pkl|pickle)$", re.IGNORECASE)


class RangeIgnoredError(TransientError):
    """The source cannot send the rest of a file, so the whole file is asked for."""


class NotJsonError(RefusedError):
    """A file is there, and no reader of JSON reads it."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a model."""

    name: str
    """Path below the folder of the model."""
    size: int | None
    """In bytes; None where the source does not say."""
    etag: str | None = None
    """Version of an object, which a download must not mix with another."""
    sha256: str | None = None
    """Digest that the content must have."""


@dataclass(frozen=True, slots=True)
class SourceListing:
    """The files of a model in one state."""

    commit: str
    """Names the state: other content has another."""
    files: tuple[SourceFile, ...]


class FileSource(Protocol):
    """A place with the files of one model."""

    async def listing(self) -> SourceListing:
        """Return all files in their present state."""
        ...

    async def read_json(self, name: str) -> tuple[object, str]:
        """Return a JSON value, and the commit of its file ("" where the source has none)."""
        ...

    def read_chunks(self, commit: str, file: SourceFile, offset: int) -> AsyncGenerator[Chunk]:
        """Yield the content of a file from byte `offset` on.

        Raises RangeIgnoredError before the first chunk where the source has whole files alone.
        """
        ...


def needed_files(
    files: Iterable[SourceFile], *, allow_pickles: bool, index: object = None
) -> tuple[SourceFile, ...]:
    """Return the files that the engine reads; what could write elsewhere or run code is refused.

    `index` is the content of `model.safetensors.index.json`, which names one set of weights.
    """
    files = tuple(files)
    readable = readable_files(files)
    names = [file.name for file in readable]
    unloaded = unloaded_files(names, index)
    needed = tuple(file for file in readable if file.name not in unloaded)
    if (missing := missing_file(names, index)) is not None:
        raise RefusedError(
            f"{missing} is missing, a part of the weights beside it; upload it, or remove what is "
            "left of another set"
        )
    for file in needed:
        if file.name.endswith(".safetensors") and file.size is not None and file.size < 1:
            raise RefusedError(f"{file.name} has {counted(file.size, 'byte')}; upload it again")
    # A size that no float has is as good as an exabyte.
    total = min(sum(file.size or 0 for file in needed), 10**18)
    if total > _MAX_TOTAL_BYTES:
        raise RefusedError(
            f"{total / 1e12:.1f} TB exceed the limit of {_MAX_TOTAL_BYTES / 1e12:.1f} TB; name the "
            "folder of one model"
        )
    pickles = [file.name for file in needed if _PICKLES.search(file.name)]
    # The engine prefers safetensors where the weights come in two formats.
    if any(file.name.endswith(".safetensors") for file in needed):
        return tuple(file for file in needed if not _PICKLES.search(file.name))
    if pickles and not allow_pickles:
        raise RefusedError(
            f"{pickles[0]} ({counted(len(pickles), 'such file')}) is a pickle, which can run code "
            "when it is loaded, and there are 0 safetensors files; convert the weights to "
            "safetensors, or ask the platform for the chart value models.allowPickles"
        )
    unread = [file.name for file in files if _OTHER_WEIGHTS.search(file.name)]
    if unread and not pickles:
        raise RefusedError(
            f"{unread[0]} ({counted(len(unread), 'such file')}) has weights of a format that is "
            "not read, and there are 0 safetensors files; name the model that it was made of, or "
            "one in the format of AWQ, GPTQ or compressed-tensors for fewer bits"
        )
    return needed


async def read_index(source: FileSource, listing: SourceListing) -> object:
    """Return the content of the index of a listing's weights; None if there is none."""
    file = next((file for file in listing.files if file.name == INDEX), None)
    if file is None:
        return None
    async with aclosing(source.read_chunks(listing.commit, file, 0)) as chunks:
        return parse_json(await read_whole(chunks, MAX_JSON_BYTES, INDEX), INDEX)


def readable_files(files: Iterable[SourceFile]) -> tuple[SourceFile, ...]:
    """Return the files that an engine may read; names that lead elsewhere are refused."""
    readable = tuple(_readable(files))
    if len(readable) > _MAX_FILES:
        raise RefusedError(
            f"{counted(len(readable), 'file')} exceed the limit of {_MAX_FILES}; name the folder "
            "of one model"
        )
    return readable


def _readable(files: Iterable[SourceFile]) -> Iterator[SourceFile]:
    for file in files:
        parts = file.name.split("/")
        illegal = {"", ".", ".."} & {*parts}
        if illegal or "\\" in file.name or not file.name.isprintable() or len(file.name) > 1024:
            raise RefusedError(f"{file.name[:200]!r} is not a path within the folder; rename it")
        is_hidden = any(part.startswith(".") for part in parts)
        if file.name != SUMS and not is_hidden and not _UNUSED_FILES.search(file.name):
            yield file


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestedFolder:
    """The small files of a folder, checked by its `SHA256SUMS`, which its location may name."""

    address: str
    """Address of the folder, without the digest."""
    digest: str
    """Digest of `SHA256SUMS`; "" where the location names none."""
    read: Callable[[str, int], Awaitable[bytes]]
    """Returns the content of a file of at most so many bytes."""

    async def read_sums(self) -> Mapping[str, str]:
        """Return the digests by the paths of the files."""
        content, where = await self.read(SUMS, _MAX_SUMS_BYTES), f"{self.address}/{SUMS}"
        actual = hashlib.sha256(content).hexdigest()
        if self.digest and actual != self.digest:
            raise RefusedError(
                f"{where} has sha256 {actual}, but spec.model.uri names {self.digest}; correct the "
                "digest, or upload the files that it belongs to"
            )
        return _parse_sums(content, where)

    async def read_json(self, name: str) -> tuple[object, str]:
        """Return a JSON value, checked where the location names a digest, and this digest."""
        sums = await self.read_sums() if self.digest else {}
        if self.digest and name not in sums:
            raise RefusedError(f"{self.address}/{SUMS} does not name {name}; add it")
        content = await self.read(name, MAX_JSON_BYTES)
        if self.digest and hashlib.sha256(content).hexdigest() != sums[name]:
            raise RefusedError(
                f"{self.address}/{name} has another digest than in {SUMS}; upload it again"
            )
        return parse_json(content, f"{self.address}/{name}"), self.digest


async def read_whole(chunks: AsyncIterator[Chunk], limit: int, where: str) -> bytes:
    """Return the content of a file, which is refused beyond `limit` bytes."""
    content = bytearray()
    async for chunk in chunks:
        content += chunk
        if len(content) > limit:
            raise RefusedError(f"{where} exceeds {counted(limit, 'byte')}; correct it")
    return bytes(content)


def _parse_sums(text: bytes, where: str) -> Mapping[str, str]:
    sums = dict[str, str]()
    try:
        lines = text.decode().splitlines()
    except UnicodeDecodeError as error:
        raise RefusedError(f"{where} is not UTF-8; write it with sha256sum") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _SUM_LINE.fullmatch(line)
        if match is None:
            raise RefusedError(
                f"{where}, line {number} is not '<sha256>  <path>'; write the file with sha256sum"
            )
        sums[match[2]] = match[1]
    if not sums:
        raise RefusedError(f"{where} names 0 files; write it with sha256sum")
    return sums


def parse_json(content: bytes, where: str) -> object:
    """Return the value of a JSON file."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(f"{where} is not JSON; upload the file again") from error
