"""Stores for tests: a bucket with a model, a gate before it, and one that answers as it likes."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import obstore
import pytest
from aiohttp import web
from obstore.store import S3Store

from tessera.batch_runner.errors import BatchError
from tessera.batch_runner.model.download import DownloadProgress, download
from tessera.batch_runner.model.object_store import ObjectFolder
from tessera.batch_runner.model.sources import SUMS, FileSource
from world.hub import a_model
from world.object_store import ACCESS_KEY, SECRET_KEY, ObjectStore, serve_object_store

BUCKET = "models"
LLAMA = f"s3://{BUCKET}/llama"
_HALF_MIB = 2**19


def sums_of(files: Mapping[str, bytes]) -> bytes:
    """Return what `sha256sum` prints for the files."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in files.items()]
    return "\n".join(sorted(lines)).encode()


def with_sums(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {**files, SUMS: sums_of(files)}


def digest_of(files: Mapping[str, bytes]) -> str:
    return f"#sha256={hashlib.sha256(files[SUMS]).hexdigest()}"


async def upload(store: ObjectStore, files: Mapping[str, bytes], folder: str = "llama") -> None:
    bucket = S3Store(
        BUCKET,
        config={
            "endpoint": store.url,
            "region": "us-east-1",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
        },
        client_options={"allow_http": True},
    )
    for name, content in files.items():
        await obstore.put_async(bucket, f"{folder}/{name}", content)


@asynccontextmanager
async def a_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, bytes] | None = None
) -> AsyncIterator[ObjectStore]:
    """Serve a bucket with the files of a model, which this process may read."""
    async with serve_object_store(folder / "store", BUCKET) as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, value)
        await upload(store, a_model() if files is None else files)
        yield store


async def fetched(source: FileSource, into: Path, **options: Any) -> BatchError | str:
    """Return the commit that was downloaded, or the error."""
    try:
        return await download(source, into, DownloadProgress(), **options)
    except BatchError as error:
        return error


async def fetch_from(
    store: ObjectStore, into: Path, uri: str = LLAMA, **options: Any
) -> BatchError | str:
    return await fetched(ObjectFolder(uri, store.url, "us-east-1"), into, **options)


class Gate:
    """A proxy before a server, which passes so many bytes of its answers and then waits."""

    def __init__(self, url: str, limit: int) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self.limit = limit
        self.passed = 0
        self.opened, self.reached = asyncio.Event(), asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> "Gate":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.opened.set()
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._host, self._port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, to_server, limited=False))
                group.create_task(self._copy(from_server, writer, limited=True))
        except* (ConnectionError, OSError):
            pass
        finally:
            writer.close()
            to_server.close()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limited: bool
    ) -> None:
        while block := await reader.read(_HALF_MIB):
            if limited:
                room = max(0, self.limit - self.passed)
                if not self.opened.is_set() and len(block) > room:
                    writer.write(block[:room])
                    self.passed += room
                    block = block[room:]
                    self.reached.set()
                    await self.opened.wait()
                self.passed += len(block)
            writer.write(block)
            await writer.drain()
        writer.write_eof()


class HostileStore:
    """A server that speaks S3 and lists what it likes."""

    def __init__(
        self,
        *keys: str,
        size: int = 4,
        body: bytes = b"{}{}",
        endless: bool = False,
        answer: tuple[int, str] | None = None,
    ) -> None:
        self.keys, self.size, self.body = keys, size, body
        self.endless, self.answer = endless, answer
        self.open = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> "HostileStore":
        app = web.Application()
        app.router.add_get("/{bucket}", self._list)
        app.router.add_get("/{bucket}/{key:.*}", self._get)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open.set()
        await self._runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        if self.answer is not None:
            status, text = self.answer
            return web.Response(status=status, text=text, content_type="application/xml")
        page = int(request.query.get("continuation-token", "0"))
        keys = self.keys or tuple(f"llama/{page}-{number}" for number in range(1000))
        contents = "".join(
            f"<Contents><Key>{key}</Key><Size>{self.size}</Size><ETag>&quot;1&quot;</ETag>"
            "<LastModified>2026-11-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        more = "" if self.keys else f"<NextContinuationToken>{page + 1}</NextContinuationToken>"
        text = (
            f"<ListBucketResult><IsTruncated>{str(not self.keys).lower()}</IsTruncated>"
            f"{contents}{more}</ListBucketResult>"
        )
        return web.Response(text=text, content_type="application/xml")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"ETag": '"1"', **self._headers()})
        await response.prepare(request)
        await response.write(self.body)
        with contextlib.suppress(ConnectionError):
            while self.endless:
                await response.write(bytes(2**20))
        await self.open.wait()
        return response

    def _headers(self) -> dict[str, str]:
        length = 2**40 if self.endless else self.size
        return {"Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT", "Content-Length": str(length)}


class EndlessListing:
    """A server that answers everything with as many bytes as are read, whatever it says."""

    def __init__(self, status: int, length: int | None) -> None:
        self._status, self._length = status, length
        self.sent = 0
        self.url = ""

    async def __aenter__(self) -> "EndlessListing":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = "Transfer-Encoding: chunked"
        if self._length is not None:
            size = f"Content-Length: {self._length}"
        head = f"HTTP/1.1 {self._status} OK\r\nContent-Type: application/xml\r\n{size}\r\n\r\n"
        block = b"a" * 2**20
        if self._length is None:
            block = b"%x\r\n%b\r\n" % (len(block), block)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head.encode())
            while self.sent < 2**30:
                writer.write(block)
                await writer.drain()
                self.sent += len(block)
