"""Files of a model in a folder of a web server, named and checked by its `SHA256SUMS`."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import quote, urlsplit

import aiohttp

from tessera.batch_runner.errors import BatchError, RefusedError, TransientError
from tessera.batch_runner.model.sources import (
    Chunk,
    DigestedFolder,
    RangeIgnoredError,
    SourceFile,
    SourceListing,
    read_whole,
    readable_files,
)

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
# A small file that is read as a whole may take so long.
_TEXT_SECONDS = 120
_MAX_REDIRECTS = 5
_CHUNK_BYTES = 2**20
_MAX_PARALLEL_HEADS = 8
# Some servers answer GET alone, as do addresses that they redirect to and that are signed for GET.
# The sizes of their files are not known before.
_NO_HEAD_STATUSES = (
    HTTPStatus.FORBIDDEN,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.NOT_IMPLEMENTED,
)
# Hosts of a Service, and of the pod itself: what is sent there stays in the cluster.
_CLUSTER_HOSTS = re.compile(r"[a-z][^.]*|.+\.svc(\.cluster\.local)?|127\.[0-9.]+")
_REFUSED_STATUSES = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


class WebFolder:
    """A folder of a web server. A token goes to this server alone, never to a redirect's target."""

    def __init__(self, session: aiohttp.ClientSession, url: str, digest: str) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._small_files = DigestedFolder(address=self._url, digest=digest, read=self._read)

    async def listing(self) -> SourceListing:
        """Return the files that `SHA256SUMS` names, with their sizes where the server has them."""
        sums, slots = await self._small_files.read_sums(), asyncio.Semaphore(_MAX_PARALLEL_HEADS)
        # Checked before the server is asked for each.
        files = readable_files(SourceFile(name, None, sha256=sums[name]) for name in sorted(sums))

        async def sized(file: SourceFile) -> SourceFile:
            async with slots, self._request("HEAD", file.name) as response:
                return replace(file, size=response.content_length if response.ok else None)

        return SourceListing(
            self._small_files.digest, tuple(await asyncio.gather(*map(sized, files)))
        )

    async def read_json(self, name: str) -> tuple[object, str]:
        """Return a JSON file of the folder, checked by its digest."""
        return await self._small_files.read_json(name)

    async def read_chunks(
        self, commit: str, file: SourceFile, offset: int
    ) -> AsyncGenerator[Chunk]:
        """Yield the content of a file from byte `offset` on."""
        del commit
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        async with self._request("GET", file.name, headers) as response:
            if offset and response.status != HTTPStatus.PARTIAL_CONTENT:
                raise RangeIgnoredError(f"{response.url}: the server ignored the Range header")
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                yield chunk

    async def _read(self, name: str, limit: int) -> bytes:
        async with self._request("GET", name) as response, asyncio.timeout(_TEXT_SECONDS):
            chunks = response.content.iter_chunked(_CHUNK_BYTES)
            return await read_whole(chunks, limit, f"{self._url}/{name}")

    @asynccontextmanager
    async def _request(
        self, method: str, name: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = f"{self._url}/{quote(name)}"
        try:
            async with self._session.request(
                method, url, headers=headers, allow_redirects=True, max_redirects=_MAX_REDIRECTS
            ) as response:
                if response.status >= HTTPStatus.BAD_REQUEST and (
                    method != "HEAD" or response.status not in _NO_HEAD_STATUSES
                ):
                    raise _response_error(response, url)
                if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
                    raise RefusedError(
                        f"{url}: the server sends the file as {encoding[:32]!r}, though asked for "
                        "identity; let it send the files as they are"
                    )
                yield response
        except aiohttp.TooManyRedirects as error:
            raise RefusedError(
                f"{url}: more than {_MAX_REDIRECTS} redirects; name the server that has the files"
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            message = str(error) or type(error).__name__
            raise TransientError(f"{method} {url}: no answer: {message}") from error


@asynccontextmanager
async def open_web_folder(uri: str, token: str | None) -> AsyncIterator[WebFolder]:
    """Open the folder of an `https://` location, with proxies and CAs of the environment.

    A token is sent by `http://` within the cluster alone.
    """
    url, _, fragment = uri.partition("#")
    parts = urlsplit(url)
    if token and parts.scheme == "http" and not _CLUSTER_HOSTS.fullmatch(parts.hostname or ""):
        raise RefusedError(
            f"{url}: BEARER_TOKEN of the Secret of spec.model.store is not sent outside the "
            "cluster by http://; write the address with https://, or remove the key"
        )
    headers = {"Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token.strip()}"
    async with aiohttp.ClientSession(trust_env=True, timeout=_TIMEOUT, headers=headers) as session:
        yield WebFolder(session, url, fragment.removeprefix("sha256="))


def _response_error(response: aiohttp.ClientResponse, url: str) -> BatchError:
    text = f"{url}: the server answered {response.status} {response.reason}"
    if response.status not in _REFUSED_STATUSES:
        return TransientError(text)
    if response.status == HTTPStatus.NOT_FOUND:
        return RefusedError(f"{text}; correct spec.model.uri, or upload the file")
    return RefusedError(f"{text}; name a Secret with a valid BEARER_TOKEN in spec.model.store")
