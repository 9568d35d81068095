"""The model hub, or its mirror: what a repository holds, and its files."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from tessera.batch.errors import BatchError, RefusedError, TroubleError

PUBLIC = "https://huggingface.co"
_CONNECT_SECONDS = 30
_SILENT_SECONDS = 60
"""An answer that stands still for so long is given up."""
_LARGEST_TEXT = 32 * 2**20
_CHUNK = 2**20
_NEEDS_AN_EDIT = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a repository."""

    name: str
    size: int | None
    """In bytes; None where the mirror does not say it."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: tuple[File, ...]


class Hub:
    """One repository; the token is sent to the hub alone, never to where it redirects."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str, repository: str) -> None:
        self._session = session
        self._endpoint = endpoint.rstrip("/")
        self._repository = repository

    async def listing(self, revision: str) -> Listing:
        """All files at the commit that the revision means now."""
        url = f"{self._endpoint}/api/models/{self._repository}/revision/{revision}?blobs=true"
        async with self._get(url) as answer:
            told = _object(await self._text(answer), url)
        try:
            files = tuple(File(one["rfilename"], one.get("size")) for one in told["siblings"])
            return Listing(str(told["sha"]), files)
        except (KeyError, TypeError) as error:
            raise TroubleError(f"{url}: not a listing of a repository") from error

    async def object(self, revision: str, name: str) -> tuple[Mapping[str, Any], str]:
        """A JSON file, and the commit that it is of."""
        url = self._file(revision, name)
        async with self._get(url) as answer:
            return _object(await self._text(answer), url), answer.headers.get("X-Repo-Commit", "")

    async def parts(self, revision: str, name: str, since: int) -> AsyncIterator[bytes]:
        """A file from one byte on."""
        headers = {"Range": f"bytes={since}-"} if since else {}
        async with self._get(self._file(revision, name), headers) as answer:
            if since and answer.status != HTTPStatus.PARTIAL_CONTENT:
                raise TroubleError(f"{answer.url}: the hub does not go on in the middle of a file")
            async for part in answer.content.iter_chunked(_CHUNK):
                yield part

    def _file(self, revision: str, name: str) -> str:
        return f"{self._endpoint}/{self._repository}/resolve/{revision}/{name}"

    @asynccontextmanager
    async def _get(
        self, url: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.get(url, headers=headers) as answer:
                if answer.status >= HTTPStatus.BAD_REQUEST:
                    raise _refusal(answer, url)
                yield answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            told = str(error) or type(error).__name__
            raise TroubleError(f"GET {url}: the hub did not answer: {told}") from error

    async def _text(self, answer: aiohttp.ClientResponse) -> bytes:
        found = await answer.content.read(_LARGEST_TEXT)
        while not answer.content.at_eof() and len(found) < _LARGEST_TEXT:
            found += await answer.content.read(_LARGEST_TEXT - len(found))
        return found


@asynccontextmanager
async def connected(endpoint: str | None, token: str | None, uri: str) -> AsyncIterator[Hub]:
    """The repository of an `hf://` model; proxies and certificates are those of the environment."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS
    )
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(trust_env=True, timeout=timeout, headers=headers) as session:
        yield Hub(session, endpoint or PUBLIC, uri.removeprefix("hf://"))


def _refusal(answer: aiohttp.ClientResponse, url: str) -> BatchError:
    told = answer.headers.get("X-Error-Message", "")
    words = f"{answer.status} Client Error: {answer.reason} for {url} {told}".strip()
    if answer.status in _NEEDS_AN_EDIT:
        return RefusedError(words)
    return TroubleError(f"{answer.status} {answer.reason} for {url} {told}".strip())


def _object(text: bytes, url: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{url} is not JSON") from error
    if not isinstance(found, dict):
        raise RefusedError(f"{url} is not an object")
    return found
