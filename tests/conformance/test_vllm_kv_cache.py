"""Bytes of a token in the KV cache, and the number of blocks, as a real vLLM reports them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tessera.api.engine_options import EngineOptions
from tessera.api.model_files import ModelShape
from tessera.api.reasons import Progressing
from tessera.domain.health.memory_shortage import memory_shortage
from tessera.domain.model.config import read_config
from tessera.domain.perf import footprint
from tessera.domain.perf.engine_terms import engine_terms
from tessera.domain.picking.engine_page import engine_load
from tests.conformance import engines
from tests.conformance.configurations import CONTEXT, MODEL, Configuration

pytestmark = pytest.mark.vllm

# What `VLLM_CPU_KVCACHE_SPACE` gives in tests/conformance/engines.py.
CACHE_BYTES = 2**30
# How heads, their width and experts differ; vocabulary and token ids are those of the tiny model.
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "all-heads": {"num_attention_heads": 8, "num_key_value_heads": 8},
    "one-head": {"num_attention_heads": 8, "num_key_value_heads": 1, "num_hidden_layers": 5},
    "wide-heads": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    "experts": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}
_INFO = re.compile(r"^vllm:cache_config_info\{(.*)\} 1(\.0)?$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
# What a build says that has no such cache.
_UNSUPPORTED = re.compile(
    r"(kv.cache.dtype|block.size).{0,200}not (supported|implemented)", re.I | re.S
)


class CacheInfo(NamedTuple):
    """What an engine reports of its KV cache."""

    blocks: int
    block_size: int


def shaped_model(model: Path, folder: Path, changes: dict[str, Any]) -> ModelShape:
    """Write a model of another shape into a folder, and return its shape as services read it."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": 512, "num_hidden_layers": 4, "head_dim": 64, **changes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shape = read_config(config, None)
    assert isinstance(shape, ModelShape)
    return shape


async def reported_cache(venv: Path, folder: Path, options: EngineOptions) -> CacheInfo:
    """Return what an engine with these options reports; skip where its build has no such cache."""
    argv = [
        "--load-format=dummy",
        "--enforce-eager",
        "--dtype=bfloat16",
        f"--max-model-len={CONTEXT}",
        f"--served-model-name={MODEL}",
        "--max-num-seqs=4",
        f"--block-size={options.block_size}",
    ]
    if options.kv_cache_dtype is not None:
        argv.append(f"--kv-cache-dtype={options.kv_cache_dtype}")
    configuration = Configuration(name="kv-cache", argv=tuple(argv))
    try:
        async with engines.running(
            engines.real(venv), str(folder), configuration, folder
        ) as engine:
            page = (await engine.http.get("/metrics")).text
    except AssertionError as error:
        if _UNSUPPORTED.search(str(error)):
            pytest.skip(f"the CPU build has no such cache: {str(error)[-200:]}")
        raise
    info = _INFO.search(page)
    assert info is not None, page[:2000]
    labels = dict(_LABEL.findall(info[1]))
    cache = CacheInfo(int(labels["num_gpu_blocks"]), int(labels["block_size"]))
    load = engine_load(page.encode(), 0.0)
    assert load is not None
    assert load.kv_tokens == cache.blocks * cache.block_size
    return cache


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"blockSize": 128}) for name in SHAPES),
        ("grouped", {"blockSize": 32}),
        ("grouped", {"blockSize": 64}),
        ("grouped", {"blockSize": 128, "kvCacheDtype": "fp8"}),
        ("grouped", {"blockSize": 128, "kvCacheDtype": "fp8_e5m2"}),
    ],
)
async def test_the_cache_has_as_many_blocks_as_planned(
    name: str, options: dict[str, Any], venv: Path, model: Path, tmp_path: Path
) -> None:
    engine = EngineOptions.model_validate(options)
    terms = engine_terms(engine)
    folder = tmp_path / "model"
    shape = shaped_model(model, folder, SHAPES[name])
    token_bytes = footprint.cache_bytes_per_token(
        shape, 1, footprint.cache_bits(shape, terms.kv_bits)
    )
    reported = await reported_cache(venv, folder, engine)
    planned = CACHE_BYTES // (token_bytes * terms.block_tokens)
    print(f"\n{name} {options}: {token_bytes} bytes a token, {planned} blocks planned, {reported}")
    assert reported == CacheInfo(planned, terms.block_tokens)


def log_text(folder: Path) -> str:
    [log] = folder.glob("too-long-*.log")
    return log.read_text(encoding="utf-8", errors="replace")


async def test_a_context_beyond_the_cache_is_told_by_the_words_of_the_log(
    venv: Path, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shaped_model(model, folder, {**SHAPES["all-heads"], "max_position_embeddings": 400_000})
    argv = ("--load-format=dummy", "--enforce-eager", "--dtype=bfloat16", "--max-model-len=300000")
    configuration = Configuration(name="too-long", argv=(*argv, "--block-size=128"))
    with pytest.raises(AssertionError, match="Engine core initialization failed"):
        async with engines.running(engines.real(venv), str(folder), configuration, tmp_path):
            pass
    assert memory_shortage(log_text(tmp_path)) is Progressing.KV_CACHE_OUT_OF_MEMORY
