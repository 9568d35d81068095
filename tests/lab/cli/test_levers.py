"""`tessera levers`: its files, its options, its output."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tessera.cli.errors import CommandError
from tessera_lab.cli.levers.arguments import levers
from tessera_lab.cli.levers.command import run
from tessera_lab.cli.levers.scenario import LeverScenario, read_scenario
from tessera_lab.levers.lever import LeverId

NOW = datetime(2026, 11, 22, tzinfo=UTC)
# Of each pool a label of its own, since no node belongs to two.
POOL = """\
apiVersion: tessera.dev/v1alpha1
kind: AcceleratorPool
metadata: {{name: {name}}}
spec:
  nodeSelector: {{nvidia.com/gpu.product: {product}, pool: {name}}}
  tier: {tier}
  prices: [{{from: 2026-01-01, perGPUHour: "{price}"}}]
---
"""
A100 = POOL.format(name="a100", product="NVIDIA-A100-SXM4-80GB", tier="OnDemand", price="3.40")
L40S = POOL.format(name="l40s", product="NVIDIA-L40S", tier="OnDemand", price="3.60")
RESERVED = POOL.format(
    name="a100-reserved", product="NVIDIA-A100-SXM4-80GB", tier="Reserved", price="2.00"
)
SERVICE = """\
apiVersion: tessera.dev/v1alpha1
kind: InferenceService
metadata: {name: chat, namespace: team-a}
spec:
  model: {uri: hf://meta-llama/Llama-3.1-8B-Instruct}
  class: Standard
  context: {maxModelLen: 4096}
  scaling: {minReplicas: 1, maxReplicas: 8}
---
"""


class LeverFiles:
    """A folder with a fleet and a trace of 15 minutes, and the command on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = "".join(
            f"{3 * number},{300 + number % 7 * 50},{40 + number % 5 * 20}\n"
            for number in range(300)
        )
        self.write("trace.csv", f"arrival_s,input_tokens,output_tokens\n{rows}")
        self.write("fleet.yaml", A100 + SERVICE)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def arguments(self, *more: str) -> Any:
        trace, fleet = self.folder / "trace.csv", self.folder / "fleet.yaml"
        return levers.parse(["--trace", str(trace), "--fleet", str(fleet), *more])

    def report(self, *more: str) -> Any:
        return json.loads(run(self.arguments("--json", *more)).text)

    def scenario(self, *more: str) -> LeverScenario:
        return read_scenario(self.arguments(*more), NOW)


@pytest.fixture
def files(tmp_path: Path) -> LeverFiles:
    return LeverFiles(tmp_path)


def test_the_report_says_what_a_fleet_has_and_what_it_lacks(files: LeverFiles) -> None:
    report = files.report("--svg", str(files.folder / "ladder.svg"))
    assert set(report["inUse"]) == {"scaling"}
    assert report["inUse"]["scaling"] >= 0
    rungs = report["ladder"]["rungs"]
    assert [rung["lever"] for rung in rungs] == list(LeverId)
    assert report["ladder"]["baseline"]["setup"] == "NVIDIA-A100-SXM4-80GB, checkpoint"
    reasons = {each["lever"]: each["reason"] for each in report["notComputed"]}
    assert reasons == {
        "prompt-compression": "NeedsEvaluation",
        "distillation": "NeedsEvaluation",
        "right-size": "OneProduct",
        "speculation": "NoDraftModel",
        "prefix-cache": "NoPrefixes",
        "price-mix": "NoTier",
        "spot-batch": "NoTier",
        "routing": "NoSmallModel",
    }
    assert report["assumptions"]["hitShare"] == 0.34
    assert report == files.report()
    picture = (files.folder / "ladder.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(picture).tag.endswith("svg")  # noqa: S314 - it is our own


def test_a_small_model_has_the_prices_of_a_route_to_it(files: LeverFiles) -> None:
    assert files.report()["routing"] == []
    arguments = files.arguments("--small", "meta-llama/Llama-3.2-3B-Instruct")
    text = run(arguments).text
    assert "A ModelRoute to the small model, both in full use on demand:\nSHARE  /MTOK" in text


def test_one_replica_that_idles_is_worth_a_slice(files: LeverFiles) -> None:
    report = files.report()
    assert report["present"]["peakReplicas"] == 1
    ranked = {each["id"]: each["saving"] for each in report["next"]}
    assert ranked["mig"] > 0.4 * report["present"]["perMonth"]


def test_a_fleet_gives_the_prices_and_the_products_that_it_has(files: LeverFiles) -> None:
    files.write("fleet.yaml", A100 + RESERVED + L40S + SERVICE)
    case = files.scenario().case
    assert set(case.prices) == {"NVIDIA-A100-SXM4-80GB", "NVIDIA-L40S"}
    a100 = case.prices["NVIDIA-A100-SXM4-80GB"]
    assert (a100.on_demand, a100.reserved) == (3.4, 2.0)


def test_a_model_that_fits_in_fp8_alone_has_this_as_its_baseline(files: LeverFiles) -> None:
    service = SERVICE.replace("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B")
    service = service.replace("4096", "40000")
    service = service.replace("class:", "precision: {variants: [{precision: fp8}]}\n  class:")
    files.write("fleet.yaml", A100 + service)
    scenario = files.scenario()
    assert scenario.case.baseline.devices == 1
    assert scenario.case.precision == "fp8"
    assert LeverId.QUANTIZATION not in scenario.in_use


def test_prefixes_of_a_trace_are_played(files: LeverFiles) -> None:
    rows = "".join(
        json.dumps(
            {
                "timestamp": 3000 * number,
                "input_length": 1200,
                "output_length": 50,
                "hash_ids": [0, 1, 2 + number],
            }
        )
        + "\n"
        for number in range(100)
    )
    files.write("trace.jsonl", rows)
    words = [
        "--trace",
        str(files.folder / "trace.jsonl"),
        "--fleet",
        str(files.folder / "fleet.yaml"),
    ]
    scenario = read_scenario(levers.parse(words), NOW)
    assert scenario.case.load.shared_tokens == 512
    assert LeverId.PREFIX_CACHE in scenario.in_use

    report = json.loads(run(levers.parse([*words, "--json"])).text)
    rungs = [rung for rung in report["ladder"]["rungs"] if rung["used"]]
    index = next(index for index, rung in enumerate(rungs) if rung["lever"] == "prefix-cache")
    before, after = (rungs[each]["after"]["joulesPerToken"] for each in (index - 1, index))
    # Most of a prompt is in the cache, so the engine steps for a shorter time.
    assert after < 0.9 * before
    text = run(levers.parse(words)).text
    assert f"prefix-cache {after / before - 1:+.0%}" in text


def test_notes_say_what_is_not_played(files: LeverFiles) -> None:
    rows = "".join(f"{number / 10},9000,10\n{number / 10},100,10\n" for number in range(21_000))
    files.write("trace.csv", f"arrival_s,input_tokens,output_tokens\n{rows}")
    notes = files.scenario().notes
    assert "Longer than 4096 tokens, and not played: 21000 requests; the demand has them" in notes
    assert "Played: 20000 of 21000 requests, in whole sessions; the demand is that of all" in notes


REFUSED = {
    "no trace": (["--trace", ""], "--trace"),
    "a share of all": (["--hit-share", "1"], "--hit-share 1: write a number from 0 to 0.99"),
    "a temperature above 1": (["--temperature", "2"], "--temperature 2"),
    "an unknown draft": (["--draft", "Qwen/Qwen3-1.8B"], "did you mean Qwen/Qwen3-1.7B"),
    "an unknown small model": (["--small", "x"], "--small x is not among the"),
    "another service": (["--service", "team-a/other"], "choose one with --service"),
    "a part without requests": (["--from", "9", "--hours", "1"], "--from and --hours"),
}


@pytest.mark.parametrize(("words", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_options_are_a_sentence(files: LeverFiles, words: list[str], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence.replace("(", r"\(")):
        files.scenario(*words)


def test_a_trace_is_required(files: LeverFiles) -> None:
    with pytest.raises(CommandError, match="give --trace FILE"):
        read_scenario(levers.parse(["--fleet", str(files.folder / "fleet.yaml")]), NOW)


def test_a_trace_of_prompts_that_are_all_too_long_says_what_to_raise(files: LeverFiles) -> None:
    files.write("trace.csv", "arrival_s,input_tokens,output_tokens\n1,9000,10\n")
    with pytest.raises(CommandError, match=r"raise spec\.context\.maxModelLen"):
        files.scenario()
