"""`tessera-batch shape` and `tessera-batch fetch` against a hub, and against a volume."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tessera.batch_runner.errors import RefusedError, TransientError
from tessera.batch_runner.model.hub import open_repository
from tessera.batch_runner.model.jobs import fetch, shape
from tessera.batch_runner.model.sources import Chunk, SourceFile, SourceListing
from world.hub import COMMIT, TOKEN, Hub, a_model, serve_hub
from world.slots import free_port
from world.testing import eventually

OWN = "hf://acme/own"


def a_hub(**fields: Any) -> Hub:
    return Hub(repositories={"acme/own": fields.pop("files", a_model())}, **fields)


async def shape_at(hub: Hub, uri: str = OWN, token: str | None = None) -> tuple[int, Any]:
    async with serve_hub(hub):
        return await shape(uri, None, open_repository(hub.url, token, uri))


async def fetch_from(
    hub: Hub, into: Path, token: str | None = None, port: int | None = None
) -> tuple[int, Any]:
    repository = open_repository(hub.url, token, OWN)
    return await fetch(repository, into, host="127.0.0.1", port=port or free_port())


async def test_the_shape_of_an_unknown_model_is_read_at_the_hub() -> None:
    code, report = await shape_at(a_hub())
    assert (code, report["ok"], report["commit"]) == (0, True, COMMIT)
    assert report["shape"]["layers"] == 12
    assert report["shape"]["headDim"] == 64


async def test_the_index_of_large_models_is_read_too() -> None:
    _, small = await shape_at(a_hub())
    weights = small["shape"]["parameters"] + 1000
    index = json.dumps({"metadata": {"total_size": 2 * weights}}).encode()
    hub = a_hub(files={**a_model(), "model.safetensors.index.json": index})
    _, report = await shape_at(hub)
    assert report["shape"]["parameters"] == weights


MODELOPT = {
    "producer": {"name": "modelopt"},
    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
}


async def test_a_quantization_beside_the_configuration_is_read_at_the_hub_and_on_a_volume(
    tmp_path: Path,
) -> None:
    files = {**a_model(), "hf_quant_config.json": json.dumps(MODELOPT).encode()}
    for name in ("config.json", "hf_quant_config.json"):
        (tmp_path / name).write_bytes(files[name])
    hub = open_repository(None, None, "")
    for _, report in (
        await shape_at(a_hub(files=files)),
        await shape("pvc://weights/own", tmp_path, hub),
    ):
        assert report["shape"]["quantization"] == "fp8", report
        assert report["shape"]["kvCacheBits"] == 8


@pytest.mark.parametrize("name", ["hf_quant_config.json", "model.safetensors.index.json"])
async def test_a_broken_file_beside_the_configuration_is_reported_and_not_taken_as_absent(
    name: str, tmp_path: Path
) -> None:
    files = {**a_model(), name: b"{not json"}
    for each in ("config.json", name):
        (tmp_path / each).write_bytes(files[each])
    hub = open_repository(None, None, "")
    for code, report in (
        await shape_at(a_hub(files=files)),
        await shape("pvc://weights/own", tmp_path, hub),
    ):
        assert code == 3
        assert name in report["message"]


async def test_what_a_model_makes_of_images_is_read_at_the_hub_and_on_a_volume(
    tmp_path: Path,
) -> None:
    _, plain = await shape_at(a_hub())
    # Qwen has biases besides.
    index = {"metadata": {"total_size": 2 * (plain["shape"]["parameters"] + 20_000)}}
    vision = {"depth": 1, "patch_size": 14, "spatial_merge_size": 2}
    files = {
        **a_model(model_type="qwen2_5_vl", vision_config=vision),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "preprocessor_config.json": json.dumps({"max_pixels": 12_845_056}).encode(),
    }
    for name in ("config.json", "model.safetensors.index.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes(files[name])
    hub = open_repository(None, None, "")
    for _, report in (
        await shape_at(a_hub(files=files)),
        await shape("pvc://weights/own", tmp_path, hub),
    ):
        assert report["shape"]["image"] == {"maxTokens": 16_384, "pixelsPerSide": 28}, report
    assert "image" not in plain["shape"]


EMBEDDER = {
    "modules.json": [{"type": "sentence_transformers.models.Pooling"}],
    "sentence_bert_config.json": {"max_seq_length": 256},
}


def an_embedder() -> dict[str, bytes]:
    files = {name: json.dumps(content).encode() for name, content in EMBEDDER.items()}
    return {**a_model(), **files}


async def test_layers_of_sentence_transformers_are_read_at_the_hub_and_on_a_volume(
    tmp_path: Path,
) -> None:
    for name, content in an_embedder().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    hub = open_repository(None, None, "")
    for code, report in (
        await shape_at(a_hub(files=an_embedder())),
        await shape("pvc://weights/own", tmp_path, hub),
    ):
        assert code == 0, report
        assert report["shape"]["pooling"] == "Embed"
        assert report["shape"]["maxPositionEmbeddings"] == 256
    assert "pooling" not in (await shape_at(a_hub()))[1]["shape"]


class Unlisted:
    """A source that has files, and no listing of them."""

    def __init__(self, **config: object) -> None:
        self._config = json.loads(a_model()["config.json"]) | config

    async def listing(self) -> SourceListing:
        raise TransientError("no listing")

    async def read_json(self, name: str) -> tuple[object, str]:
        if name != "config.json":
            raise RefusedError("not found")
        return self._config, "commit"

    def read_chunks(self, commit: str, file: SourceFile, offset: int) -> AsyncGenerator[Chunk]:
        raise NotImplementedError


async def test_sizes_of_files_are_waited_for_only_where_nothing_else_has_them() -> None:
    code, report = await shape(OWN, None, nullcontext(Unlisted()))
    assert (code, report["shape"]["layers"]) == (0, 12)
    parts = Unlisted(vision_config={"hidden_size": 64})
    code, report = await shape(OWN, None, nullcontext(parts))
    assert (code, report["message"]) == (1, "no listing")


async def test_a_gated_model_is_read_with_the_token_and_refused_without() -> None:
    assert (await shape_at(a_hub(gated=frozenset({"acme/own"})), token=TOKEN))[0] == 0
    code, report = await shape_at(a_hub(gated=frozenset({"acme/own"})))
    assert code == 3
    assert "401 Client Error" in report["message"]
    assert "Access to model acme/own is restricted" in report["message"]


async def test_a_config_that_is_not_understood_is_reported() -> None:
    code, report = await shape_at(a_hub(files=a_model(mamba_d_state=16)))
    assert (code, report["ok"]) == (3, False)
    assert "state-space layers" in report["message"]


async def test_a_config_without_an_end_is_reported() -> None:
    code, report = await shape_at(a_hub(files={"config.json": bytes(2**25 + 1)}))
    assert code == 3
    assert "config.json exceeds 33554432 bytes" in report["message"]


async def test_a_hub_that_does_not_answer_may_do_so_later() -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    code, report = await shape(OWN, None, open_repository(closed, None, OWN))
    assert code == 1
    assert "no response from the hub" in report["message"]


async def test_files_on_a_volume_are_read_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(a_model()["config.json"])
    hub = open_repository(None, None, "")
    code, report = await shape("pvc://weights/own", tmp_path, hub)
    assert (code, report["shape"]["kvHeads"]) == (0, 4)
    code, report = await shape("pvc://weights/own", tmp_path / "none", hub)
    assert code == 3
    assert "correct spec.model.uri" in report["message"]


async def test_a_model_is_fetched_whole_and_without_what_engines_do_not_read(
    tmp_path: Path,
) -> None:
    async with serve_hub(a_hub()) as hub:
        code, report = await fetch_from(hub, tmp_path / "own")
    files = {str(path.relative_to(tmp_path / "own")) for path in (tmp_path / "own").rglob("*.*")}
    assert code == 0, report
    assert files == {
        ".tessera-commit",
        ".tessera-complete",
        ".tessera-lock",
        "config.json",
        "model.safetensors",
        "tokenizer/tokenizer.json",
    }
    assert (tmp_path / "own/model.safetensors").read_bytes() == a_model()["model.safetensors"]
    assert report["bytes"] == sum(
        len(a_model()[name]) for name in files if not name.startswith(".tessera")
    )


def two_sets() -> dict[str, bytes]:
    shards = {"model-1.safetensors": bytes(500), "model-2.safetensors": bytes(700)}
    index = {"weight_map": {f"weight.{name}": name for name in shards}}
    others = {name: content for name, content in a_model().items() if "model" not in name}
    return {
        **others,
        **shards,
        "consolidated.safetensors": bytes(1200),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }


async def test_of_two_sets_of_weights_one_is_fetched_and_has_room(tmp_path: Path) -> None:
    _, read = await shape_at(a_hub(files=two_sets()))
    async with serve_hub(a_hub(files=two_sets())) as hub:
        code, report = await fetch_from(hub, tmp_path)
    assert code == 0, report
    assert (tmp_path / "model-2.safetensors").stat().st_size == 700
    assert not (tmp_path / "consolidated.safetensors").exists()
    assert report["bytes"] == read["shape"]["fileBytes"]


async def test_what_was_fetched_is_not_fetched_again(tmp_path: Path) -> None:
    async with serve_hub(a_hub()) as hub:
        await fetch_from(hub, tmp_path)
        hub.requested_paths.clear()
        code, report = await fetch_from(hub, tmp_path)
    assert code == 0, report
    assert hub.requested_paths == []


async def test_an_interrupted_download_is_resumed(tmp_path: Path) -> None:
    weights = a_model()["model.safetensors"]
    (tmp_path / ".tessera-commit").write_text(COMMIT)
    (tmp_path / f"model.safetensors.{COMMIT[:12]}.part").write_bytes(weights[:1000])
    async with serve_hub(a_hub()) as hub:
        code, report = await fetch_from(hub, tmp_path)
    assert code == 0, report
    assert (tmp_path / "model.safetensors").read_bytes() == weights


async def test_another_commit_of_the_same_size_replaces_the_previous(
    tmp_path: Path,
) -> None:
    (tmp_path / ".tessera-commit").write_text("another")
    (tmp_path / "model.safetensors").write_bytes(bytes(len(a_model()["model.safetensors"])))
    async with serve_hub(a_hub()) as hub:
        await fetch_from(hub, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == a_model()["model.safetensors"]


async def test_the_token_stays_at_the_hub_when_weights_lie_elsewhere(tmp_path: Path) -> None:
    hub, store = a_hub(gated=frozenset({"acme/own"})), a_hub()
    async with serve_hub(hub), serve_hub(store):
        hub.store = store.url
        code, report = await fetch_from(hub, tmp_path, token=TOKEN)
    assert code == 0, report
    assert store.requested_paths == [f"/acme/own/resolve/{COMMIT}/model.safetensors"]
    assert (hub.tokens, store.tokens) == ({f"Bearer {TOKEN}"}, {""})
    assert (tmp_path / "model.safetensors").read_bytes() == a_model()["model.safetensors"]


async def test_progress_is_reported_while_files_are_fetched(tmp_path: Path) -> None:
    hub, port = a_hub(), free_port()
    hub.open.clear()
    total = sum(len(a_model()[name]) for name in ("config.json", "model.safetensors")) + 2
    async with serve_hub(hub):
        fetching = asyncio.create_task(fetch_from(hub, tmp_path, port=port))

        async def progress_is_reported() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /progress HTTP/1.0\r\n\r\n")
            seen = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
            writer.close()
            assert seen["done"] > total // 3, seen
            assert seen["total"] == total

        await eventually(progress_is_reported, within=90)
        hub.open.set()
        code, _ = await fetching
    assert code == 0


async def test_a_repository_cannot_write_beside_its_folder(tmp_path: Path) -> None:
    hub = a_hub(files={**a_model(), "../evil.json": b"{}"})
    async with serve_hub(hub):
        code, report = await fetch_from(hub, tmp_path / "own")
    assert code == 3
    assert "not a path within the folder" in report["message"]
    assert not (tmp_path / "evil.json").exists()


async def test_a_full_or_forbidden_volume_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with serve_hub(a_hub()) as hub:
        code, report = await fetch_from(hub, tmp_path / "file")
    assert code == 3
    assert "cannot write" in report["message"]


@pytest.mark.parametrize("listing", [b"[]", b"{}", b"no"])
async def test_a_server_that_is_no_hub_is_reported(tmp_path: Path, listing: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + listing)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        code, report = await fetch_from(Hub(repositories={}, url=f"http://{host}:{port}"), tmp_path)
    assert code in (1, 3)
    assert "http://" in report["message"]
