"""Which set of weights is downloaded and loaded, and how many bytes it has."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.batch_runner.errors import RefusedError
from tessera.batch_runner.model.sources import SourceFile, needed_files
from tessera.domain.model.config import CONFIG, read_files
from tessera.domain.model.weight_files import INDEX, indexed_bytes, unloaded_files
from tests.domain.model.test_config import config_of, error_message, expect_shape

SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
QUARTERS = [f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)]
BF16 = ["model.bf16-00001-of-00001.safetensors"]
WHOLE = "consolidated.safetensors"
OTHER, DENSE = "fp8/model-00001-of-00001.safetensors", "2_Dense/model.safetensors"
# mistralai/Mistral-7B-Instruct-v0.3.
MISTRAL = {
    "config.json": 600,
    WHOLE: 14_496_000_000,
    SHARDS[0]: 4_949_000_000,
    SHARDS[1]: 4_999_000_000,
    SHARDS[2]: 4_546_000_000,
    INDEX: 24_000,
    "params.json": 200,
    "tokenizer.json": 1_960_000,
}
NAMED = {"weight_map": {f"layer.{shard}": shard for shard in SHARDS}}


@pytest.mark.parametrize("index", [None, NAMED])
def test_of_two_sets_of_weights_one_is_downloaded(index: object) -> None:
    files = [SourceFile(name, size) for name, size in MISTRAL.items()]
    needed = needed_files(files, allow_pickles=False, index=index)
    assert {file.name for file in needed} == MISTRAL.keys() - {WHOLE}
    assert round(sum(file.size or 0 for file in needed) / 2**30, 1) == 13.5


@pytest.mark.parametrize(
    ("names", "index", "unloaded"),
    [
        ([WHOLE], None, set()),
        ([WHOLE, "consolidated.safetensors.index.json"], None, set()),
        ([WHOLE, "model.safetensors"], None, {WHOLE, "consolidated.safetensors.index.json"}),
        (["model.safetensors", *SHARDS], NAMED, {"model.safetensors"}),
        (["model.safetensors", *SHARDS], None, set(SHARDS)),
        (["model.safetensors", *SHARDS[:2]], None, set(SHARDS[:2])),
        ([*SHARDS, *QUARTERS], None, set(QUARTERS)),
        ([*SHARDS[:2], *QUARTERS], None, set(SHARDS[:2])),
        ([*SHARDS, "mtp.safetensors"], None, set()),
        (["model.safetensors", "adapter_model.safetensors"], None, {"adapter_model.safetensors"}),
        (["adapter_model.safetensors"], None, set()),
        (["model.safetensors", "model.fp16.safetensors"], None, {"model.fp16.safetensors"}),
        ([*SHARDS, *BF16], None, set(BF16)),
        (["model.fp16.safetensors"], None, set()),
        ([*SHARDS, "2_Dense/model.safetensors", "lora/adapter_model.safetensors"], NAMED, set()),
        ([*SHARDS, OTHER, "fp8/config.json"], NAMED, {OTHER}),
        (["model.safetensors", OTHER, "fp8/config.json"], None, {OTHER}),
        ([OTHER, "fp8/config.json"], None, set()),
        (["model.safetensors", DENSE, "2_Dense/config.json", "modules.json"], None, set()),
        (["model.safetensors"], NAMED, set()),
        (["model.safetensors"], {"weight_map": {"a": 3, "b": None}}, set()),
        (["model.safetensors"], [], set()),
    ],
)
def test_the_set_that_the_index_names_is_loaded(
    names: list[str], index: object, unloaded: set[str]
) -> None:
    assert unloaded_files(names, index) == unloaded


@pytest.mark.parametrize("allow_pickles", [False, True])
@pytest.mark.parametrize("name", ["model-q4_k_m.gguf", "onnx/model.onnx", "tf_model.h5"])
def test_weights_of_other_engines_alone_are_no_model(name: str, *, allow_pickles: bool) -> None:
    files = [SourceFile(each, 1) for each in ("config.json", "README.md", name)]
    with pytest.raises(RefusedError, match=f"{name} .1 such file. has weights of a format"):
        needed_files(files, allow_pickles=allow_pickles)
    beside = needed_files([*files, SourceFile("model.safetensors", 1)], allow_pickles=allow_pickles)
    assert [file.name for file in beside] == ["config.json", "model.safetensors"]


@given(
    st.sets(st.sampled_from([*SHARDS, WHOLE, "model.safetensors", "a.json", "x/y.safetensors"])),
    st.sets(st.sampled_from([*SHARDS, WHOLE, "model.safetensors"])),
)
def test_weights_are_never_left_out_altogether(names: set[str], indexed: set[str]) -> None:
    weights = {name for name in names if name.endswith(".safetensors")}
    unloaded = unloaded_files(names, {"weight_map": {name: name for name in indexed}})
    assert not weights or weights - unloaded
    assert "a.json" not in unloaded


@pytest.mark.parametrize(
    ("names", "index", "missing"),
    [
        ([*SHARDS, *QUARTERS[:3]], None, None),
        ([SHARDS[0], SHARDS[2], "mtp.safetensors"], None, SHARDS[1]),
        ([*QUARTERS[1:], *SHARDS[:1]], None, QUARTERS[0]),
        (SHARDS[:2], NAMED, SHARDS[2]),
        ([WHOLE, SHARDS[0]], NAMED, SHARDS[1]),
        (["model.safetensors"], NAMED, None),
        (["x-00000-of-00002.safetensors", "x-00001-of-00002.safetensors"], None, None),
        (["x-00001-of-99999.safetensors"], None, "x-00002-of-99999.safetensors"),
    ],
)
def test_weights_that_are_not_whole_are_refused_by_the_first_missing_file(
    names: list[str], index: object, missing: str | None
) -> None:
    files = [SourceFile(name, 100) for name in names]
    if missing is None:
        needed_files(files, allow_pickles=False, index=index)
        return
    with pytest.raises(RefusedError, match=f"^{missing} is missing"):
        needed_files(files, allow_pickles=False, index=index)


@pytest.mark.parametrize("size", [10**13, 10**18, 10**400])
def test_files_of_any_size_that_a_source_says_are_refused_in_words(size: int) -> None:
    files = [SourceFile("config.json", 1), SourceFile("model.safetensors", size)]
    with pytest.raises(RefusedError, match=r"TB exceed the limit of 8\.8 TB") as refusal:
        needed_files(files, allow_pickles=False)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("size", [0, -5])
def test_weights_of_no_bytes_are_refused(size: int) -> None:
    with pytest.raises(RefusedError, match=f"model.safetensors has {size} bytes"):
        needed_files([SourceFile("model.safetensors", size)], allow_pickles=False)


def test_sizes_of_files_count_where_the_index_contradicts_them() -> None:
    index = NAMED | {"metadata": {"total_size": 28_992_000_000}}
    assert indexed_bytes(index, MISTRAL) == 14_494_000_000
    assert indexed_bytes(index, {}) == 28_992_000_000
    odd = (True, 0, -1, 10**30, 10**400, 1e999, -1e999, float("nan"), "16060522496", None)
    for total in odd:
        assert indexed_bytes(NAMED | {"metadata": {"total_size": total}}, MISTRAL) is None
    exact = NAMED | {"metadata": {"total_size": 14_493_900_000}}
    assert indexed_bytes(exact, MISTRAL) == 14_493_900_000


def test_the_bytes_of_all_downloaded_files_are_in_the_shape() -> None:
    files = {CONFIG: config_of("mistralai/Mistral-7B-Instruct-v0.3")}
    sizes = {name: size for name, size in MISTRAL.items() if name != WHOLE}
    assert expect_shape(read_files(files.get, sizes)).file_bytes == sum(sizes.values())
    assert expect_shape(read_files(files.get)).file_bytes is None


def test_a_model_of_several_parts_in_one_file_has_the_size_of_its_file() -> None:
    config: dict[str, Any] = {"vision_config": {}, "text_config": config_of("Qwen/Qwen3-8B")}
    files = {CONFIG: config}
    shape = expect_shape(read_files(files.get, {"model.safetensors": 17_000_000_000}))
    assert shape.parameters == 8_500_000_000
    assert "no index" in error_message(read_files(files.get))
