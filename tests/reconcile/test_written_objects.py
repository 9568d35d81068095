"""All that the operator writes over the examples and over generated states, byte for byte.

Each scene has a file in `tests/golden/written/`, which `xzcat` shows: what each cycle wrote, in
order, and what `explain`, a gateway and the bill say of it in the end. What was written before
under the same name stands as its difference from that.
"""

import difflib
import itertools
import json
import lzma
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import yaml
from typing_extensions import override

from environments import ROOT
from tessera.api.api_resource import ApiResource
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.cli.fleet import PLAN_INPUT_KINDS, FleetInputs
from tessera.domain.explain.explain import explain
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.incremental import Incremental
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, BATCH_INFERENCES, INFERENCE_SERVICES
from tessera.domain.status.service import service_status
from tessera.ports import ClusterObject
from tessera.resources.api_resources import CLAIMS
from tessera.resources.children import service_manifests
from tessera.resources.manifest import ObjectKey, ObjectManifest, wire_format
from tests.builders import NO_MEMORY, plan_of
from tests.conftest import GOLDEN
from tests.domain import test_incremental as generated
from tests.hostile.twin import Fleet
from tests.memory_cluster import MemoryCluster

EXAMPLES = ROOT / "examples"
WRITTEN = GOLDEN / "written"
H100 = "NVIDIA-H100-80GB-HBM3"
KINDS: Mapping[str, ApiResource] = {
    "AcceleratorPool": ACCELERATOR_POOLS,
    "InferenceService": INFERENCE_SERVICES,
    "BatchInference": BATCH_INFERENCES,
    "PersistentVolumeClaim": CLAIMS,
}


class Transcript:
    """Texts by name; one that was written before stands as its difference from that."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self._texts: dict[str, list[str]] = {}

    def add(self, name: str, value: object) -> None:
        text = value if isinstance(value, str) else json.dumps(plain(value), indent=1)
        before, after = self._texts.get(name), text.splitlines()
        self._texts[name] = after
        if before == after:
            self.entries.append(f"{name}: as before")
        elif before is None:
            self.entries.append("\n  ".join((f"{name}:", *after)))
        else:
            changes = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
            self.entries.append("\n  ".join((f"{name} changes:", *changes)))


def plain(value: Any) -> Any:
    """Return a value of JSON in which equal values are equal texts."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, str | int | float | None) else str(value)


class RecordingCluster(MemoryCluster):
    """A cluster that writes all writes down."""

    def __init__(self) -> None:
        super().__init__()
        self.transcript = Transcript()

    @override
    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        name = f"apply {manifest.key.describe()} {subresource or ''}".rstrip()
        self.transcript.add(name, dict(manifest.body))
        return await super().apply(manifest, subresource=subresource)

    @override
    async def delete(self, kind: ApiResource, key: ObjectKey, **options: Any) -> None:
        self.transcript.add(f"delete {key.describe()}", options)
        await super().delete(kind, key, **options)

    @override
    async def patch_node(self, node: str, *changes: Any) -> ClusterObject:
        self.transcript.add(f"patch node {node}", changes)
        return await super().patch_node(node, *changes)

    @override
    async def scale(self, deployment: Ref, replicas: int) -> ClusterObject:
        self.transcript.add(f"scale {deployment}", replicas)
        return await super().scale(deployment, replicas)

    @override
    async def evict(self, pod: Ref, uid: str) -> None:
        self.transcript.add(f"evict {pod}", uid)
        await super().evict(pod, uid)

    @override
    async def record_event(self, event: ObjectManifest) -> None:
        self.transcript.add(f"event {event.name}", dict(event.body))
        await super().record_event(event)


def a_fleet(*paths: str) -> tuple[Fleet, Transcript]:
    """Return a fleet with the objects of these files, and what is written to its cluster."""
    fleet, cluster = Fleet(), RecordingCluster()
    fleet.cluster = cluster
    fleet.restart()
    for path in paths:
        for body in yaml.safe_load_all((EXAMPLES / path).read_text(encoding="utf-8")):
            if (kind := KINDS.get(body["kind"])) is not None:
                created = {"creationTimestamp": "2026-11-20T11:59:00Z"}
                wire = json.loads(json.dumps(body, default=str))
                fleet.cluster.put(kind, wire | {"metadata": wire["metadata"] | created})
    return fleet, cluster.transcript


def add_nodes(fleet: Fleet, pool: str, count: int = 1, **devices: Any) -> None:
    """Add nodes that a pool of the examples selects."""
    key = ObjectKey(ACCELERATOR_POOLS.plural, "", pool)
    labels = fleet.cluster.objects[key]["spec"]["nodeSelector"]
    for index in range(count):
        product = labels["nvidia.com/gpu.product"]
        fleet.add_node(f"{pool}-{index}", pool, product=product, labels=labels, **devices)


async def play(fleet: Fleet, cycles: int) -> None:
    for _ in range(cycles):
        fleet.cluster.transcript.entries.append(f"--- {fleet.at:%H:%M:%S}")  # type: ignore[attr-defined] # a RecordingCluster
        await fleet.cycle()


def conclude(fleet: Fleet, transcript: Transcript) -> None:
    """Add what is read of what was written."""
    kinds = {kind.plural for kind in PLAN_INPUT_KINDS}
    objects: dict[str, list[Any]] = {}
    for key, body in sorted(fleet.cluster.objects.items()):
        if key.plural in kinds:
            objects.setdefault(key.plural, []).append(body)
    inputs = FleetInputs(at=fleet.at, objects=objects, readings=fleet.observations.readings)
    snapshot = inputs.snapshot
    decision = inputs.plan(snapshot)
    for service in snapshot.services:
        transcript.add(f"explain {service.ref}", explain(snapshot, decision, service.ref))
    observed = GatewayObservations(
        services=snapshot.services,
        pods=snapshot.pods,
        budgets=snapshot.budgets,
        pools=snapshot.pools,
    )
    for model in build_directory(observed, RateLimitsSpec()).models:
        transcript.add(f"gateway {model.service}", model)
    for line, amount in fleet.bill.lines.items():
        transcript.add(f"bill {line}", amount)


async def first_examples() -> Transcript:
    """Start, serve a burst, restart, lose a node, move one service and delete another."""
    fleet, transcript = a_fleet("00-pools.yaml", "10-team-a.yaml", "20-team-b.yaml")
    add_nodes(fleet, "a100-reserved", 2, slices={"1g.10gb": 4, "3g.40gb": 1}, whole=1)
    add_nodes(fleet, "h100-ondemand", whole=4)
    fleet.add_budget("team-b", "60")
    await play(fleet, 8)
    chat = Ref("team-a", "chat")
    fleet.running[chat], fleet.waiting[chat] = 300.0, 150.0
    await play(fleet, 8)
    fleet.restart()
    fleet.running[chat], fleet.waiting[chat] = 1.0, 0.0
    await play(fleet, 3)
    fleet.cluster.discard(ObjectKey("nodes", "", "a100-reserved-0"))
    await play(fleet, 4)
    assistant = ObjectKey("inferenceservices", "team-b", "assistant")
    fleet.cluster.objects[assistant]["spec"]["placement"] = {"pools": ["h100-ondemand"]}
    fleet.cluster.touch(assistant)
    await play(fleet, 12)
    fleet.cluster.discard(ObjectKey("inferenceservices", "team-b", "mail"))
    await play(fleet, 20)
    conclude(fleet, transcript)
    return transcript


async def converted_manifests() -> Transcript:
    """Serve what other platforms publish."""
    names = sorted(path.name for path in (EXAMPLES / "converted").glob("*.yaml"))
    fleet, transcript = a_fleet(*(f"converted/{name}" for name in names))
    for pool, count in {"l4": 2, "a100": 2, "h100": 4, "gh200": 1, "b200": 1}.items():
        add_nodes(fleet, pool, count, whole=8)
    add_nodes(fleet, "a100-slices", 3, slices={"1g.10gb": 7})
    await play(fleet, 3)
    conclude(fleet, transcript)
    return transcript


async def planned_slices() -> Transcript:
    """Plan the slices of a pool, carry the plan out, and move a service to others."""
    fleet, transcript = a_fleet("mig/partition.yaml")
    pool = fleet.cluster.objects[ObjectKey(ACCELERATOR_POOLS.plural, "", "a100-mig")]
    pool["spec"]["mig"] |= {"mode": "Auto", "maintenanceWindow": None}
    add_nodes(fleet, "a100-mig", 2, slices={"3g.40gb": 2})
    fleet.serve("small", placement={"mig": "Auto"}, scaling={"minReplicas": 2, "maxReplicas": 5})
    await play(fleet, 12)
    fleet.running[Ref("team-a", "small")] = 900.0
    await play(fleet, 12)
    conclude(fleet, transcript)
    return transcript


async def a_batch() -> Transcript:
    """Start an attempt on spot, beside a service that has the rest."""
    fleet, transcript = a_fleet("00-pools.yaml", "10-team-a.yaml", "batch/night.yaml")
    add_nodes(fleet, "a100-spot", slices={"1g.10gb": 7})
    add_nodes(fleet, "a100-reserved", slices={"1g.10gb": 2})
    await play(fleet, 4)
    conclude(fleet, transcript)
    return transcript


def random_steps(seed: int, count: int) -> list[generated.FleetStep]:
    rng = random.Random(seed)  # noqa: S311 - a test's states
    return [
        generated.FleetStep(
            passed=rng.choice((1, 5, 15, 45)),
            name=rng.choice(generated.NAMES),
            waiting=rng.choice((0.0, 0.0, 4.0, 12.0, 40.0)),
            replicas=rng.choice((None, None, 2, 3)),
            pods=rng.randint(0, 4),
            change=rng.choice(sorted(generated.CHANGES)),
        )
        for _ in range(count)
    ]


SEQUENCES = [
    generated.SPIKE_AFTER_A_LULL,
    generated.A_MODEL_THAT_IS_READ_AND_FETCHED,
    generated.AN_ENGINE_THAT_STALLS,
    generated.A_REPLICA_THAT_HOLDS_ALL_REQUESTS,
    generated.A_LOAD_AFTER_AN_HOUR_WITHOUT[80:116],
    generated.A_REPLICA_THAT_LEAVES,
    *(random_steps(seed, 30) for seed in range(2)),
]


async def generated_states() -> Transcript:
    """Decide on the states of the test of incremental plans."""
    transcript = Transcript()
    for sequence in SEQUENCES:
        transcript.entries.append("--- sequence")
        add_decisions(transcript, sequence)
    return transcript


def add_decisions(transcript: Transcript, sequence: list[generated.FleetStep]) -> None:
    incremental, snapshot, memory = Incremental(), generated.initial_snapshot(), NO_MEMORY
    seen: dict[str, object] = {}
    for step in sequence:
        transcript.entries.append(f"--- {step}")
        snapshot = generated.next_snapshot(snapshot, step)
        if step.change == "refused":
            memory = replace(memory, meters={})
        decision = plan_of(snapshot, memory=memory, incremental=incremental)
        memory = memory.after(decision)
        for ref, service_plan in decision.service_plans.items():
            if seen.get(str(ref)) is service_plan:
                continue
            seen[str(ref)] = service_plan
            view = decision.budgets_by_namespace.get(ref.namespace)
            status = service_status(snapshot, service_plan, view, None)
            transcript.add(f"status {ref}", wire_format(status))
            for manifest in service_manifests(service_plan):
                transcript.add(f"apply {manifest.key.describe()}", dict(manifest.body))
            transcript.add(f"drain {ref}", service_plan.drain)
            transcript.add(f"delete for {ref}", service_plan.removable_deployments)
    for ref in decision.service_plans:
        transcript.add(f"explain {ref}", explain(snapshot, decision, ref))


SCENES: dict[str, Callable[[], Any]] = {
    "examples": first_examples,
    "converted": converted_manifests,
    "slices": planned_slices,
    "batch": a_batch,
    "generated": generated_states,
}


@pytest.mark.parametrize("name", SCENES)
async def test_what_is_written_is_as_before(name: str, request: pytest.FixtureRequest) -> None:
    transcript = await SCENES[name]()
    path = WRITTEN / f"{name}.xz"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lzma.compress("\n".join(transcript.entries).encode()))
    expected = re.split(r"\n(?! )", lzma.decompress(path.read_bytes()).decode())
    if expected != transcript.entries:
        pytest.fail("\n".join(itertools.islice(differences(expected, transcript.entries), 200)))


def differences(expected: list[str], actual: list[str]) -> Iterator[str]:
    """Yield what differs, below the first line of each entry; --update-golden accepts it."""
    matcher = difflib.SequenceMatcher(None, expected, actual, autojunk=False)
    for tag, *bounds in matcher.get_opcodes():
        if tag != "equal":
            start, end, new_start, new_end = bounds
            before = "\n".join(expected[start:end]).splitlines()
            after = "\n".join(actual[new_start:new_end]).splitlines()
            yield f"=== {(before or after)[0]}"
            yield from list(difflib.unified_diff(before, after, n=1, lineterm=""))[2:]
