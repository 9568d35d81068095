"""`tessera size`: tables, JSON, and what cannot be sized."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tessera.api.inference_service import Slo
from tessera.cli.errors import CommandError
from tessera.cli.main import main
from tessera.cli.size.arguments import SIZE
from tessera.cli.size.command import build_report
from tessera.cli.size.report import SizeReport, output
from tessera.cli.size.request import size_request
from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.perf.engine_terms import engine_terms
from tessera.domain.placement.candidates import hardware_candidates
from tessera.domain.placement.checks import check
from tessera.domain.sizing.table import SizeVerdict
from tests.builders import a_node, a_pool, a_service, a_snapshot, a_spec, plan_of

DAY = date(2026, 11, 20)
B8 = "meta-llama/Llama-3.1-8B-Instruct"
A100 = "NVIDIA-A100-SXM4-80GB"
H100 = "NVIDIA-H100-80GB-HBM3"
PCIE = "NVIDIA-H100-PCIe"
CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}
PRICES = {"prices": [{"product": H100, "from": "2026-01-01", "perGPUHour": "2.95"}]}


def size_report(*words: str) -> SizeReport:
    return build_report(size_request(SIZE.parse(words), DAY))


def write_file(folder: Path, name: str, content: object) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_the_table_says_what_fits_what_it_gives_and_why() -> None:
    text = output(size_report(B8, "--gpu", f"{A100},{H100}"), "text").text
    assert f"{B8}: 8.0 billion weights" in text
    assert "bf16       Fits" in text
    assert "weights 15.0, reserve 2.0, cache 18.2 GiB" in text
    assert "Simplest instance that fits: 2g.20gb" in text
    assert "Prices are assumed" in text


def test_an_slo_finds_the_simplest_instance_within_it() -> None:
    report = size_report(
        B8, "--gpu", A100, "--precision", "checkpoint", "--slo", "ttft=1s,itl=15ms"
    )
    assert report.simplest is not None
    assert report.simplest.hardware.name == "whole GPU"
    assert "Simplest instance within the SLO: whole GPU" in output(report, "text").text
    assert all((row.inter_token_ms or 0) <= 15 for row in report.rows if row.can_serve)


def test_without_an_slo_a_model_is_sized_as_its_service_would_be() -> None:
    report, slo = size_report(B8, "--gpu", A100), Slo()
    assert (report.request.demand.ttft, report.request.demand.inter_token) == (
        slo.ttft_p95,
        slo.itl_p95,
    )
    assert "TTFT at most 1 s, ITL at most 33 ms (as without spec.slo" in output(report, "text").text
    named = size_report(B8, "--gpu", A100, "--slo", "ttft=1s,itl=33ms")
    assert report.rows == named.rows


def test_options_of_the_engine_are_sized_as_those_of_a_service() -> None:
    words = (B8, "--gpu", H100, "--precision", "checkpoint", "--tensor-parallel", "1")
    (plain,), (limited,) = (
        size_report(*words, *more).rows
        for more in ((), ("--max-num-seqs", "8", "--gpu-memory-utilization", "0.5"))
    )
    assert limited.message.endswith("8 concurrent requests")
    assert limited.kv_tokens < plain.kv_tokens
    (blocks,) = size_report(*words, "--block-size", "128").rows
    assert blocks.kv_tokens % 128 == 0
    (refused,) = size_report(*words, "--max-num-seqs", "2000").rows
    assert refused.message.startswith("of 2000 concurrent requests ")
    (long,) = size_report(*words, "--max-num-batched-tokens", "100000").rows
    assert long.message.endswith("with full steps of 100000 tokens")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--gpu-memory-utilization", "2"), "--gpu-memory-utilization 2: "),
        (("--max-num-seqs", "0"), "--max-num-seqs 0: "),
        (("--max-num-batched-tokens", "1"), "--max-num-batched-tokens 1: "),
    ],
)
def test_an_option_of_the_engine_outside_its_bounds_is_refused(
    words: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(CommandError, match=problem):
        size_report(B8, *words)


def test_a_model_that_fits_nowhere_is_reported_and_no_error() -> None:
    text = output(
        size_report("meta-llama/Llama-3.1-405B-Instruct", "--gpu", "NVIDIA-L4"), "text"
    ).text
    assert "No instance fits" in text


def test_compare_ranks_every_instance_against_the_cheapest() -> None:
    lines = output(size_report(B8, "--gpu", A100, "--compare"), "text").text.splitlines()
    head = next(line for line in lines if line.startswith("GPU"))
    first = lines[lines.index(head) + 1]
    assert "VS BEST" in head
    assert "1.00x" in first
    assert any("8x whole GPU" in line for line in lines)
    assert any("2 replicas on 1x" in line for line in lines)


def test_an_api_price_shows_where_serving_breaks_even() -> None:
    report = size_report(
        B8, "--gpu", H100, "--precision", "checkpoint", "--compare", "--api-price", "1.00"
    )
    assert "BREAK-EVEN" in output(report, "text").text
    rows = json.loads(output(report, "json").text)["rows"]
    whole = next(row for row in rows if row["instance"] == "whole GPU")
    assert whole["breakEvenTokensPerSecond"] == pytest.approx(6.88 / 3600 * 1e6, abs=0.01)


def test_json_has_every_row_with_amounts_as_strings() -> None:
    report = json.loads(
        output(size_report(B8, "--gpu", H100, "--precision", "checkpoint,fp8"), "json").text
    )
    assert [row["precision"] for row in report["rows"]] == ["bf16", "fp8"]
    explicit = json.loads(
        output(size_report(B8, "--gpu", H100, "--precision", "bf16,fp8"), "json").text
    )
    assert explicit == report
    assert report["prices"] == "assumed"
    assert report["simplest"]["perHour"] == "1.351428571"
    assert report["shape"]["kvHeads"] == 8


def test_a_configuration_gives_what_the_catalogue_gives(tmp_path: Path) -> None:
    path = write_file(tmp_path, "config.json", CONFIG)
    report = size_report("--config", path, "--gpu", H100)
    assert report.rows == size_report("Qwen/Qwen3-8B", "--gpu", H100).rows


def test_the_index_beside_a_configuration_counts(tmp_path: Path) -> None:
    path = write_file(tmp_path, "config.json", CONFIG)
    write_file(tmp_path, "model.safetensors.index.json", {"metadata": {"total_size": 17 * 10**9}})
    assert size_report("--config", path).request.demand.shape.parameters == 8_500_000_000


FP8_WITH_CACHE = {
    "quant_method": "modelopt",
    "quant_algo": "FP8",
    "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
}


def test_a_cache_of_8_bits_in_the_files_is_planned_as_one_that_is_asked_for(tmp_path: Path) -> None:
    sized = []
    for folder, scheme in (("with", FP8_WITH_CACHE["kv_cache_scheme"]), ("without", None)):
        (tmp_path / folder).mkdir()
        quantization = FP8_WITH_CACHE | {"kv_cache_scheme": scheme}
        config = CONFIG | {"quantization_config": quantization}
        path = write_file(tmp_path / folder, "config.json", config)
        sized.append(
            [
                size_report("--config", path, "--gpu", H100, "--kv-cache-dtype", dtype).rows
                for dtype in ("auto", "fp8")
            ]
        )
    (with_scheme, asked_for), (without, asked_too) = sized
    assert with_scheme == asked_for == asked_too
    assert with_scheme != without


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_context_that_yarn_extends_is_sized_to_its_end(tmp_path: Path, key: str) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    path = write_file(tmp_path, "config.json", CONFIG | {key: rope})
    demand = size_report("--config", path, "--gpu", H100, "--context", "131072").request.demand
    assert demand.max_model_len == 131_072
    with pytest.raises(CommandError, match="use at most 131072"):
        size_report("--config", path, "--context", "131073")


def test_extra_arguments_are_sized_as_those_of_a_service(tmp_path: Path) -> None:
    words = (B8, "--gpu", H100, "--precision", "checkpoint", "--tensor-parallel", "1")
    (plain,), (eager,) = (
        size_report(*words, *more).rows for more in ((), ("--extra-arg=--enforce-eager",))
    )
    assert eager.kv_tokens > plain.kv_tokens
    assert eager.per_million is not None
    assert plain.per_million is not None
    assert eager.per_million.nanos > plain.per_million.nanos
    with pytest.raises(CommandError, match="--cpu-offload-gb keeps weights in CPU memory"):
        size_report(*words, "--extra-arg=--cpu-offload-gb=4")
    yarn = '{"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":32768}'
    long = ("--context", "131072", f'--extra-arg=--hf-overrides={{"rope_parameters":{yarn}}}')
    named = size_report("Qwen/Qwen2.5-7B-Instruct", "--gpu", H100, *long).request.demand
    assert (named.max_model_len, named.shape.max_position_embeddings) == (131_072, 131_072)
    path = write_file(tmp_path, "config.json", CONFIG)
    layers = "--extra-arg=--hf-overrides.num_hidden_layers=4"
    merged = size_report("--config", path, "--gpu", H100, *long, layers).request.demand
    assert (merged.max_model_len, merged.shape.layers) == (131_072, 4)
    with pytest.raises(CommandError, match="num_hidden_layers may change"):
        size_report(B8, "--gpu", H100, layers)


def test_own_prices_are_used_and_missing_prices_are_reported(tmp_path: Path) -> None:
    path = write_file(tmp_path, "prices.json", PRICES)
    report = size_report(B8, "--prices", path, "--compare", "--precision", "checkpoint")
    assert {row.hardware.product for row in report.rows} == {H100}
    assert f"No price ({path}) for" in output(report, "text").text
    whole = next(row for row in report.rows if row.hardware.name == "whole GPU")
    assert str(whole.hourly) == "2.95 USD"
    assert "SELLER" not in output(report, "text").text


def test_a_list_price_says_its_seller_and_tokens_are_compared_within_each() -> None:
    report = size_report(B8, "--gpu", f"{H100},{PCIE}", "--tensor-parallel", "1")
    text = output(report, "text").text
    assert report.cheapest is not None
    assert (report.cheapest.hardware.product, report.cheapest.seller) == (PCIE, "Lambda")
    first = next(line for line in text.splitlines() if line.startswith(PCIE))
    assert " Lambda " in first
    assert "Prices are of 2 sellers, whose terms differ. Cheapest tokens of AWS: " in text
    assert "; of Lambda: " in text
    rows = json.loads(output(report, "json").text)["rows"]
    assert {(row["gpu"], row["seller"]) for row in rows} == {(H100, "AWS"), (PCIE, "Lambda")}
    alone = output(size_report(B8, "--gpu", H100, "--precision", "fp8"), "text").text
    assert "Prices are of" not in alone


def test_every_speed_and_price_has_the_error_of_its_prediction() -> None:
    report = size_report(B8, "--gpu", f"{H100},NVIDIA-B200", "--compare")
    text = output(report, "text").text
    assert "ERROR  SOURCE    PER HOUR" in text
    assert "ERROR is the root mean square error of tokens per second and of prices" in text
    assert "As cheap within the errors of both: " in text
    for row in json.loads(output(report, "json").text)["rows"]:
        if row["tokensPerSecond"] is not None:
            least, most = sorted((row["stepError"]["decode"], row["stepError"]["prompts"]))
            assert 0 < least <= row["error"] <= most
    slow = size_report(B8, "--gpu", H100, "--slo", "itl=2ms", "--tensor-parallel", "1")
    assert all("ms (error " in row.message for row in slow.rows if row.verdict == "TooSlow")


@pytest.mark.parametrize("model", ["BAAI/bge-m3", "deepseek-ai/DeepSeek-V2-Lite-Chat"])
def test_a_family_that_was_never_measured_has_the_error_of_others_and_says_so(model: str) -> None:
    text = output(size_report(model, "--gpu", f"{A100},{H100}"), "text").text
    assert "%*" in text
    assert "* no step of such a model was measured, so it is that of other models" in text


def test_a_small_model_on_a_large_gpu_is_called_oversized() -> None:
    small = ("meta-llama/Llama-3.2-1B-Instruct", "--gpu", H100, "--precision", "checkpoint")
    text = output(size_report(*small, "--tensor-parallel", "1"), "text").text
    assert "OversizedAccelerator: whole GPU" in text
    assert "1g.10gb slice is enough" in text


def test_draft_adapters_and_small_caches_are_counted() -> None:
    plain = size_report(B8, "--gpu", H100, "--tensor-parallel", "1").rows[0]
    draft = ("--draft", "meta-llama/Llama-3.2-1B-Instruct")
    beside = size_report(
        B8, "--gpu", H100, "--tensor-parallel", "1", *draft, "--adapters", "4", "--rank", "16"
    ).rows[0]
    eighth = size_report(
        B8, "--gpu", H100, "--tensor-parallel", "1", "--kv-cache-dtype", "fp8"
    ).rows[0]
    assert beside.kv_tokens < plain.kv_tokens < eighth.kv_tokens


def test_a_draft_is_sized_by_the_terms_of_a_service() -> None:
    words = ("meta-llama/Llama-3.1-70B-Instruct", "--draft", B8, "--draft-tokens", "3")
    draft = {"method": "DraftModel", "tokens": 3, "model": {"uri": f"hf://{B8}"}}
    options = a_spec(f"hf://{words[0]}", engine={"speculation": draft}).engine
    assert size_request(SIZE.parse(words), DAY).demand.engine == engine_terms(options)


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ((), {}),
        (("--kv-cache-dtype", "fp8"), {"engine": {"kvCacheDtype": "fp8"}}),
        (("--max-num-batched-tokens", "512"), {"engine": {"maxNumBatchedTokens": 512}}),
        (
            ("--context", "2048", "--max-num-seqs", "300", "--block-size", "64"),
            {
                "context": {"maxModelLen": 2048},
                "engine": {"maxNumSeqs": 300, "blockSize": 64},
            },
        ),
        (
            ("--draft", B8, "--gpu-memory-utilization", "0.8"),
            {
                "engine": {
                    "speculation": {"method": "DraftModel", "model": {"uri": f"hf://{B8}"}},
                    "gpuMemoryUtilization": "0.8",
                }
            },
        ),
    ],
)
@pytest.mark.parametrize(
    "model",
    [
        "meta-llama/Llama-3.1-70B-Instruct",
        "BAAI/bge-m3",
        "Qwen/Qwen3-Embedding-0.6B",
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        "google/gemma-3-4b-it",
    ],
)
def test_what_a_service_would_be_sized_for_is_sized_and_what_is_refused_is_refused(
    model: str, words: tuple[str, ...], fields: dict[str, Any]
) -> None:
    spec = a_spec(f"hf://{model}", **fields)
    if check(spec, {}):
        with pytest.raises(CommandError):
            size_request(SIZE.parse((model, *words)), DAY)
        return
    nodes = (a_node("h100", whole=1, product=H100),)
    fleet = a_snapshot(a_service(spec=spec), pools=(a_pool("h100"),), nodes=nodes)
    offers = [offer for view in plan_of(fleet).pools for offer in view.offers]
    [candidate] = hardware_candidates(spec, models()[model], offers)
    assert size_request(SIZE.parse((model, *words)), DAY).demand == candidate.demand


def test_a_draft_bounds_the_gpus_of_a_replica() -> None:
    words = ("Qwen/Qwen3-32B", "--gpu", H100, "--draft", "Qwen/Qwen2-0.5B-Instruct")
    verdicts = {row.hardware.devices: row.verdict for row in size_report(*words, "--compare").rows}
    assert [count for count in (1, 2, 4, 8) if verdicts[count] is not SizeVerdict.REFUSED] == [1, 2]
    [row] = size_report(*words, "--tensor-parallel", "4", "--precision", "fp8").rows
    assert "the draft's 14 attention heads and 2 KV heads cannot be sharded" in row.message


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ([], "no model: name one"),
        (["Qwen3-8"], "similar known models: Qwen/Qwen3-8B"),
        (["meta-llama/Lama-3.1-8B-Instruct"], B8),
        (["TheBloke/Llama-2-7B-GGUF"], "take the safetensors files"),
        ([B8, "--gpu", "H100"], "similar: NVIDIA-H100"),
        ([B8, "--precision", "fp4"], "write one or more of checkpoint, fp8"),
        ([B8, "--precision", "bitsandbytes"], "take an FP8 or AWQ checkpoint"),
        (["Qwen/Qwen2.5-7B-Instruct-AWQ", "--precision", "fp8"], "remove fp8"),
        ([B8, "--context", "200000"], "use at most 131072"),
        ([B8, "--draft-tokens", "5"], "add --draft MODEL"),
        ([B8, "--draft", B8, "--draft-tokens", "9"], "less than or equal to 8"),
        ([B8, "--draft", "Qwen/Qwen3-0.6B"], "of 151936 tokens, and"),
        (["BAAI/bge-m3", "--draft", B8], "spec.engine.speculation: "),
        (["BAAI/bge-m3", "--kv-cache-dtype", "fp8"], "has no KV cache"),
        (["BAAI/bge-m3", "--max-num-batched-tokens", "512"], "set at least 8192"),
        ([B8, "--max-num-seqs", "64", "--max-num-batched-tokens", "64"], "set at least 65"),
        ([B8, "--context", "0"], "write a number from 16 to"),
        ([B8, "--input-tokens", "0"], "write a number from 1 to"),
        ([B8, "--tensor-parallel", "3"], "use one of 1, 2, 4, 8"),
        ([B8, "--slo", "1s"], "write ttft=1s,itl=33ms"),
        ([B8, "--slo", "ttft=soon"], "write ttft=1s,itl=33ms"),
        ([B8, "--api-price", "0"], "write an amount above 0"),
        ([B8, "--api-price", "much"], "write an amount above 0"),
        ([B8, "--rank", "1000"], "supports at most 512"),
        ([B8, "--draft", "nothing"], "--draft nothing is none of the"),
        ([B8, "--prices", "/nonexistent"], "check the path"),
        (["--config", "/nonexistent"], "check the path"),
    ],
)
def test_what_cannot_be_sized_is_reported_with_the_fix(words: list[str], fix: str) -> None:
    with pytest.raises(CommandError) as caught:
        size_report(*words)
    assert fix in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"model_type": "mpnet"}, "mpnet is none of the"),
        ({"model_type": "mpnet", "vision_config": {"depth": 1}}, "mpnet is none of the"),
        ({"model_type": "mpnet"}, "A file for --catalogs may have its shape"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5 does not divide"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "take an FP8 or AWQ"),
    ],
)
def test_a_configuration_that_is_not_understood_is_reported_with_the_fix(
    change: dict[str, Any], fix: str, tmp_path: Path
) -> None:
    path = write_file(tmp_path, "config.json", CONFIG | change)
    with pytest.raises(CommandError) as caught:
        size_report("--config", path)
    assert fix in str(caught.value)
    assert path in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_configuration_that_is_no_json_is_reported(text: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"config\.json is not JSON"):
        size_report("--config", write_file(tmp_path, "config.json", text))
    path = write_file(tmp_path, "config.json", CONFIG)
    write_file(tmp_path, "model.safetensors.index.json", text)
    with pytest.raises(CommandError, match=r"index\.json is not JSON"):
        size_report("--config", path)


def test_a_price_file_without_the_named_gpu_is_reported(tmp_path: Path) -> None:
    path = write_file(tmp_path, "prices.json", PRICES)
    with pytest.raises(CommandError, match=f"has no price of {A100}; add one"):
        size_report(B8, "--prices", path, "--gpu", A100)


def test_a_price_file_with_a_gap_is_reported(tmp_path: Path) -> None:
    gap = {"prices": [{"product": H100, "from": "2026-01-01"}]}
    with pytest.raises(CommandError, match=r"prices\[0\].perGPUHour: Field required"):
        size_report(B8, "--prices", write_file(tmp_path, "prices.json", gap))


def test_a_price_file_without_a_present_price_is_reported(tmp_path: Path) -> None:
    later = {"prices": [{"product": H100, "from": "2999-01-01", "perGPUHour": "2"}]}
    with pytest.raises(CommandError, match="it has no price before 2999-01-01"):
        size_report(B8, "--prices", write_file(tmp_path, "prices.json", later))


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["size", B8, "--gpu", H100])
    assert H100 in capsys.readouterr().out


def test_the_command_ends_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["size", "Qwen3-8"])
    assert "similar known models: Qwen/Qwen3-8B" in str(caught.value)
    assert not capsys.readouterr().out
