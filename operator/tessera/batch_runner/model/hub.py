"""Client of the Hugging Face Hub or its mirror: listings and files of a repository."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp

from tessera.batch_runner.errors import BatchError, RefusedError, TransientError
from tessera.batch_runner.model.sources import (
    MAX_JSON_BYTES,
    Chunk,
    RangeIgnoredError,
    SourceFile,
    SourceListing,
    parse_json,
    read_whole,
)
from tessera.domain.names import PUBLIC_HUB

_CONNECT_TIMEOUT_SECONDS = 30
# Longest pause within a response.
_READ_TIMEOUT_SECONDS = 60
_CHUNK_BYTES = 2**20
_DEFAULT_REVISION = "main"
_REFUSED_STATUSES = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


class HubRepository:
    """One repository at a revision.

    The token goes to the hub alone, never to a redirect's target.
    """

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: str, repository: str, revision: str
    ) -> None:
        self._session = session
        self._endpoint = endpoint.rstrip("/")
        self._repository = repository
        self._revision = revision

    async def listing(self) -> SourceListing:
        """Return all files at the commit that the revision resolves to now."""
        revision = f"{self._repository}/revision/{self._revision}"
        url = f"{self._endpoint}/api/models/{revision}?blobs=true"
        async with self._get(url) as response:
            document = await _read_json(response, url)
        if not isinstance(document, dict):
            raise RefusedError(f"{url} is not a JSON object")
        try:
            files = tuple(
                SourceFile(str(sibling["rfilename"]), _size(sibling.get("size")))
                for sibling in document["siblings"]
            )
            return SourceListing(str(document["sha"]), files)
        except (KeyError, TypeError) as error:
            raise TransientError(f"{url}: the response is not a repository listing") from error

    async def read_json(self, name: str) -> tuple[object, str]:
        """Return a JSON value, and the commit of its file ("" where the hub does not name it).

        What is read later is of the same commit.
        """
        url = self._file_url(self._revision, name)
        async with self._get(url) as response:
            commit = response.headers.get("X-Repo-Commit", "")
            value = await _read_json(response, url)
        self._revision = commit or self._revision
        return value, commit

    async def read_chunks(
        self, commit: str, file: SourceFile, offset: int
    ) -> AsyncGenerator[Chunk]:
        """Yield the content of a file from byte `offset` on."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._get(self._file_url(commit, file.name), headers) as response:
            if offset and response.status != HTTPStatus.PARTIAL_CONTENT:
                raise RangeIgnoredError(f"{response.url}: the hub ignored the Range header")
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk

    def _file_url(self, revision: str, name: str) -> str:
        return f"{self._endpoint}/{self._repository}/resolve/{revision}/{name}"

    @asynccontextmanager
    async def _get(
        self, url: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.get(url, headers=headers) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise _response_error(response, url)
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            message = str(error) or type(error).__name__
            raise TransientError(f"GET {url}: no response from the hub: {message}") from error


@asynccontextmanager
async def open_repository(
    endpoint: str | None, token: str | None, uri: str, revision: str | None = None
) -> AsyncIterator[HubRepository]:
    """Open the repository of an `hf://` model, with proxies and CAs of the environment."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_CONNECT_TIMEOUT_SECONDS, sock_read=_READ_TIMEOUT_SECONDS
    )
    headers = {"Authorization": f"Bearer {token.strip()}"} if token else {}
    async with aiohttp.ClientSession(trust_env=True, timeout=timeout, headers=headers) as session:
        repository = uri.removeprefix("hf://")
        revision = revision or _DEFAULT_REVISION
        yield HubRepository(session, endpoint or PUBLIC_HUB, repository, revision)


def _response_error(response: aiohttp.ClientResponse, url: str) -> BatchError:
    message = response.headers.get("X-Error-Message", "")
    text = f"{response.status} Client Error: {response.reason} for {url} {message}".strip()
    if response.status in _REFUSED_STATUSES:
        return RefusedError(text)
    return TransientError(f"{response.status} {response.reason} for {url} {message}".strip())


async def _read_json(response: aiohttp.ClientResponse, url: str) -> Any:
    chunks = response.content.iter_chunked(_CHUNK_BYTES)
    return parse_json(await read_whole(chunks, MAX_JSON_BYTES, url), url)


def _size(value: object) -> int | None:
    """Return a size in bytes; None where the hub says none."""
    return value if isinstance(value, int) else None
