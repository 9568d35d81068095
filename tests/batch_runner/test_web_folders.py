"""Files of models on web servers, which their SHA256SUMS names and checks."""

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tessera.batch_runner.errors import BatchError, RefusedError, TransientError
from tessera.batch_runner.model.jobs import shape
from tessera.batch_runner.model.sources import SUMS
from tessera.batch_runner.model.web_folder import open_web_folder
from tests.batch_runner.object_stores import digest_of, fetched, with_sums
from world.hub import a_model

FILES = with_sums(a_model())
WEIGHTS = "model.safetensors"
TOKEN = "valid"  # noqa: S105 - of a server that is made up


class WebServer:
    """A server of files that needs a token, and may send clients elsewhere."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        ranges: bool = True,
        no_heads: type[web.HTTPException] | None = None,
    ) -> None:
        self.files, self.ranges, self.no_heads = files, ranges, no_heads
        self.headers = dict[str, str]()
        self.elsewhere = ""
        self.url = ""
        self.tokens = set[str]()
        self.requests = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.tokens.add(request.headers.get("Authorization", ""))
        if self.elsewhere:
            raise web.HTTPFound(self.elsewhere + request.path)
        content = self.files.get(request.path.removeprefix("/llama/"))
        if content is None:
            raise web.HTTPNotFound
        if request.method == "HEAD" and self.no_heads is not None:
            raise self.no_heads
        start = request.http_range.start or 0
        if not start or not self.ranges:
            return web.Response(body=content, headers=self.headers)
        return web.Response(status=206, body=content[start:])


@asynccontextmanager
async def serve(server: WebServer) -> AsyncIterator[WebServer]:
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


async def fetch_from(
    server: WebServer, into: Path, digest: str = digest_of(FILES)
) -> BatchError | str:
    # As `echo` writes it into a Secret.
    async with open_web_folder(f"{server.url}/llama{digest}", f"{TOKEN}\n") as folder:
        return await fetched(folder, into)


async def test_a_web_folder_is_fetched_by_the_digest_of_its_sums(tmp_path: Path) -> None:
    async with serve(WebServer(FILES)) as server:
        commit = await fetch_from(server, tmp_path)
        source = open_web_folder(f"{server.url}/llama{digest_of(FILES)}", None)
        code, report = await shape(server.url, None, source)
    assert commit == digest_of(FILES).removeprefix("#sha256=")
    assert (tmp_path / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert not (tmp_path / "pytorch_model.bin").exists()
    assert (code, report["shape"]["layers"]) == (0, 12)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (with_sums({WEIGHTS: b""}), "SHA256SUMS does not name config.json; add it"),
        ({**FILES, "config.json": b"{}"}, "another digest than in SHA256SUMS; upload it again"),
        (with_sums({"config.json": b"{"}), "config.json is not JSON"),
        ({**FILES, "config.json": bytes(2**25 + 1)}, "exceeds 33554432 bytes; correct it"),
    ],
)
async def test_the_shape_of_a_model_is_read_from_a_file_that_its_sums_name(
    files: dict[str, bytes], words: str
) -> None:
    async with serve(WebServer(files)) as server:
        source = open_web_folder(f"{server.url}/llama{digest_of(files)}", None)
        code, report = await shape(server.url, None, source)
    assert code == RefusedError.code
    assert words in report["message"]


@pytest.mark.parametrize(
    ("ranges", "partial"),
    [
        (True, FILES[WEIGHTS][:1000]),
        # The whole file comes again, not a part to skip, which would have to fit into memory.
        (False, bytes(1000)),
    ],
)
async def test_a_download_goes_on_whether_or_not_the_server_knows_ranges(
    ranges: bool, partial: bytes, tmp_path: Path
) -> None:
    commit = digest_of(FILES).removeprefix("#sha256=")
    (tmp_path / ".tessera-commit").write_text(commit)
    (tmp_path / f"{WEIGHTS}.{commit[:12]}.part").write_bytes(partial)
    async with serve(WebServer(FILES, ranges=ranges)) as server:
        assert await fetch_from(server, tmp_path) == commit
    assert (tmp_path / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize(
    ("changes", "digest", "words"),
    [
        ({}, "#sha256=" + "0" * 64, "correct the digest"),
        ({WEIGHTS: b"others"}, digest_of(FILES), "upload the file again, or correct SHA256SUMS"),
        ({SUMS: b"no sums"}, None, "line 1 is not '<sha256>  <path>'"),
        ({SUMS: b""}, None, "names 0 files"),
        ({SUMS: b"\xff"}, None, "is not UTF-8"),
        ({SUMS: b"0" * 64 + b"  gone.json"}, None, "404 Not Found; correct spec.model.uri"),
        ({SUMS: b"0" * 64 + b"  ../llama/config.json"}, None, "rename it"),
        ({SUMS: b"0" * 64 + b"  ../../metadata"}, None, "rename it"),
        (
            {SUMS: b"".join(b"0" * 64 + b"  %d.json\n" % number for number in range(10_001))},
            None,
            "10001 files exceed the limit of 10000",
        ),
    ],
)
async def test_what_a_web_folder_has_wrong_has_a_fix(
    changes: dict[str, bytes], digest: str | None, words: str, tmp_path: Path
) -> None:
    files = {**FILES, **changes}
    digest = digest or f"#sha256={hashlib.sha256(files[SUMS]).hexdigest()}"
    async with serve(WebServer(files)) as server:
        outcome = await fetch_from(server, tmp_path / "own", digest)
    assert isinstance(outcome, RefusedError), outcome
    assert words in str(outcome)
    assert server.requests < 10


async def test_after_a_refused_file_no_further_one_is_begun(tmp_path: Path) -> None:
    many = {f"{number:03}.json": b"{}" for number in range(40)}
    files = {**with_sums(many), "000.json": b"[]"}
    async with serve(WebServer(files)) as server:
        outcome = await fetch_from(server, tmp_path / "own", digest_of(files))
    assert isinstance(outcome, RefusedError), outcome
    assert len([*(tmp_path / "own").glob("*.json")]) < 20


@pytest.mark.parametrize("refusal", [web.HTTPForbidden, web.HTTPNotImplemented])
async def test_a_server_without_heads_is_asked_for_files_alone(
    refusal: type[web.HTTPException], tmp_path: Path
) -> None:
    async with serve(WebServer(FILES, no_heads=refusal)) as server:
        assert isinstance(await fetch_from(server, tmp_path), str)
    assert (tmp_path / WEIGHTS).read_bytes() == FILES[WEIGHTS]


async def test_compressed_answers_are_refused_unread(tmp_path: Path) -> None:
    async with serve(WebServer(FILES)) as server:
        server.headers = {"Content-Encoding": "gzip"}
        outcome = await fetch_from(server, tmp_path)
    assert isinstance(outcome, RefusedError), outcome
    assert "let it send the files as they are" in str(outcome)


async def test_redirects_end_and_take_no_token_elsewhere(tmp_path: Path) -> None:
    async with serve(WebServer(FILES)) as server, serve(WebServer(FILES)) as other:
        server.elsewhere = other.url
        assert isinstance(await fetch_from(server, tmp_path / "own"), str)
        assert (server.tokens, other.tokens) == ({f"Bearer {TOKEN}"}, {""})
        server.elsewhere = server.url
        outcome = await fetch_from(server, tmp_path / "other")
        assert isinstance(outcome, RefusedError)
        assert "more than 5 redirects" in str(outcome)


@pytest.mark.parametrize(
    ("address", "token", "refused"),
    [
        ("http://models.acme", TOKEN, True),
        ("http://10.0.0.7:8080", TOKEN, True),
        ("http://167772167", TOKEN, True),
        ("http://models.svc.acme", TOKEN, True),
        ("http://models.acme", None, False),
        ("https://models.acme", TOKEN, False),
        ("http://models", TOKEN, False),
        ("http://models.storage.svc:8080", TOKEN, False),
        ("http://Models.storage.svc.cluster.local", TOKEN, False),
    ],
)
async def test_a_token_leaves_the_cluster_by_tls_alone(
    address: str, token: str | None, refused: bool
) -> None:
    source = open_web_folder(f"{address}/llama{digest_of(FILES)}", token)
    if not refused:
        async with source:
            return
    code, report = await shape(address, None, source)
    assert code == RefusedError.code
    assert report["message"].startswith(f"{address}/llama: BEARER_TOKEN of the Secret")


async def test_a_web_server_that_is_not_there_is_asked_again(tmp_path: Path) -> None:
    async with serve(WebServer(FILES)) as server:
        pass
    assert isinstance(await fetch_from(server, tmp_path / "own"), TransientError)
