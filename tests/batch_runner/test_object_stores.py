"""Files of models in buckets: what is fetched, resumed, verified and refused."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tessera.api.template_version import PodTemplateVersion
from tessera.batch_runner.errors import BatchError, RefusedError, TransientError
from tessera.batch_runner.model.jobs import shape
from tessera.batch_runner.model.locations import open_source
from tessera.batch_runner.model.object_store import ObjectFolder
from tessera.batch_runner.model.sources import Chunk, SourceFile, SourceListing
from tessera.domain.model.fetched import fetched_files
from tessera.domain.service.preparation.jobs import ModelJob
from tessera.resources.arguments import MODELS
from tessera.resources.batch_job import batch_job_manifest
from tessera.resources.model_job import model_job_manifest
from tessera.resources.runner import REPORT_PATH, RunnerImage
from tessera.settings import RunnerSettings
from tests.batch_builders import STORED, a_batch, a_batch_spec, a_checked_situation, plan_batch
from tests.batch_runner.object_stores import (
    BUCKET,
    LLAMA,
    EndlessListing,
    Gate,
    HostileStore,
    a_store,
    digest_of,
    fetch_from,
    fetched,
    upload,
    with_sums,
)
from tests.builders import a_service, a_spec
from world.hub import a_model
from world.testing import eventually

WEIGHTS = "model.safetensors"
# A model whose weights take many reads.
LARGE = {**a_model(), WEIGHTS: bytes(range(256)) * 2**15}


def names_in(folder: Path) -> set[str]:
    """The files that an engine sees."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if not path.name.startswith(".")}


async def test_a_folder_of_a_bucket_is_fetched_whole_and_without_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(tmp_path, monkeypatch) as store:
        commit = await fetch_from(store, tmp_path / "own")
    assert isinstance(commit, str), commit
    assert names_in(tmp_path / "own") == {"config.json", WEIGHTS, "tokenizer/tokenizer.json"}
    assert (tmp_path / "own" / WEIGHTS).read_bytes() == a_model()[WEIGHTS]
    # The store is gone: a complete folder needs none.
    assert await fetch_from(store, tmp_path / "own") == commit


async def test_credentials_that_end_with_a_line_break_are_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(tmp_path, monkeypatch) as store:
        for name, value in store.environment().items():
            monkeypatch.setenv(name, f"{value}\n")
        assert isinstance(await fetch_from(store, tmp_path / "own"), str)


async def test_the_shape_of_a_model_is_read_in_its_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = with_sums(a_model())
    async with a_store(tmp_path, monkeypatch, files) as store:
        for digest, outcome in (("", 0), (digest_of(files), 0), ("#sha256=" + "0" * 64, 3)):
            uri = LLAMA + digest
            source = open_source(uri, None, RunnerSettings(), store.url, "us-east-1")
            code, report = await shape(uri, None, source)
            assert code == outcome, report
            assert code or report["shape"]["layers"] == 12


async def test_the_shape_of_a_model_is_read_from_a_file_that_its_sums_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = a_model() | with_sums({WEIGHTS: b""})
    async with a_store(tmp_path, monkeypatch, files) as store:
        source = open_source(LLAMA + digest_of(files), None, RunnerSettings(), store.url)
        code, report = await shape(LLAMA, None, source)
    assert code == RefusedError.code
    assert "SHA256SUMS does not name config.json; add it" in report["message"]


@pytest.mark.parametrize(
    ("changes", "uri", "error", "words"),
    [
        ({}, "s3://models/none", RefusedError, "has 0 objects; correct spec.model.uri"),
        ({}, "s3://no-bucket/llama", RefusedError, "not found: correct spec.model.uri (404 NoSuch"),
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            LLAMA,
            RefusedError,
            "denied access: let the credentials of spec.model.store",
        ),
        ({"AWS_SESSION_TOKEN": "old"}, LLAMA, TransientError, "have expired: renew the Secret"),
        ({}, f"{LLAMA}#sha256={'0' * 64}", RefusedError, "not found: correct spec.model.uri"),
    ],
)
async def test_what_a_store_refuses_has_a_reason_and_a_fix(
    changes: dict[str, str],
    uri: str,
    error: type[BatchError],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_store(tmp_path, monkeypatch) as store:
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        outcome = await fetch_from(store, tmp_path / "own", uri)
    assert type(outcome) is error
    assert words in str(outcome)
    assert store.environment()["AWS_SECRET_ACCESS_KEY"] not in str(outcome)
    assert names_in(tmp_path / "own") == set()


async def test_objects_are_checked_by_the_digests_that_lie_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = with_sums(a_model())
    half = {**files, WEIGHTS: files[WEIGHTS][:-1] + b"?"}
    async with a_store(tmp_path, monkeypatch, half) as store:
        outcome = await fetch_from(store, tmp_path / "own")
        assert isinstance(outcome, RefusedError)
        assert f"{WEIGHTS} has sha256" in str(outcome)
        assert WEIGHTS not in names_in(tmp_path / "own")
        await upload(store, files)
        assert isinstance(await fetch_from(store, tmp_path / "own", LLAMA + digest_of(files)), str)


class _Earlier:
    """A source that lists what was there before."""

    def __init__(self, folder: ObjectFolder, listing: SourceListing) -> None:
        self._folder, self._listing = folder, listing

    async def listing(self) -> SourceListing:
        return self._listing

    async def read_json(self, name: str) -> Any:
        raise NotImplementedError(name)

    def read_chunks(self, commit: str, file: SourceFile, offset: int) -> AsyncGenerator[Chunk]:
        return self._folder.read_chunks(commit, file, offset)


async def test_an_object_that_changes_under_a_download_is_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(tmp_path, monkeypatch) as store:
        folder = ObjectFolder(LLAMA, store.url, "us-east-1")
        earlier = _Earlier(folder, await folder.listing())
        weights = bytes(len(a_model()[WEIGHTS]))
        await upload(store, {WEIGHTS: weights})
        outcome = await fetched(earlier, tmp_path / "own")
        assert isinstance(outcome, TransientError)
        assert "an object changed during the download" in str(outcome)
        assert names_in(tmp_path / "own") >= {"config.json", "tokenizer/tokenizer.json"}
        (store.buckets / BUCKET / "llama" / "tokenizer" / "tokenizer.json").unlink()
        assert isinstance(await fetched(folder, tmp_path / "own"), str)
    assert (tmp_path / "own" / WEIGHTS).read_bytes() == weights
    assert names_in(tmp_path / "own") == {"config.json", WEIGHTS}


async def test_ten_fetches_of_one_folder_take_its_bytes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(tmp_path, monkeypatch, LARGE) as store, Gate(store.url, 2**40) as gate:
        folder = ObjectFolder(LLAMA, gate.url, "us-east-1")
        fetches = [fetched(folder, tmp_path / "own") for _ in range(10)]
        commits = await asyncio.gather(*fetches)
        assert len({*commits}) == 1
        assert gate.passed < 1.1 * sum(len(content) for content in LARGE.values())


@pytest.mark.parametrize(
    "tenth",
    [5, *(pytest.param(tenth, marks=pytest.mark.full) for tenth in (0, 1, 2, 3, 4, 6, 7, 8, 9))],
)
async def test_a_killed_fetch_goes_on_where_it_was(
    tenth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into, size = tmp_path / "own", len(LARGE[WEIGHTS])
    async with a_store(tmp_path, monkeypatch, with_sums(LARGE)) as store:
        async with Gate(store.url, size * tenth // 10 + 4096) as gate:
            process = await _start_fetch(gate.url, into)
            await gate.reached.wait()

            async def most_is_written() -> None:
                assert await _written(into) > size * (tenth - 3) / 10

            await eventually(most_is_written)
            process.kill()
            await process.wait()
        written = await _written(into)
        assert WEIGHTS not in names_in(into)
        async with Gate(store.url, 2**40) as gate:
            process = await _start_fetch(gate.url, into)
            assert await process.wait() == 0
        assert gate.passed < size - written + 2**16
    assert (into / WEIGHTS).read_bytes() == LARGE[WEIGHTS]
    assert not [name for name in names_in(into) if name.endswith(".part")]


async def test_a_second_batch_and_a_service_fetch_no_byte_of_a_complete_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(tmp_path, monkeypatch, LARGE) as store, Gate(store.url, 2**40) as gate:
        access = {"endpoint": gate.url, "region": "us-east-1"}
        model = {**STORED, "uri": LLAMA, "store": access}
        passed = []
        for arguments in (_batch_fetch(model), _batch_fetch(model), _service_fetch(model)):
            command = [
                argument.replace(f"--into={MODELS}", f"--into={tmp_path}")
                .replace(REPORT_PATH, str(tmp_path / "report"))
                .replace("$(POD_IP)", "127.0.0.1")
                for argument in arguments
                if not argument.startswith("--port=")
            ]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tessera.batch_runner.main", *command, "--port=0"
            )
            assert await process.wait() == 0
            passed.append(gate.passed)
    assert passed[0] > len(LARGE[WEIGHTS])
    assert passed == [passed[0]] * 3


def _batch_fetch(model: dict[str, Any]) -> list[str]:
    """Return the arguments of the container that downloads before the engine of a batch."""
    plan = plan_batch(a_checked_situation(a_batch(a_batch_spec(model=model))))
    assert plan.create is not None
    assert plan.batch.spec is not None
    job = batch_job_manifest(
        plan.batch, plan.batch.spec, plan.create, RunnerImage("runner"), PodTemplateVersion()
    )
    (fetch, _) = job.body["spec"]["template"]["spec"]["initContainers"]
    return list(fetch["args"])


def _service_fetch(model: dict[str, Any]) -> list[str]:
    service = a_service(spec=a_spec(model=model))
    assert service.spec is not None
    (files,) = fetched_files(service.spec)
    model_job = ModelJob(task="fetch", name=files.job_name, spec=service.spec, files=files)
    job = model_job_manifest(service, model_job, None, RunnerImage("runner"), PodTemplateVersion())
    (fetch,) = job.body["spec"]["template"]["spec"]["containers"]
    return list(fetch["args"])


async def _start_fetch(endpoint: str, into: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tessera.batch_runner.main", "fetch", f"--uri={LLAMA}",
        f"--report={into.with_name('report')}", f"--into={into}", f"--endpoint={endpoint}",
        "--region=us-east-1", "--host=127.0.0.1", "--port=0",
    )  # fmt: skip


@pytest.mark.parametrize(("length", "status"), [(2**40, 200), (None, 403)])
async def test_a_listing_without_an_end_ends_the_job_within_its_memory_and_says_so(
    length: int | None, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    async with EndlessListing(status, length) as store:
        process = await _start_fetch(store.url, tmp_path / "own")
        assert await process.wait() not in {0, RefusedError.code}
    report = json.loads((tmp_path / "report").read_text())
    assert "by an answer of more than 768 MiB" in report["message"]
    assert "correct spec.model.uri or spec.model.store.endpoint" in report["message"]
    assert store.sent < 900 * 2**20


async def _written(into: Path) -> int:
    parts = into.glob(f"{WEIGHTS}.*.part")  # noqa: ASYNC240
    return sum(part.stat().st_size for part in parts)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("llama/config.json", "llama/%2e%2e/%2e%2e/evil.json"), None),
        (("llama/../../evil.json",), "rename it"),
        (("llama/a\\..\\evil.json",), "rename it"),
        ((), "has more than 10000 objects"),
        (("llama/pytorch_model.bin", "llama/config.json"), "is a pickle"),
        (("llama/model.pt",), "is a pickle"),
    ],
)
async def test_hostile_listings_write_nothing_beside_the_folder(
    keys: tuple[str, ...], words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    async with HostileStore(*keys) as store:
        store.open.set()
        folder = ObjectFolder(LLAMA, store.url, "us-east-1")
        outcome = await fetched(folder, tmp_path / "claim" / "own")
    if words is not None:
        assert isinstance(outcome, RefusedError), outcome
        assert words in str(outcome)
    paths = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]  # noqa: ASYNC240
    assert all(
        path.startswith("claim/own/") for path in paths if path not in ("claim", "claim/own")
    )


async def test_pickles_are_fetched_where_the_platform_allows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: content for name, content in a_model().items() if name != WEIGHTS}
    async with a_store(tmp_path, monkeypatch, files) as store:
        assert isinstance(await fetch_from(store, tmp_path / "own", allow_pickles=True), str)
    assert "pytorch_model.bin" in names_in(tmp_path / "own")


async def test_the_empty_objects_that_consoles_write_for_folders_are_none_of_the_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    keys = ("llama/", "llama/deep/", "llama/deep/er/", "llama/deep/er/a.json")
    async with HostileStore(*keys, size=0) as store:
        listing = await ObjectFolder(LLAMA, store.url, "us-east-1").listing()
    assert [file.name for file in listing.files] == ["deep/er/a.json"]


@pytest.mark.parametrize(
    ("endpoint", "cause"),
    [
        ("http://127.0.0.1:1", "Connection refused"),
        ("http://store.invalid", "failed to lookup address information"),
    ],
)
async def test_a_store_that_is_not_reached_has_a_cause(
    endpoint: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    outcome = await fetched(ObjectFolder(LLAMA, endpoint, "us-east-1"), tmp_path)
    assert isinstance(outcome, TransientError), outcome
    assert cause in str(outcome)


async def test_a_store_that_lists_without_an_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    page = (
        "<ListBucketResult><IsTruncated>true</IsTruncated>"
        "<NextContinuationToken>again</NextContinuationToken></ListBucketResult>"
    )
    async with HostileStore("llama/config.json", answer=(200, page)) as store:
        folder = ObjectFolder(LLAMA, store.url, "us-east-1", listing_seconds=0.3)
        outcome = await fetched(folder, tmp_path / "own")
    assert isinstance(outcome, TransientError), outcome
    assert "did not end within 0.3 s; correct spec.model.store.endpoint" in str(outcome)


async def test_a_store_without_ranges_sends_whole_files_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    async with HostileStore("llama/config.json") as store:
        store.open.set()
        folder = ObjectFolder(LLAMA, store.url, "us-east-1")
        commit = (await folder.listing()).commit
        (tmp_path / ".tessera-commit").write_text(commit)
        (tmp_path / f"config.json.{commit[:12]}.part").write_bytes(b"??")
        assert await fetched(folder, tmp_path) == commit
    assert (tmp_path / "config.json").read_bytes() == store.body


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (301, "PermanentRedirect", "must be addressed using the specified endpoint"),
        (
            400,
            "AuthorizationHeaderMalformed",
            "The authorization header is malformed; the region 'us-east-1' is wrong; expecting "
            "'eu-west-1'",
        ),
    ],
)
async def test_a_bucket_of_another_region_is_refused(
    status: int, code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As S3 answers."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    async with HostileStore("llama/config.json", answer=(status, text)) as store:
        folder = ObjectFolder(LLAMA, store.url, "us-east-1")
        outcome = await fetched(folder, tmp_path / "own")
    assert isinstance(outcome, RefusedError), outcome
    assert "in another region: correct spec.model.store.region" in str(outcome)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"endless": True}, "exceeds 4 bytes"),
        ({"size": 2**30, "body": b"{"}, "0 bytes in 0 s, of at least"),
    ],
)
async def test_answers_without_an_end_and_without_a_pace_end(
    fields: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    async with HostileStore("llama/config.json", **fields) as store:
        folder = ObjectFolder(LLAMA, store.url, "us-east-1")
        slow_seconds = 60 if "endless" in fields else 0.3
        outcome = await fetched(folder, tmp_path / "own", slow_seconds=slow_seconds)
    assert isinstance(outcome, TransientError), outcome
    assert words in str(outcome)
