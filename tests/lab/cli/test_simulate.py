"""`tessera simulate`: its files, its options, its output."""

import csv
import gzip
import io
import json
import os
import shlex
import signal
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from docs_tests.blocks import Command
from docs_tests.output import matches
from docs_tests.pages import page_of, read_page_steps
from tessera.api.schema import crd
from tessera.cli.errors import CommandError
from tessera.cli.fleet import FleetInputs
from tessera.cli.output import Output
from tessera.cli.snapshot.file import save, serialize
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS
from tessera_lab.cli.simulate.arguments import simulate
from tessera_lab.cli.simulate.command import run, run_until
from tessera_lab.cli.simulate.crd_rules import PREDICATES
from tessera_lab.cli.simulate.report import output
from tessera_lab.cli.simulate.run import Interrupt, play
from tessera_lab.cli.simulate.scenario import Scenario, read_scenario
from tessera_lab.fleet.generators import daily_wave, requests_at_rate
from tessera_lab.fleet.policies.families import FAMILIES
from tessera_lab.fleet.trace_file import trace_csv

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "simulate"
NOW = datetime(2026, 11, 22, tzinfo=UTC)
A100 = "NVIDIA-A100-SXM4-80GB"
PAGE = page_of("simulate")
SVG = "{http://www.w3.org/2000/svg}"
POOL = f"""\
apiVersion: tessera.dev/v1alpha1
kind: AcceleratorPool
metadata: {{name: a100}}
spec:
  nodeSelector: {{nvidia.com/gpu.product: {A100}}}
  prices: [{{from: 2026-01-01, perGPUHour: "2.00"}}]
---
"""
SERVICE = """\
apiVersion: tessera.dev/v1alpha1
kind: InferenceService
metadata: {name: chat, namespace: team-a}
spec:
  model: {uri: hf://meta-llama/Llama-3.1-8B-Instruct}
  context: {maxModelLen: 4096}
---
"""
BUDGET = """\
apiVersion: tessera.dev/v1alpha1
kind: TenantBudget
metadata: {name: team-a}
spec:
  owner: finance@example.com
  tenant: {namespaces: [team-a]}
  limits: [{window: Day, amount: "50"}]
---
"""


class SimulationFiles:
    """A folder with a fleet and a trace of ten requests in two minutes, and the command on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = "".join(f"{10 * number + 5},100,20\n" for number in range(12))
        self.write("trace.csv", f"arrival_s,input_tokens,output_tokens\n{rows}119.5,100,20\n")
        self.write("fleet.yaml", POOL + SERVICE)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def words(self, *more: str) -> list[str]:
        return [
            *("--trace", str(self.folder / "trace.csv")),
            *("--fleet", str(self.folder / "fleet.yaml"), *more),
        ]

    def simulate(self, *more: str) -> Output:
        return run(simulate.parse(self.words(*more)))

    def report(self, *more: str) -> Any:
        return json.loads(self.simulate("--json", *more).text)

    def scenario(self, *more: str) -> Scenario:
        return read_scenario(simulate.parse(self.words(*more)), NOW)


@pytest.fixture
def files(tmp_path: Path) -> SimulationFiles:
    return SimulationFiles(tmp_path)


def test_the_first_command_of_the_page_scales_the_example_and_keeps_its_slo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    commands = [step for step in read_page_steps(PAGE) if isinstance(step, Command)]
    words = [shlex.split(command.text.replace("\\\n", " ")) for command in commands]
    assert {tuple(line[:2]) for line in words} == {("tessera", "simulate")}
    first, *_ = [simulate.parse(line[2:]) for line in words]
    scenario = read_scenario(first, NOW)
    results = play(scenario, Interrupt())

    report = json.loads(output(scenario, results, "json").text)
    (policy,) = report["policies"]
    assert (policy["policy"], policy["sloKept"], policy["brokenStreams"]) == ("tessera", True, 0)
    desired = [sample["desired"] for sample in policy["samples"]]
    assert report["minReplicas"] == 2 <= min(desired) <= max(desired) / 2
    assert 3 < max(desired) <= report["maxReplicas"]
    assert report["replicaHour"] == {"onDemand": 3.43, "reserved": 2.16, "spot": 1.25}
    assert policy["cost"] == pytest.approx(policy["replicaHours"] * 3.43, abs=0.01)
    assert policy["bestReserved"] >= 2
    assert policy["bestCost"] < policy["cost"]
    # An A100 draws 62 to 400 W, and no GPU was without a replica.
    assert 0.062 < policy["energyKwh"] / policy["replicaHours"] < 0.4
    assert policy["serviceEnergyKwh"] == policy["energyKwh"]
    assert 0 < policy["energyJoulesPerOutputToken"] == policy["serviceEnergyJoulesPerOutputToken"]

    assert commands[0].output is not None
    assert matches(
        commands[0].output, capsys.readouterr().err + output(scenario, results, "table").text
    )


def test_the_page_has_every_policy_and_its_rules_are_explained() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    explained = (ROOT / "docs" / "decisions" / "rival-policies.md").read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"`{name}`" not in text] == []
    others = FAMILIES.keys() - {"static", "tessera"}
    assert [name for name in sorted(others) if f"`{name}`" not in explained] == []


def test_the_trace_of_the_example_is_a_drawn_one() -> None:
    trace = requests_at_rate("hour", daily_wave(2.5, 0.7, 3600.0), 3600.0, 1, cv=1.5)
    assert gzip.decompress((EXAMPLE / "hour.csv.gz").read_bytes()).decode() == trace_csv(trace)


def test_policies_stand_side_by_side_with_their_knobs(files: SimulationFiles) -> None:
    words = ("--policy", "static:replicas=4", "--compare", "tessera,static")
    rows = list(csv.DictReader(io.StringIO(files.simulate("-o", "csv", *words).text)))
    assert [row["policy"] for row in rows] == ["static:replicas=4", "tessera", "static"]
    assert [row["inTime"] for row in rows] == [row["requests"] for row in rows]
    four, scaled, eight = (float(row["replicaHours"]) for row in rows)
    assert scaled < four < eight
    table = files.simulate(*words).text
    assert table.count(" kept ") == 3
    assert f"InferenceService/team-a/chat on {A100} (a100-1gpu)" in table


def test_reserved_replicas_are_paid_all_the_time_and_spot_beyond_them(
    files: SimulationFiles,
) -> None:
    words = ("--policy", "static:replicas=4", "--prices", "aws-2026")
    (demand,) = files.report(*words)["policies"]
    (mixed,) = files.report(*words, "--reserved", "3", "--spot", "0")["policies"]
    hours = demand["replicaHours"]
    assert demand["cost"] == pytest.approx(hours * 3.43, rel=1e-3)
    assert mixed["bestCost"] is None
    # The simulation begins with 2 replicas, so that fewer than 4 are on demand or spot nodes.
    reserved = 3 * 2.16 * (demand["simulatedSeconds"] + 2) / 3600
    assert reserved * 0.95 < mixed["cost"] < demand["cost"]


def test_idle_reserved_gpus_use_energy_that_is_not_the_service_s(files: SimulationFiles) -> None:
    words = ("--policy", "static:replicas=4", "--reserved", "6")
    (policy,) = files.report(*words)["policies"]
    idle = policy["energyKwh"] - policy["serviceEnergyKwh"]
    # Two are never used, and two more not until their replicas are ordered.
    unused_hours = 6 * policy["simulatedSeconds"] / 3600 - policy["replicaHours"]
    assert idle == pytest.approx(unused_hours * 0.062, rel=0.05)
    text = files.simulate(*words).text
    assert "KWH  J/TOKEN" in text
    share = f"InferenceService/team-a/chat used of it: {policy['policy']} "
    assert f"{share}{policy['serviceEnergyKwh']:.2f} kWh" in text


def test_a_gpu_without_known_watts_has_no_energy(files: SimulationFiles) -> None:
    product = "NVIDIA-GH200-144G-HBM3e"
    files.write("fleet.yaml", (POOL + SERVICE).replace(A100, product))
    (policy,) = files.report()["policies"]
    assert (policy["energyKwh"], policy["energyJoulesPerOutputToken"]) == (None, None)
    assert f"Energy is not counted: no watts are known of {product}." in files.simulate().text


def test_a_part_of_the_trace_is_simulated_in_copies(files: SimulationFiles) -> None:
    scenario = files.scenario("--from", "0.01", "--hours", "0.02", "--copies", "3")
    assert scenario.trace.seconds == pytest.approx(72.0)
    assert len(scenario.trace) == pytest.approx(3 * 13 * 72 / 120, abs=4)
    assert list(files.scenario("--spread", "5").trace.arrivals) != list(
        files.scenario("--spread", "5", "--seed", "2").trace.arrivals
    )


def test_the_hours_before_the_part_choose_the_instance_type_of_all_policies(
    files: SimulationFiles,
) -> None:
    pool = POOL.replace(A100, "NVIDIA-H100-80GB-HBM3").replace("a100", "h100")
    service = SERVICE.replace("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B-FP8")
    scaling = "maxModelLen: 32768}\n  scaling: {minReplicas: 1, maxReplicas: 16}"
    files.write("fleet.yaml", pool + service.replace("maxModelLen: 4096}", scaling))
    long = "".join(f"{second},1300,8000\n" for second in range(7 * 3600))
    rows = "".join(f"{7 * 3600 + 10 * number},100,20\n" for number in range(12))
    files.write("trace.csv", f"arrival_s,input_tokens,output_tokens\n{long}{rows}")
    assert files.scenario("--from", "0", "--hours", "7").file.choice.variant == "h100-1gpu"
    part = ("--from", "7", "--policy", "tessera", "--policy", "static:replicas=1")
    report = files.report(*part)
    assert report["variant"] == "h100-2gpu"
    assert report["replicaHour"]["onDemand"] == 4.0
    (note,) = [each for each in report["notes"] if "--from" in each]
    assert "h100-2gpu costs 384.00 USD a day" in note
    usd = [each["cost"] for each in report["policies"]]
    assert usd == pytest.approx([4.0 * 112 / 3600] * 2, rel=0.05)


def test_the_plots_show_demand_replicas_cost_and_misses(files: SimulationFiles) -> None:
    path = files.folder / "plots.svg"
    files.simulate("--svg", str(path), "--compare", "tessera,static")
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314 - our own
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert [text for text in texts if text in {"Demand", "Replicas", "Cost"}] == [
        "Demand",
        "Replicas",
        "Cost",
    ]
    assert {"tessera", "static", "hours", "USD so far"} <= set(texts)
    assert len(list(root.iter(f"{SVG}polyline"))) == 7
    assert len(list(root.iter(f"{SVG}svg"))) == 5


def test_an_interrupt_keeps_what_was_simulated_and_says_how_far_it_came(
    files: SimulationFiles,
) -> None:
    interrupt = Interrupt()
    with interrupt.watched():
        os.kill(os.getpid(), signal.SIGINT)
    words = files.words("--compare", "tessera,static", "--start-up", "0", "--json")
    output = run_until(interrupt, simulate.parse(words))
    report = json.loads(output.text)
    (policy,) = report["policies"]
    assert (output.exit_code, report["interrupted"]) == (130, True)
    assert (policy["simulatedSeconds"], policy["requests"]) == (60.0, 6)
    assert (
        "Interrupted: tessera was simulated for 0.02 of 0.03 h; its row is of that time"
        in (report["notes"])
    )
    assert "Not simulated: static" in report["notes"]


def test_a_budget_below_the_cost_is_noted(files: SimulationFiles) -> None:
    files.write("fleet.yaml", POOL + SERVICE + BUDGET)
    (note,) = [note for note in files.report()["notes"] if "TenantBudget/team-a" in note]
    assert "day limit 50 USD. At this load the replicas cost more: tessera 96" in note


def test_a_budget_holds_the_operators_decision_and_no_other(files: SimulationFiles) -> None:
    # 8 long prompts a second from the tenth minute on; one replica takes 2 USD an hour.
    rows = "".join(f"{600 + number / 8:.3f},3500,20\n" for number in range(2400))
    files.write("trace.csv", f"arrival_s,input_tokens,output_tokens\n1,1000,100\n{rows}")
    compared = ("--compare", "tessera,hpa-tuned")
    free, other = files.report(*compared)["policies"]
    # What the hour has left when the load comes pays a second replica, and no third.
    hourly = BUDGET.replace("Day", "Hour").replace('"50"', '"3.20"')
    files.write("fleet.yaml", POOL + SERVICE + hourly)
    report = files.report(*compared)
    limited, unchanged = report["policies"]
    assert unchanged == other
    assert limited["cost"] < free["cost"]
    assert limited["heldByBudgetSeconds"] > 60
    (note,) = [note for note in report["notes"] if note.startswith("TenantBudget/team-a held")]
    assert note.startswith("TenantBudget/team-a held tessera for ")
    # In another currency the operator counts no spend and adds nothing.
    files.write("fleet.yaml", POOL + SERVICE + hourly.replace("owner:", "currency: EUR\n  owner:"))
    report = files.report("--policy", "tessera")
    assert report["policies"][0]["cost"] <= limited["cost"]


def test_requests_longer_than_the_context_count_as_missed(files: SimulationFiles) -> None:
    files.write("trace.csv", "arrival_s,input_tokens,output_tokens\n1,9000,20\n119,10,20\n")
    report = files.report()
    assert report["policies"][0]["refused"] == 1
    assert any("1 request refused as longer than 4096 tokens" in note for note in report["notes"])


def test_arrivals_that_were_recorded_in_steps_are_noted(files: SimulationFiles) -> None:
    rows = "".join(f"{3 * (number // 10)},100,20\n" for number in range(400))
    files.write("trace.csv", f"arrival_s,input_tokens,output_tokens\n{rows}")
    assert any("in steps of about 3 s" in note for note in files.report()["notes"])
    assert not any("steps" in note for note in files.report("--spread", "3")["notes"])


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["--save-trace", "x.csv"], "--save-trace writes what --from-prometheus draws"),
        (["--policy", "magic"], "no policy magic; choose from tessera, static"),
        (["--policy", "static:replicas=many"], "write KNOB=NUMBER; static has replicas=8"),
        (["--policy", "static:size=3"], "static has replicas=8"),
        (["--policy", "tessera:target=1"], "has no knobs; change the fleet file"),
        (["--prices", "neo-2026"], f"has no price of {A100}"),
        (["--start-up", "-1"], "--start-up -1: write a number from 0 to 3600"),
        (["--start-up", "nan"], "--start-up nan: write a number"),
        (["--spot", "inf"], "--spot inf: write a number from 0 to 60"),
        (["--copies", "0"], "--copies 0: write a number from 1 to 1000"),
        (["--reserved", "-2"], "--reserved -2: write a number"),
        (["--from", "7"], "no part of the window of 120 s"),
        (["--service", "team-b/chat"], "choose one with --service NAMESPACE/NAME: team-a/chat"),
        (["--svg", "/nowhere/plots.svg"], "cannot be written"),
    ],
)
def test_a_wrong_option_is_a_sentence_with_its_fix(
    files: SimulationFiles, words: list[str], fix: str
) -> None:
    with pytest.raises(CommandError) as error:
        files.simulate(*words)
    assert fix in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "arrival_s,input_tokens,output_tokens\n0,1,1\nnan,1,1\n",
            "trace.csv, line 3: arrival nan",
        ),
        ("time,size\n", "missing column arrival_s"),
    ],
)
def test_a_bad_trace_is_named_with_its_line_and_the_formats(
    files: SimulationFiles, text: str, problem: str
) -> None:
    files.write("trace.csv", text)
    with pytest.raises(CommandError) as error:
        files.simulate()
    assert problem in str(error.value)
    assert "a trace is CSV with the columns" in str(error.value)


@pytest.mark.parametrize(
    ("fleet", "problem"),
    [
        ("a: [\n", "fleet.yaml, line 2: not YAML"),
        ("- 1\n", "an object has no kind"),
        ("kind: Pod\n", "has no InferenceService"),
        (POOL, "has no InferenceService; choose one with --service NAMESPACE/NAME: none"),
        (SERVICE, "has no AcceleratorPool to use"),
        (POOL.replace("v1alpha1", "v1"), "no kind AcceleratorPool in tessera.dev/v1"),
        (POOL.replace("{name: a100}", "{}") + SERVICE, "AcceleratorPool without metadata.name"),
        (POOL.replace("spec:", "specs:") + SERVICE, "AcceleratorPool/a100: unknown field specs"),
        (
            POOL + SERVICE.replace("model:", "model: {}\n  model:"),
            "fleet.yaml, line 13: not YAML: duplicate key model",
        ),
        (
            POOL + SERVICE.replace("name: chat", "name: Chat"),
            "metadata.name is also the name of the",
        ),
        (POOL.replace("a100}", "A100}") + SERVICE, "use lower-case letters, digits"),
        (
            POOL
            + SERVICE.replace("hf://meta-llama", "pvc://models").replace(
                "Instruct}", "Instruct, revision: v1}"
            ),
            "spec.model.revision applies to hf:// models only",
        ),
        (POOL + SERVICE.replace("context", "contexts"), "chat: spec.contexts: Extra inputs"),
        (POOL + SERVICE.replace("8B-Instruct", "9B"), "is not among the"),
        (POOL + SERVICE.replace("4096", "9999999"), "exceeds the model's limit"),
        (POOL + SERVICE + SERVICE.replace("chat", "mail"), "fleet.yaml has 2; choose one with"),
        (
            POOL + SERVICE.replace("context:", "scaling: {minReplicas: 9}\n  context:"),
            "spec.scaling.minReplicas must not exceed spec.scaling.maxReplicas",
        ),
        (
            POOL + SERVICE.replace("context:", "scaling: {minReplicas: 0}\n  context:"),
            "needs spec.scaling.idle",
        ),
        (
            POOL.replace("2026-01-01", "2999-01-01") + SERVICE,
            "AcceleratorPool/a100 is left out: it has no price for",
        ),
        (
            POOL.replace("nvidia.com/gpu.product", "accelerator") + SERVICE,
            "AcceleratorPool/a100 is left out: its GPUs are not known. Add nvidia.com/gpu.product",
        ),
        (
            POOL.replace(
                'perGPUHour: "2.00"}', 'perGPUHour: "2"}, {from: 2026-01-01, perGPUHour: "1"}'
            )
            + SERVICE,
            "two prices with the same first day",
        ),
        *(
            (
                POOL.replace("prices:", f"nodeTemplate: {{{fields}, maxNodes: 2}}\n  prices:")
                + SERVICE,
                words,
            )
            for fields, words in (
                ("product: NVIDIA-L4, gpus: 1", "spec.nodeTemplate.product is not the label"),
                (
                    f"product: {A100}, gpus: 1, labels: {{nvidia.com/gpu.count: '4'}}",
                    "spec.nodeTemplate.gpus is not the label nvidia.com/gpu.count",
                ),
            )
        ),
        (
            POOL + SERVICE + BUDGET.replace("Day", "Year"),
            "TenantBudget/team-a: spec.limits.0.window",
        ),
        (
            POOL.replace(A100, "NVIDIA-L4") + SERVICE.replace("8B", "70B"),
            "InferenceService/team-a/chat: ",
        ),
    ],
)
def test_a_fleet_is_refused_as_the_api_server_would(
    files: SimulationFiles, fleet: str, problem: str
) -> None:
    files.write("fleet.yaml", fleet)
    with pytest.raises(CommandError) as error:
        files.simulate()
    assert problem in str(error.value)
    assert "fleet.yaml" in str(error.value)


def test_files_in_another_precision_are_assumed_to_be_of_the_model(
    files: SimulationFiles,
) -> None:
    listed = "  precision: {variants: [{precision: awq-int4, uri: hf://acme/llama-8b-awq}]}\n---\n"
    files.write("fleet.yaml", POOL + SERVICE.replace("---\n", listed))
    file = files.scenario().file
    assert file.choice.variant == "a100-1gpu-awq-int4"
    assert file.notes[-1].startswith("the files of awq-int4 at hf://acme/llama-8b-awq are not read")


def test_every_rule_of_the_crds_is_checked() -> None:
    def rules(schema: Any) -> Iterator[str]:
        if isinstance(schema, dict):
            yield from (rule["rule"] for rule in schema.get("x-kubernetes-validations", ()))
            for part in schema.values():
                yield from rules(part)

    expressions = set()
    for kind in (ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS):
        (version,) = crd(kind)["spec"]["versions"]
        properties = version["schema"]["openAPIV3Schema"]["properties"]
        expressions |= set(rules(properties["spec"]))
    by_type = ("duration(self)", "self.matches(")
    others = {rule for rule in expressions if not rule.startswith(by_type)}
    assert others == set(PREDICATES)


def a_body(kind: str, name: str, spec: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team-a", "uid": name, "labels": {}}
    own = {"apiVersion": "tessera.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    return own | fields


def test_a_snapshot_of_a_cluster_is_a_fleet(files: SimulationFiles) -> None:
    price = {"from": "2026-01-01", "perGPUHour": "2.10", "currency": "EUR"}
    node = {
        "kind": "Node",
        "metadata": {"name": "n1", "labels": {"pool": "mig", "nvidia.com/gpu.product": A100}},
        "spec": {},
        "status": {
            "allocatable": {"nvidia.com/mig-3g.40gb": "2"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    model = {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"}
    fleet = FleetInputs(
        at=NOW,
        objects={
            "acceleratorpools": [
                a_body(
                    "AcceleratorPool", "mig", {"nodeSelector": {"pool": "mig"}, "prices": [price]}
                )
            ],
            "inferenceservices": [
                a_body(
                    "InferenceService", "chat", {"model": model, "context": {"maxModelLen": 4096}}
                )
            ],
            "nodes": [node],
        },
    )
    snapshot = files.folder / "snapshot.json.gz"
    save(str(snapshot), serialize(fleet))
    report = files.report("--fleet", str(snapshot))
    assert (report["variant"], report["currency"]) == ("mig-3g-40gb", "EUR")
    # Three of seven slices of the compute, half of the memory.
    assert 0.8 < report["replicaHour"]["onDemand"] < 1.1
