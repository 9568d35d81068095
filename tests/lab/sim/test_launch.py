import json
from pathlib import Path

import pytest

from tessera_lab.sim.errors import EngineExit
from tessera_lab.sim.launch.engine_config import EngineConfig, load_config
from tessera_lab.sim.launch.engine_speed import as_json
from tests.builders import a_spec
from tests.resources.engine_objects import container

MEDIUM = "meta-llama/Llama-3.1-8B-Instruct"
A100 = "NVIDIA-A100-SXM4-80GB"
H100 = "NVIDIA-H100-80GB-HBM3"
# The numbers of an 8B model, by the names that model files use.
CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}


def launch(*argv: str, device: str = A100, **env: str) -> EngineConfig:
    return load_config(argv, {"TESSERA_SIM_DEVICE": device, **env})


def test_the_environment_names_the_hardware() -> None:
    slice_config = launch(MEDIUM, "--max-model-len", "4096", device=f"{A100}/3g.40gb")
    gpu_config = launch(MEDIUM, "-tp", "2", device=H100, TESSERA_SIM_DEVICES="8")
    assert (slice_config.hardware.profile, slice_config.hardware.devices) == ("3g.40gb", 1)
    assert (gpu_config.hardware.product, gpu_config.hardware.devices) == (H100, 2)
    assert load_config([MEDIUM], {}).hardware.product == A100


def test_memory_and_speed_are_those_of_the_planner() -> None:
    config = launch(MEDIUM)
    assert config.kv_cache.tokens == 27_103 * 16
    assert config.speed.weights == pytest.approx(10.6e-3, rel=0.01)


@pytest.mark.parametrize(
    ("argv", "device", "tokens", "sequences"),
    [
        ([], A100, 2048, 256),
        ([], H100, 8192, 1024),
        ([], f"{H100}/3g.40gb", 2048, 256),
        (["--max-num-batched-tokens", "128"], A100, 128, 128),
        (["--max-num-seqs", "32", "--max-num-batched-tokens", "1k"], A100, 1000, 32),
    ],
)
def test_batch_limits_default_as_the_engine_chooses_them(
    argv: list[str], device: str, tokens: int, sequences: int
) -> None:
    limits = launch(MEDIUM, "--max-model-len", "4096", *argv, device=device).limits
    assert (limits.max_num_batched_tokens, limits.max_num_seqs) == (tokens, sequences)


@pytest.mark.parametrize(
    ("argv", "blocks"),
    [
        (["--num-gpu-blocks-override", "600"], 600),
        (["--kv-cache-memory-bytes", "1G"], 2**30 // (131_072 * 16)),
        (["--block-size", "32", "--num-gpu-blocks-override", "300"], 300),
    ],
)
def test_the_cache_can_be_set_by_hand(argv: list[str], blocks: int) -> None:
    config = launch(MEDIUM, "--max-model-len", "4096", *argv)
    assert config.kv_cache.blocks == config.limits.blocks == blocks


def test_the_model_length_is_the_models_own_or_what_fits() -> None:
    whole = launch(MEDIUM)
    fitted = launch(MEDIUM, "--max-model-len", "auto", device=f"{A100}/2g.20gb")
    assert whole.limits.max_model_len == 131_072
    assert fitted.limits.max_model_len == fitted.kv_cache.tokens - 16


def test_the_shape_of_a_model_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    shape = launch(str(tmp_path)).shape
    assert shape.parameters == pytest.approx(8.03e9, rel=0.001)
    assert (shape.layers, shape.kv_heads, shape.head_dim) == (32, 8, 128)


def test_the_index_of_the_weights_counts_better_than_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 16_400_000_000}}))
    assert launch(str(tmp_path)).shape.parameters == 8_200_000_000


def test_an_unknown_model_gets_a_small_shape_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert launch("nobody/knows").shape.parameters == pytest.approx(1.2e9, rel=0.1)
    assert "nobody/knows" in caplog.text


def test_eight_bit_weights_leave_more_memory_and_read_faster() -> None:
    plain, quantised = launch(MEDIUM), launch(MEDIUM, "--quantization", "fp8")
    assert quantised.kv_cache.blocks > plain.kv_cache.blocks
    # The output layer keeps its 16 bits.
    assert quantised.speed.weights == pytest.approx(plain.speed.weights * 0.535, rel=0.001)


def test_a_cache_of_eight_bits_holds_twice_the_blocks_and_is_read_in_half_the_time() -> None:
    plain, narrow = launch(MEDIUM), launch(MEDIUM, "--kv-cache-dtype", "fp8")
    assert narrow.kv_cache.bytes_per_token * 2 == plain.kv_cache.bytes_per_token
    assert narrow.kv_cache.blocks == pytest.approx(2 * plain.kv_cache.blocks, abs=1)
    assert narrow.speed.kv_token * 2 == plain.speed.kv_token


def test_without_chunks_a_step_has_to_hold_the_longest_prompt() -> None:
    argv = [MEDIUM, "--max-model-len", "4096", "--no-enable-chunked-prefill"]
    assert not launch(*argv, "--max-num-batched-tokens", "4096").limits.chunked_prefill
    with pytest.raises(EngineExit, match="is smaller than max_model_len"):
        launch(*argv, "--max-num-batched-tokens", "2048")


def test_the_model_may_be_given_as_a_flag_and_flags_without_a_meaning_here_are_taken() -> None:
    config = launch("--model", MEDIUM, "--enforce-eager", "--dtype", "bfloat16", "--seed", "7")
    assert config.names == (MEDIUM,)


@pytest.mark.parametrize(
    ("argv", "env", "code", "message"),
    [
        (["--scheduling-policy", "random"], {}, 2, "expected one of fcfs, priority"),
        (["--task", "generate", "--nope"], {}, 2, "unrecognized arguments: --task --nope"),
        (["another/model"], {}, 2, "unrecognized arguments: another/model"),
        (["--shutdown-timeout", "-1"], {}, 1, "at least 0"),
        (["--max-num-seqs", "64", "--max-num-batched-tokens", "32"], {}, 1, "lower the other"),
        (["--max-model-len", "1M"], {}, 1, "131072"),
        (["--num-gpu-blocks-override", "100"], {}, 1, "maximum model length is 1584"),
        (["--gpu-memory-utilization", "0.2"], {}, 1, "--gpu-memory-utilization"),
        (["-tp", "4"], {"TESSERA_SIM_DEVICES": "2"}, 1, "World size"),
        (["-tp", "2"], {"TESSERA_SIM_DEVICE": f"{A100}/3g.40gb"}, 1, "cannot work together"),
        ([], {"TESSERA_SIM_DEVICE": f"{A100}/1g.10gb"}, 1, "15.0 GiB"),
        ([], {"TESSERA_SIM_DEVICE": "Abacus"}, 1, "known products"),
        ([], {"TESSERA_SIM_DEVICE": f"{A100}/9g.90gb"}, 1, "9g.90gb"),
        ([], {"TESSERA_SIM_START_SECONDS": "soon"}, 1, "TESSERA_SIM_START_SECONDS=soon"),
    ],
)
def test_what_an_engine_would_not_start_with_exits_and_says_why(
    argv: list[str], env: dict[str, str], code: int, message: str
) -> None:
    with pytest.raises(EngineExit, match=message) as end:
        load_config([MEDIUM, *argv], env)
    assert end.value.code == code


def test_a_measured_speed_replaces_the_predicted_one() -> None:
    config = launch(MEDIUM, TESSERA_SIM_SPEED='{"kvToken": 1e-6, "fixed": 0.004, "sequence": 0}')
    assert config.speed.seconds(decoding=3, kv_tokens=1000) == pytest.approx(0.005)
    reloaded = launch(MEDIUM, TESSERA_SIM_SPEED=as_json(config.speed))
    assert reloaded.speed == config.speed
    assert reloaded.kv_cache == config.kv_cache == launch(MEDIUM).kv_cache


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "no JSON"),
        ("[0.01]", "not an object"),
        ('{"fixd": 0.01}', "fixd: not known; known are weights"),
        ('{"fixed": -1}', "fixed: -1 is not a number of at least 0"),
        ('{"fixed": NaN}', "fixed: nan is not a number of at least 0"),
        ('{"fixed": "4 ms"}', "fixed: 4 ms is not a number of at least 0"),
        ('{"fixed": true}', "fixed: True is not a number of at least 0"),
        ('{"fixed": 1, "windowedToken": 1e-8}', "window: missing"),
        ("{}", "would take no time"),
    ],
)
def test_a_speed_that_is_none_exits_and_names_the_variable_and_its_form(
    text: str, message: str
) -> None:
    with pytest.raises(EngineExit, match="TESSERA_SIM_SPEED") as end:
        launch(MEDIUM, TESSERA_SIM_SPEED=text)
    assert message in str(end.value)
    assert 'Give seconds, such as {"fixed":' in str(end.value)


@pytest.mark.parametrize("text", ['{"parameters": 0}', "shape"])
def test_a_shape_that_is_none_exits_and_names_the_variable(text: str) -> None:
    with pytest.raises(EngineExit, match="TESSERA_SIM_SHAPE"):
        launch("mine", TESSERA_SIM_SHAPE=text)


def test_a_folder_without_a_language_model_exits_and_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineExit, match=r"config\.json"):
        launch(str(tmp_path))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
QWEN = "Qwen/Qwen2.5-7B-Instruct"


def test_the_engine_of_a_service_with_a_longer_context_starts() -> None:
    overrides = json.dumps({"rope_scaling": YARN})
    spec = a_spec(
        f"hf://{QWEN}",
        context={"maxModelLen": 131_072},
        engine={"extraArgs": [f"--hf-overrides={overrides}"]},
    )
    engine = container(spec)
    env = {variable["name"]: variable["value"] for variable in engine["env"] if "value" in variable}
    device = {"TESSERA_SIM_DEVICE": H100}
    assert load_config(engine["args"], env | device).limits.max_model_len == 131_072
    with pytest.raises(EngineExit, match="beyond what the model was made for"):
        load_config(engine["args"], device)


def test_an_eager_engine_has_the_memory_of_the_plan() -> None:
    more = launch(MEDIUM, "--enforce-eager").kv_cache.tokens - launch(MEDIUM).kv_cache.tokens
    assert more == pytest.approx(51 * 6 * 0.95 * 2**20 / 131_072, abs=16)


def test_an_engine_of_the_language_alone_has_the_memory_of_the_plan() -> None:
    model, length = "google/gemma-3-4b-it", ("--max-model-len", "8192")
    more = launch(model, *length, "--language-model-only").kv_cache
    whole = launch(model, *length).kv_cache
    saved = (more.tokens - whole.tokens) * whole.bytes_per_token
    assert saved == pytest.approx(0.95 * 2 * 419_816_304, rel=0.01)
