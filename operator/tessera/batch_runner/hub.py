"""Client of the Hugging Face Hub or its mirror: listings and files of a repository."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from tessera.batch_runner.errors import BatchError, RefusedError, TransientError
from tessera.domain.names import PUBLIC_HUB

_CONNECT_TIMEOUT_SECONDS = 30
# Longest pause within a response.
_READ_TIMEOUT_SECONDS = 60
_MAX_TEXT_BYTES = 32 * 2**20
_CHUNK_BYTES = 2**20
_REFUSED_STATUSES = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """One file of a repository."""

    name: str
    size: int | None
    """In bytes; None where the mirror does not list it."""


@dataclass(frozen=True, slots=True)
class RepositoryListing:
    """A repository at one commit."""

    commit: str
    files: tuple[RepositoryFile, ...]


class HubRepository:
    """One repository. The token goes to the hub alone, never to a redirect's target."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str, repository: str) -> None:
        self._session = session
        self._endpoint = endpoint.rstrip("/")
        self._repository = repository

    async def listing(self, revision: str) -> RepositoryListing:
        """Return all files at the commit that the revision resolves to now."""
        url = f"{self._endpoint}/api/models/{self._repository}/revision/{revision}?blobs=true"
        async with self._get(url) as response:
            document = _parse_object(await self._read_text(response), url)
        try:
            files = tuple(
                RepositoryFile(sibling["rfilename"], sibling.get("size"))
                for sibling in document["siblings"]
            )
            return RepositoryListing(str(document["sha"]), files)
        except (KeyError, TypeError) as error:
            raise TransientError(f"{url}: the response is not a repository listing") from error

    async def read_json(self, revision: str, name: str) -> tuple[object, str]:
        """Return a JSON value, and the commit of its file ("" where the hub does not name it)."""
        url = self._file_url(revision, name)
        async with self._get(url) as response:
            return _parse_json(await self._read_text(response), url), response.headers.get(
                "X-Repo-Commit", ""
            )

    async def read_chunks(self, revision: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """Yield the content of a file from byte `offset` on."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._get(self._file_url(revision, name), headers) as response:
            if offset and response.status != HTTPStatus.PARTIAL_CONTENT:
                raise TransientError(
                    f"{response.url}: the hub ignored the Range header, cannot resume the download"
                )
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

    async def _read_text(self, response: aiohttp.ClientResponse) -> bytes:
        body = await response.content.read(_MAX_TEXT_BYTES)
        while not response.content.at_eof() and len(body) < _MAX_TEXT_BYTES:
            body += await response.content.read(_MAX_TEXT_BYTES - len(body))
        return body


@asynccontextmanager
async def open_repository(
    endpoint: str | None, token: str | None, uri: str
) -> AsyncIterator[HubRepository]:
    """Open the repository of an `hf://` model, with proxies and CAs of the environment."""
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_CONNECT_TIMEOUT_SECONDS, sock_read=_READ_TIMEOUT_SECONDS
    )
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(trust_env=True, timeout=timeout, headers=headers) as session:
        yield HubRepository(session, endpoint or PUBLIC_HUB, uri.removeprefix("hf://"))


def _response_error(response: aiohttp.ClientResponse, url: str) -> BatchError:
    message = response.headers.get("X-Error-Message", "")
    text = f"{response.status} Client Error: {response.reason} for {url} {message}".strip()
    if response.status in _REFUSED_STATUSES:
        return RefusedError(text)
    return TransientError(f"{response.status} {response.reason} for {url} {message}".strip())


def _parse_json(text: bytes, url: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{url} is not JSON") from error


def _parse_object(text: bytes, url: str) -> Mapping[str, Any]:
    value = _parse_json(text, url)
    if not isinstance(value, dict):
        raise RefusedError(f"{url} is not a JSON object")
    return value
