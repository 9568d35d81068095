"""Loaders of weights: what the engine is told, what the pod requests, and what is refused."""

import json
from typing import Any

import pytest

from tessera.api.engine_options import Loader
from tessera.domain.placement.checks import check
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.facts import version_facts
from tessera.domain.vllm.loaders import loader_arguments, loader_host_mib
from tests.builders import LARGE, a_spec

PATH = "/models/llama"
CLAIM = {
    "uri": "pvc://weights/llama",
    "shape": {
        "parameters": 8_000_000_000,
        "layers": 32,
        "attentionHeads": 32,
        "kvHeads": 8,
        "headDim": 128,
        "maxPositionEmbeddings": 8192,
    },
}


@pytest.mark.parametrize(
    ("loader", "devices", "load_format", "config", "host_mib"),
    [
        ({"type": "Safetensors"}, 2, "safetensors", None, 0),
        ({"type": "RunaiStreamer"}, 1, "runai_streamer", {"memory_limit": 4 * 2**30}, 4096),
        (
            {"type": "RunaiStreamer", "concurrency": 32, "buffer": "8Gi"},
            4,
            "runai_streamer",
            {"concurrency": 32, "memory_limit": 8 * 2**30},
            4 * 8192,
        ),
        ({"type": "InstantTensor"}, 2, "instanttensor", None, 2048),
        ({"type": "FastSafetensors"}, 1, "fastsafetensors", None, 1024),
        (
            {"type": "Tensorizer", "concurrency": 4},
            1,
            "tensorizer",
            {"tensorizer_uri": f"{PATH}/model.tensors", "num_readers": 4},
            1024,
        ),
        (
            {"type": "Tensorizer"},
            2,
            "tensorizer",
            {"tensorizer_uri": f"{PATH}/model-rank-%03d.tensors"},
            2048,
        ),
        ({"type": "ShardedState"}, 8, "sharded_state", None, 0),
        ({"type": "Dummy"}, 1, "dummy", None, 0),
    ],
)
def test_a_loader_is_named_to_the_engine_and_its_buffers_are_counted(
    loader: dict[str, Any], devices: int, load_format: str, config: object, host_mib: int
) -> None:
    typed, facts = Loader.model_validate(loader), version_facts("0.32.0")
    assert facts is not None
    arguments = loader_arguments(typed, PATH, devices)
    assert not vllm_flags.check(arguments, facts)
    values = vllm_flags.parse(arguments, facts)
    assert values["load_format"] == load_format
    assert values.get("model_loader_extra_config") == config
    assert arguments == [argument.replace(" ", "") for argument in arguments]
    assert loader_host_mib(typed, devices) == host_mib


def test_without_a_loader_nothing_is_added() -> None:
    assert loader_host_mib(None, 8) == 0


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"engine": {"loader": {"type": "InstantTensor", "concurrency": 4}}},
            "spec.engine.loader.concurrency: 4 has no effect, since InstantTensor has no such "
            "argument; remove it, or set type to RunaiStreamer or Tensorizer",
        ),
        (
            {"engine": {"loader": {"type": "Tensorizer", "buffer": "4Gi"}}, "model": CLAIM},
            "spec.engine.loader.buffer: 4Gi has no effect, since Tensorizer has no such argument; "
            "remove it, or set type to RunaiStreamer",
        ),
        (
            {
                "engine": {"loader": {"type": "ShardedState"}, "tensorParallelSize": 1},
                "precision": {"variants": [{"precision": "fp8"}]},
            },
            "spec.engine.loader.type: ShardedState reads weights as they were saved, and fp8 "
            "without a uri in spec.precision.variants is made while loading; name saved files in "
            "its uri, remove it, or set another type",
        ),
        (
            {
                "engine": {"loader": {"type": "ShardedState"}, "tensorParallelSize": 1},
                "precision": {"variants": [{"precision": "awq-int4", "uri": "hf://acme/awq"}]},
            },
            None,
        ),
        (
            {
                "engine": {"loader": {"type": "Tensorizer"}},
                "model": CLAIM,
                "precision": {"variants": [{"precision": "fp8", "uri": "pvc://weights/fp8"}]},
            },
            None,
        ),
        (
            {
                "engine": {"loader": {"type": "Tensorizer"}},
                "model": CLAIM,
                "precision": {"variants": [{"precision": "fp8", "uri": "hf://acme/fp8"}]},
            },
            "spec.engine.loader.type: Tensorizer reads model.tensors at a path, and hf://acme/fp8 "
            "has none; save the model with vLLM's tensorizer to a claim (pvc://) or an image "
            "(oci://), or set another type",
        ),
        (
            {
                "engine": {
                    "loader": {"type": "Tensorizer"},
                    "speculation": {"method": "DraftModel", "model": {"uri": LARGE}},
                },
                "model": CLAIM,
            },
            "spec.engine.loader.type: Tensorizer would read the model's own model.tensors for the "
            "draft of spec.engine.speculation as well; use the method NGram, or set another type",
        ),
        (
            {
                "engine": {"loader": {"type": "RunaiStreamer", "buffer": "1Gi"}},
                "model": {"uri": LARGE},
            },
            "spec.engine.loader.buffer: 1Gi is less than the model's embedding of 2.0 GiB, which "
            "is read at once; set 2Gi",
        ),
        (
            {"engine": {"loader": {"type": "ShardedState"}}},
            "spec.engine.loader.type: ShardedState reads files that were saved for a certain "
            "number of GPUs; set spec.engine.tensorParallelSize to it",
        ),
        ({"engine": {"loader": {"type": "Tensorizer"}}, "model": CLAIM}, None),
        ({"engine": {"loader": {"type": "RunaiStreamer"}}, "model": CLAIM}, None),
        ({"engine": {"loader": {"type": "InstantTensor"}}}, None),
    ],
)
def test_a_loader_that_cannot_read_the_model_is_refused_with_what_to_do(
    spec: dict[str, Any], sentence: str | None
) -> None:
    sentences = [denial.sentence for denial in check(a_spec(**spec), {})]
    assert sentences == ([] if sentence is None else [sentence])


@pytest.mark.parametrize(
    "argument",
    ["--load-format=dummy", "--model-loader-extra-config=" + json.dumps({"concurrency": 4})],
)
def test_flags_of_loaders_are_refused_with_the_field(argument: str) -> None:
    [denial] = check(a_spec(engine={"extraArgs": [argument]}), {})
    assert "it is set by spec.engine.loader" in denial.sentence
