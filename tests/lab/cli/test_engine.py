"""`tessera engine`: its setups, its loads, its output, its page."""

import json
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from docs_tests.blocks import Command
from docs_tests.pages import page_of, read_page_steps
from tessera.cli.errors import CommandError
from tessera_lab.cli.engine.arguments import engine
from tessera_lab.cli.engine.command import run
from tessera_lab.engine.mixes import MIXES

A100 = "NVIDIA-A100-SXM4-80GB"
SMALL = ("--model", "meta-llama/Llama-3.1-8B-Instruct", "--gpu", A100)
FEW = (*SMALL, "--requests", "20")


def text(*words: str) -> str:
    return run(engine.parse(words)).text


def report(*words: str) -> Any:
    return json.loads(text(*words, "--json"))


def test_setups_change_the_options_and_are_compared_with_them() -> None:
    result = report(
        *(*FEW, "--batching", "static:4", "--kv-cache", "contiguous", "--price", "3.6"),
        *("--setup", "kv-cache=off,batching=static:8"),
        *("--setup", "batching=continuous,prefix-cache,kv-cache=paged"),
    )
    first, second, third = result["setups"]
    assert [each["setup"] for each in result["setups"]] == [
        "as given",
        "kv-cache=off,batching=static:8",
        "batching=continuous,prefix-cache,kv-cache=paged",
    ]
    assert first["gain"] == 1.0
    assert third["gain"] == pytest.approx(third["seconds"] ** -1 * first["seconds"], rel=1e-3)
    assert first["kvWaste"] > second["kvWaste"] > third["kvWaste"]
    assert (first["idleSlotSteps"] > 0, third["idleSlotSteps"]) == (True, 0)
    price = 3.6 / 3600 / first["outputTokensPerSecond"] * 1e6
    assert first["usdPerMillionOutput"] == pytest.approx(price, abs=1e-5)
    assert result == report(
        *(*FEW, "--batching", "static:4", "--kv-cache", "contiguous", "--price", "3.6"),
        *("--setup", "kv-cache=off,batching=static:8"),
        *("--setup", "batching=continuous,prefix-cache,kv-cache=paged"),
    )


def test_a_slice_costs_its_share_of_the_gpu() -> None:
    words = ("--model", "meta-llama/Llama-3.2-1B-Instruct", "--requests", "5", "--price", "7.0")
    whole = report(*words, "--gpu", A100)["setups"][0]
    part = report(*words, "--gpu", f"{A100}/1g.10gb")["setups"][0]
    hourly = part["usdPerMillionOutput"] * part["outputTokensPerSecond"]
    share = (1 / 7 + 1 / 8) / 2
    assert hourly == pytest.approx(
        share * whole["usdPerMillionOutput"] * whole["outputTokensPerSecond"], rel=1e-4
    )


def test_an_slo_gives_the_highest_rate_of_each_setup() -> None:
    result = report(
        *(*FEW, "--load", "rag", "--slo", "ttft=2s,itl=50ms"),
        *("--setup", "max-num-seqs=4", "--setup", "batching=static:1"),
    )
    free, narrow, serial = (each["requestsPerSecond"] for each in result["setups"])
    assert free > narrow > serial > 0
    assert [each["limit"] for each in result["setups"]] == ["TPOT", "TTFT", "TTFT"]
    assert result["slo"] == {"ttftSeconds": 2.0, "itlSeconds": 0.05}


def test_speculation_takes_acceptance_from_a_temperature_and_cost_from_the_draft() -> None:
    draft = "speculation=5:t1,draft=meta-llama/Llama-3.2-1B-Instruct"
    words = ("--setup", draft, "--setup", "speculation=4:0.5:0.2", "--setup", "speculation=4:0.5")
    plain, drafted, given, lookup = report(*FEW, *words)["setups"]
    assert (plain["acceptance"], drafted["acceptance"], given["acceptance"]) == (None, 0.61, 0.5)
    assert 0.1 < drafted["draftCost"] < 0.4
    assert (given["draftCost"], lookup["draftCost"]) == (0.2, 0.0)
    assert drafted["kvTokens"] < plain["kvTokens"] == lookup["kvTokens"]


def test_a_trace_brings_its_arrivals_and_its_prefixes(tmp_path: Path) -> None:
    rows = [
        {"timestamp": at, "input_length": 1500, "output_length": 20, "hash_ids": [1, 2, at]}
        for at in (3, 5000, 9000)
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = report(*SMALL, "--trace", str(trace), "--prefix-cache")["setups"][0]
    # The first two blocks of 512 tokens, in two of three prompts.
    assert result["cachedShare"] == pytest.approx(2 * 1024 / 4500, abs=1e-6)
    assert result["seconds"] == pytest.approx(9.3, abs=0.2)


def test_requests_that_are_too_long_are_warned_of() -> None:
    output = text(*FEW, "--max-model-len", "600")
    assert "Warning: as given: 8 requests of 20 are longer than max_model_len 600" in output


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (("--model", "llama-8b"), "such as"),
        (("--gpu", "A100"), "gpu A100: choose NVIDIA-A100"),
        (("--gpu", f"{A100}/9g"), "has no slice 9g: choose one of 1g.10gb"),
        (("--gpu", f"{A100}/1g.10gb", "--gpus", "2"), "slices cannot work together"),
        (("--gpus", "0"), "gpus 0: write a number from 1"),
        (("--gpus", "3"), "use one of 1, 2, 4, 8, 16"),
        (("--model", "meta-llama/Llama-3.3-70B-Instruct"), "take more or larger GPUs"),
        (("--precision", "int9"), "write fp8, int8, awq-int4, gptq-int4"),
        (("--batching", "static"), "batching static : write a number from 1"),
        (("--batching", "dynamic"), "write continuous, or static:8"),
        (("--kv-cache", "none"), "set the size of a batch"),
        (("--setup", "kv-cache=disk"), "kv-cache disk: write paged or contiguous or none"),
        (("--setup", "kv-cache-dtype=int4"), "write auto or fp8"),
        (("--speculation", "5"), "write K:ACCEPTANCE"),
        (("--speculation", "5:1.5"), "acceptance 1.5: write a number from 0 to below 1"),
        (("--speculation", "5:t1.5"), "acceptance is known from 0 to 1"),
        (("--speculation", "99:0.5"), "raise the first or lower the second"),
        (("--setup", "batch=8"), "batch is none of model, gpu"),
        (("--setup", "batching"), "write batching=VALUE for batching"),
        (("--setup", "prefix-cache=yes"), "write on or off for prefix-cache"),
        (("--setup", "gpus=1", "--setup", "gpus=1"), "is written twice"),
        (("--setup", "max-num-seqs=9999"), "--setup max-num-seqs=9999: max_num_batched_tokens"),
        (("--requests", "0"), "--requests 0: write a number from 1"),
        (("--rate", "0"), "--rate 0: write a number from"),
        (("--rate", "1", "--slo", "ttft=1s"), "--rate is not allowed with --slo"),
        (("--slo", "ttft=-1s"), "--slo ttft=-1s: write ttft=1s,itl=33ms"),
        (("--slo", "ttft=2m"), "up to 60s each"),
        (("--system-tokens", "-1"), "--system-tokens -1: write a number from 0"),
        (("--price", "0"), "--price 0: write a number from"),
        (("--max-model-len", "8"), "as given: none of 1000 requests fits max_model_len 8"),
        (("--trace", "none.csv"), "--trace none.csv: No such file"),
        (("--trace", "none.csv", "--load", "rag"), "--load is not allowed with --trace"),
    ],
)
def test_bad_input_is_a_sentence_with_its_fix(words: tuple[str, ...], fix: str) -> None:
    with pytest.raises(CommandError) as error:
        text(*SMALL, *words)
    assert fix in str(error.value)


def test_the_loads_of_the_option_are_those_that_can_be_drawn() -> None:
    [load] = [option for option in engine.params if option.name == "load"]
    assert isinstance(load.type, click.Choice)
    assert tuple(load.type.choices) == tuple(MIXES)


def test_the_page_shows_what_the_command_says() -> None:
    tried = 0
    for step in read_page_steps(page_of("compare-engines")):
        assert isinstance(step, Command)
        program, name, *words = shlex.split(step.text.replace("\\\n", " "))
        assert (program, name) == ("tessera", "engine")
        assert text(*words).strip() == (step.output or "").strip()
        tried += 1
    assert tried == 3
