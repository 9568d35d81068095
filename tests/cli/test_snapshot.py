"""Snapshot files: equal input gives an equal plan, they have no secrets, damage is reported."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tessera import __version__
from tessera.adapters.kube import object_parsing as wire
from tessera.cli.cluster import Reader
from tessera.cli.errors import CommandError
from tessera.cli.fleet import FleetInputs, read_fleet
from tessera.cli.main import main
from tessera.cli.snapshot.arguments import SNAPSHOT_PLAN
from tessera.cli.snapshot.file import read, save, serialize
from tessera.cli.snapshot.plan import run as plan
from tessera.cli.trim import trim_object
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import Pod, PodReading, Readings, Ref
from tessera.domain.scaling.state import ScalingHistory, TimestampedReplicas
from tessera.resources.api_resources import CHILDREN, KINDS, NODES, PODS
from tests.builders import NOW, at
from tests.cli.memory_api import SECRET, a_pod_body, a_served_cluster
from tests.memory_operator import CHAT, MemoryOperator, add_batch

TEAM_CHAT = Ref("team-a", "chat")


async def a_fleet(**spec: Any) -> tuple[MemoryOperator, FleetInputs]:
    operator, api = await a_served_cluster(**spec)
    add_batch(operator)
    await operator.reconcile()
    fleet = await read_fleet(Reader(api), None)
    return operator, replace(fleet, at=at(5))


def with_readings(fleet: FleetInputs, waiting: float) -> FleetInputs:
    pods = {Ref("team-a", f"chat-{index}"): PodReading(waiting=waiting, running=30, activity=0.9)
            for index in range(2)}  # fmt: skip
    lows = (TimestampedReplicas(at(-120), 4), TimestampedReplicas(at(-30), 5))
    return replace(
        fleet,
        readings=Readings(at=NOW, pods=pods, finished={TEAM_CHAT: 3.0}),
        scaling_history={
            TEAM_CHAT: ScalingHistory(
                up_window=lows, down_window=(TimestampedReplicas(at(-60), 6),), decisions=lows[:1]
            )
        },
    )


@pytest.mark.parametrize("name", ["fleet.json", "fleet.json.gz"])
async def test_what_is_read_is_what_was_saved(tmp_path: Path, name: str) -> None:
    _, fleet = await a_fleet()
    demand = {TEAM_CHAT: GatewayDemand(queued=3, arrivals_per_second=0.5)}
    for inputs in (fleet, replace(with_readings(fleet, 80), demand=demand)):
        save(str(tmp_path / name), serialize(inputs))
        restored, version = read(str(tmp_path / name))
        assert version == __version__
        assert restored.snapshot == inputs.snapshot
        assert restored.scaling_history == inputs.scaling_history
        assert serialize(restored) == serialize(inputs)


async def test_every_kind_that_a_plan_reads_is_saved() -> None:
    _, fleet = await a_fleet()
    snapshot = fleet.snapshot
    inputs = (snapshot.services, snapshot.pools, snapshot.nodes, snapshot.pods, snapshot.workloads)
    assert all((*inputs, snapshot.batches, snapshot.claims, snapshot.batch_jobs))
    assert set(fleet.objects) == {kind.plural for kind in KINDS if wire.is_plan_input(kind)}
    assert {"deployments", "services"} == set(fleet.objects) & {kind.plural for kind in CHILDREN}


async def test_the_replayed_decisions_are_those_of_the_status(tmp_path: Path) -> None:
    operator, fleet = await a_fleet()
    save(str(tmp_path / "f"), serialize(fleet))
    report = json.loads(plan_text(tmp_path, "--json"))
    status = operator.body(CHAT)["status"]
    words = {
        condition["type"][0].lower() + condition["type"][1:]: condition["reason"]
        for condition in status["conditions"]
    }
    (row,) = report["services"]
    assert {name: row[name] for name in words} == words
    assert row["variant"] == status["variant"]["name"]
    assert row["replicas"] == status["scaling"]["desiredReplicas"]
    assert report["notes"] == ["No readings saved: no replica count changes."]


def plan_text(folder: Path, *arguments: str) -> str:
    """Run the command as a shell does, without an event loop, and return its output."""
    return plan(SNAPSHOT_PLAN.parse([str(folder / "f"), *arguments])).text


async def test_a_saved_queue_is_decided_upon(tmp_path: Path) -> None:
    scaling = {
        "policy": "QueueAndActivity",
        "minReplicas": 2,
        "maxReplicas": 7,
        "queue": {"target": 50},
        "scaleUp": {"stabilizationWindow": "0s", "pods": 5},
    }
    _, fleet = await a_fleet(scaling=scaling)
    save(str(tmp_path / "f"), serialize(replace(with_readings(fleet, 80), scaling_history={})))
    (row,) = json.loads(plan_text(tmp_path, "--json"))["services"]
    assert (row["replicas"], row["scaling"]) == (4, "QueueAboveTarget")
    text = plan_text(tmp_path)
    assert "QueueAboveTarget" in text
    assert "NAME" not in text
    explanation = plan_text(tmp_path, "--service", "team-a/chat")
    assert "SCALING: QueueAboveTarget" in explanation
    assert "160 in all replicas" in explanation
    with pytest.raises(CommandError, match="did you mean chat"):
        plan_text(tmp_path, "--service", "team-a/cht")
    with pytest.raises(CommandError, match="NAMESPACE/NAME"):
        plan_text(tmp_path, "--service", "chat")


async def test_no_secret_is_in_a_file() -> None:
    operator, api = await a_served_cluster(
        engine={"extraArgs": [f"--hf-token={SECRET}", "--ssl-keyfile-password", SECRET]},
    )
    body = operator.body(CHAT)
    body["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": SECRET}
    body["status"]["conditions"][0]["message"] = (
        f"GET https://me:{SECRET}@hub failed, hf_abcdefghijklmnopqrstuvwx, bearer abcdefghijklmnop"
    )
    unread = Readings(at=NOW, problem=f"http://me:{SECRET}@prometheus: refused")
    text = serialize(replace(await read_fleet(Reader(api), None), readings=unread))
    assert SECRET not in text
    for token in ("abcdefghijklmnop", "me:", "last-applied", "fieldsV1"):
        assert token not in text
    pods = json.loads(text)["objects"]["pods"]
    assert pods[0]["spec"]["containers"][0]["env"] == [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        {"name": "PASSWORD"},
    ]


def test_trimming_changes_nothing_that_a_plan_reads() -> None:
    body = a_pod_body("chat-0")
    body["metadata"] |= {"uid": "one", "resourceVersion": "7"}
    body["metadata"]["annotations"] |= {"controller.kubernetes.io/pod-deletion-cost": "-1000"}
    limits = ["--max-num-seqs=64", "--max-num-batched-tokens=2048", "--max-model-len=8192"]
    body["spec"]["containers"][0]["args"] += limits
    pod, trimmed = (
        wire.parse_object(PODS, each).plan_input for each in (body, trim_object(PODS, body))
    )
    assert isinstance(pod, Pod)
    assert isinstance(trimmed, Pod)
    # A plan sends nothing to engines.
    assert trimmed == replace(pod, engine=trimmed.engine)
    assert (trimmed.max_num_seqs, trimmed.max_num_batched_tokens) == (64, 2048)
    node = {"metadata": {"name": "a"}, "status": {"images": [1], "allocatable": {}}}
    assert trim_object(NODES, node) == {"metadata": {"name": "a"}, "status": {"allocatable": {}}}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not a snapshot file, or damaged"),
        (b'{"kind": "TesseraSnapsh', "not a snapshot file, or damaged"),
        (b"[" * 100_000, "not a snapshot file, or damaged"),
        (b"\x1f\x8b\x08nonsense", "not a snapshot file, or damaged"),
        (gzip.compress(b"{}", mtime=0)[:-6], "not a snapshot file, or damaged"),
        (b"\xff\xfe", "not a snapshot file, or damaged"),
        (b"[]", "not a snapshot file"),
        (b'{"kind": "List"}', "not a snapshot file"),
        (b'{"kind": "TesseraSnapshot", "formatVersion": 3, "tessera": "9.0.0"}', "tessera 9.0.0"),
        (b'{"kind": "TesseraSnapshot", "formatVersion": 2, "tessera": "0.1.0"}', "damaged: at"),
        (
            b'{"kind": "TesseraSnapshot", "formatVersion": 2, "tessera": "0.1.0", '
            b'"at": "2026-11-20T12:00:00Z", "objects": {}, "readings": {}}',
            "damaged: readings",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_reported_in_a_sentence(
    tmp_path: Path, raw: bytes, words: str
) -> None:
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(SystemExit, match=words):
        main(["snapshot", "plan", str(tmp_path / "f")])


def test_a_missing_file_is_reported() -> None:
    with pytest.raises(SystemExit, match="No such file"):
        main(["snapshot", "plan", "/nowhere/f"])


async def test_one_strange_object_does_not_spoil_a_file(tmp_path: Path) -> None:
    _, fleet = await a_fleet()
    strange = {"metadata": {"name": "odd", "namespace": "team-a"}, "spec": 5}
    objects = {**fleet.objects, "nodes": [*fleet.objects["nodes"], strange]}
    save(str(tmp_path / "f"), serialize(replace(fleet, objects=objects)))
    assert read(str(tmp_path / "f"))[0].snapshot.services == fleet.snapshot.services


async def test_rights_that_are_missing_are_written_into_the_file(tmp_path: Path) -> None:
    _, api = await a_served_cluster()
    api.hidden = {"nodes"}
    fleet = await read_fleet(Reader(api), None)
    save(str(tmp_path / "f"), serialize(fleet))
    report = json.loads(plan_text(tmp_path, "--json"))
    assert any("permission denied: list nodes" in note for note in report["notes"])
    assert fleet.compute_plan(fleet.snapshot) is None
    assert INFERENCE_SERVICES.plural in fleet.objects
