"""`tessera gate pin` and `show` over an in-memory cluster."""

import hashlib
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from environments import ROOT
from tessera.api.quality_gate import (
    AnswerShares,
    GateProgress,
    QualityGateStatus,
    StratumVerdict,
    SuiteStatus,
    VerdictStatus,
)
from tessera.batch_runner.gate.suite import parse_suite
from tessera.cli.cluster import Reader
from tessera.cli.errors import CommandError
from tessera.cli.gate.pin import pin_gate, pinned_manifest, read_pin, run
from tessera.cli.gate.show import show
from tessera.domain.kinds.kinds import QUALITY_GATES
from tessera.resources.manifest import wire_format
from tests.cli.memory_api import MemoryApi
from tests.memory_cluster import MemoryCluster

ROW = {"messages": [{"role": "user", "content": "2+2?"}], "scorer": "exact", "expected": "4"}
SUITE = {"configMap": {"name": "suite"}}
MANIFEST = """\
# The gate of team-a.
apiVersion: tessera.dev/v1alpha1
kind: QualityGate
metadata: {name: answers, namespace: team-a}
spec:
  suite:
    # Written by the pipeline.
    configMap: {name: suite}  # suite.jsonl
    digest: old
    prompts:
      sums: 1
      gone: 2

  # Our margins.
  maxDropPoints: "1"
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    rows = [
        ROW | {"stratum": "sums", "messages": [{"role": "user", "content": f"{number}+0?"}]}
        for number in (1, 2)
    ]
    path = tmp_path / "suite.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, ROW | {"stratum": "other"}])))
    return path


def a_cluster(spec: dict[str, Any], status: QualityGateStatus | None = None) -> MemoryApi:
    cluster = MemoryCluster()
    meta = {"name": "answers", "namespace": "team-a", "uid": "uid-gate"}
    body = {"metadata": meta, "spec": spec, "status": wire_format(status) if status else {}}
    cluster.put(QUALITY_GATES, body)
    return MemoryApi(cluster)


def test_a_pin_is_the_digest_of_the_file_and_the_prompts_of_each_stratum(suite: Path) -> None:
    pin = read_pin(str(suite))
    assert pin["digest"] == hashlib.sha256(suite.read_bytes()).hexdigest()
    assert pin["prompts"] == {"other": 1, "sums": 2}
    options = SimpleNamespace(suite=str(suite), gate=None, manifest=None)
    assert yaml.safe_load(run(options).text) == {"spec": {"suite": pin}}
    suite.write_text("{}")
    with pytest.raises(CommandError, match="1 broken line"):
        read_pin(str(suite))
    with pytest.raises(CommandError, match="not both"):
        run(SimpleNamespace(suite=str(suite), gate="answers", manifest="gate.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        MANIFEST,
        MANIFEST.replace("    digest: old\n    prompts:\n      sums: 1\n      gone: 2\n", ""),
        MANIFEST.replace(
            "    prompts:\n      sums: 1\n      gone: 2\n", "    prompts: {gone: 2}\n"
        ),
        f"kind: ConfigMap\ndata: {{kind: QualityGate}}\n---\n{MANIFEST}---\nkind: Service\n",
        "kind: QualityGate\nspec:\n  suite: {configMap: {name: suite}, digest: a}\n  repeats: 2\n",
    ],
    ids=["pinned", "unpinned", "in one line", "among others", "flow"],
)
def test_a_pin_in_a_manifest_leaves_all_else_as_it_is(suite: Path, text: str) -> None:
    pin = read_pin(str(suite))
    pinned = pinned_manifest(text, pin)
    before, after = (
        next(body for body in yaml.safe_load_all(each) if body["kind"] == "QualityGate")
        for each in (text, pinned)
    )
    assert after["spec"] == {**before["spec"], "suite": {**SUITE, **pin}}
    assert pinned_manifest(pinned, pin) == pinned
    comments = [line.strip() for line in text.splitlines() if "#" in line]
    assert [line.strip() for line in pinned.splitlines() if "#" in line] == comments


@pytest.mark.parametrize(
    "text", ["", "kind: QualityGate\nspec: {}\n", f"{MANIFEST}---\n{MANIFEST}"]
)
def test_a_manifest_without_one_gate_stays_as_it_is(suite: Path, text: str) -> None:
    manifest = suite.with_name("gate.yaml")
    manifest.write_text(text)
    options = SimpleNamespace(suite=str(suite), gate=None, manifest=str(manifest))
    with pytest.raises(CommandError, match=r"with spec\.suite, not 1"):
        run(options)
    assert manifest.read_text() == text


async def test_a_pinned_object_has_the_strata_of_the_file_alone(suite: Path) -> None:
    api = a_cluster({"suite": SUITE | {"prompts": {"gone": 4, "sums": 1}}})
    pin = read_pin(str(suite))
    output = await pin_gate(Reader(api, "team-a"), "answers", pin)
    assert output.text.startswith("QualityGate/answers: pinned 3 prompts in 2 strata, digest ")
    (_, path, patch) = api.sent[-1]
    assert path == QUALITY_GATES.path("team-a", "answers")
    assert patch["spec"]["suite"] == pin | {"prompts": {"gone": None, "other": 1, "sums": 2}}
    assert patch["metadata"] == {"resourceVersion": "1"}
    with pytest.raises(CommandError, match="QualityGate/other not found in team-a"):
        await pin_gate(Reader(api, "team-a"), "other", pin)


def a_verdict(**fields: Any) -> VerdictStatus:
    shares = AnswerShares(
        truncated=Decimal("0.01"),
        empty=Decimal(0),
        refused=Decimal(0),
        mean_tokens=Decimal(200),
        ttft_p95_seconds=Decimal("0.3"),
        itl_p95_seconds=Decimal("0.02"),
        usd_per_million_tokens=Decimal("0.5"),
    )
    row = {
        "prompts": 400,
        "baseline": Decimal("0.9"),
        "candidate": Decimal("0.8"),
        "loss_points": Decimal(10),
        "unseen_loss_points": Decimal("3.1"),
        "is_lost": True,
    }
    values: dict[str, Any] = {
        "service": "chat",
        "candidate": "c" * 64,
        "baseline": "b" * 64,
        "suite": "a" * 64,
        "scorer": "1",
        "reason": "Failed",
        "message": "lost 10.00 points",
        "decided_at": datetime(2026, 11, 29, 1, 0, tzinfo=UTC),
        "strata": (
            StratumVerdict(name="total", largest_loss_points=Decimal("12.5"), **row),
            StratumVerdict(name="sums", **row),
        ),
        "baseline_answers": shares,
        "candidate_answers": shares.model_copy(update={"usd_per_million_tokens": Decimal("0.3")}),
        **fields,
    }
    return VerdictStatus(**values)


async def test_a_gate_shows_its_suite_what_runs_and_the_table_of_its_latest_verdict() -> None:
    status = QualityGateStatus(
        suite=SuiteStatus(digest="a" * 64, prompts={"sums": 400}),
        progress=(GateProgress(service="code", role="Baseline", answered=7, prompts=400),),
        verdicts=(a_verdict(), a_verdict(service="code", reason="Passed")),
    )
    reader = Reader(a_cluster({"suite": SUITE}, status), "team-a")
    text = (await show(reader, "answers", "text")).text
    for words in (
        "suite aaaaaaaaaaaa: 400 sums",
        "Baseline of code: 7 of 400 prompts answered",
        "0.5000 per Mtok",
        "-10.00 points, loss at most 12.50",
        "Failed: lost 10.00 points",
        "code     Passed",
    ):
        assert words in text, text
    listed = (await show(reader, None, "text")).text
    assert listed.splitlines()[1].split() == [
        *("answers", "-", "400", "no", "chat", "Failed", "2026-11-29", "01:00:00")
    ]
    body = json.loads((await show(reader, "answers", "json")).text)
    assert body["verdicts"][0]["strata"][0]["lossPoints"] == "10"
    with pytest.raises(CommandError, match="QualityGate/other not found"):
        await show(reader, "other", "text")


async def test_a_change_that_changes_no_answers_has_a_table_that_says_so() -> None:
    verdict = a_verdict(reason="Slower", strata=(), message="spec.slo.itlP95: missed")
    api = a_cluster({"suite": SUITE}, QualityGateStatus(verdicts=(verdict,)))
    lines = (await show(Reader(api, "team-a"), "answers", "text")).text.splitlines()
    table = [line.split() for line in lines if line.startswith(("baseline", "candidate", "change"))]
    assert [row[1:3] for row in table[:2]] == [["not", "asked"]] * 2
    assert table[2][:4] == ["change", "-", "TTFT", "+0%,"]
    assert "chat: Slower: spec.slo.itlP95: missed" in lines


async def test_a_gate_that_compared_nothing_says_why() -> None:
    nothing = a_verdict(reason="TimedOut", strata=(), candidate_answers=None, message="no answers")
    api = a_cluster({"suite": SUITE}, QualityGateStatus(verdicts=(nothing,)))
    text = (await show(Reader(api, "team-a"), "answers", "text")).text
    assert "chat: TimedOut: no answers" in text
    empty = (await show(Reader(MemoryApi(MemoryCluster()), "team-a"), None, "text")).text
    assert empty.startswith("no QualityGate")


def test_the_gate_of_the_examples_is_pinned_to_its_suite() -> None:
    text = (ROOT / "examples/35-quality-gate.yaml").read_text(encoding="utf-8")
    config_map, gate = yaml.safe_load_all(text)
    suite = parse_suite(config_map["data"]["suite.jsonl"].encode())
    pin = {"digest": suite.digest, "prompts": suite.counts}
    assert {**gate["spec"]["suite"], **pin} == gate["spec"]["suite"]
