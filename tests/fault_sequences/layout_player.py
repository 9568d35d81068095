"""Plays two faults during a repartition, observes every version of the cluster, and judges."""

import random
import re
from collections import Counter
from dataclasses import dataclass, field

from tessera.api.pool_reasons import LayoutReady
from tessera.api.ref import Ref
from tessera.domain.hardware.gpu_layouts import geometry
from tessera.domain.mig_backends.devices import (
    DEVICE_PLUGIN_LABEL,
    FEATURE_DISCOVERY_LABEL,
    profile_of,
)
from tessera.domain.observed.node_layout import TAINT
from tessera.domain.observed.snapshot import Pod
from tessera.resources.api_resources import PODS
from tessera.resources.manifest import ObjectKey
from tests.fault_sequences.language import FaultSequence, Occurrence, occurrences, sequence_of
from tests.fault_sequences.layout_faults import LAYOUT_FAULTS
from tests.fault_sequences.layout_fleet import POOL, FaultyNode, LayoutFleet
from tests.mig_builders import A100
from tests.repartition.machine import InvariantError
from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS, QUIET, TICK

# The first fault begins within this time after the user's change.
_SPREAD_SECONDS = 240.0
# Clean or named within 5 minutes, counted from the last progress of the rollout.
_SETTLE_TICKS = int(300 / TICK)
_MAX_TICKS = int(45 * 60 / TICK)
_SCENARIOS = (
    "GPUs in use are cut",
    "one slice is free",
    "every slice is too large",
    "a service comes",
    "a service wants a GPU for itself",
    "little room",
)
# Reasons that say what has to be done, and not that something is under way.
_UNDER_WAY = frozenset({LayoutReady.REPARTITIONING, LayoutReady.PLANNING})
_OBJECT = re.compile(r"\b([A-Z][A-Za-z]+/[a-z0-9]|spec\.|GPU \d)")


@dataclass(slots=True)
class FleetObserver:
    """Follows every version of the cluster: floors, streams, and slices under processes."""

    fleet: LayoutFleet
    findings: list[str] = field(default_factory=list)
    _seen: int = 0
    _pods: dict[ObjectKey, Pod] = field(default_factory=dict)
    _reached: Counter[Ref] = field(default_factory=Counter)

    def look(self) -> None:
        """Read what changed since the last look."""
        history = self.fleet.kube.history
        for _, key, seen in history[self._seen :]:
            if key.plural == PODS.plural:
                if seen is None or not isinstance(seen.plan_input, Pod):
                    self._pods.pop(key, None)
                else:
                    self._pods[key] = seen.plan_input
                self._check_floors()
        self._seen = len(history)
        self._forget_lost()
        for machine in self.fleet.machines:
            if not self.fleet.node(machine.name).configured_by_hand:
                self._note(*machine.gpu_driver.refused_destructions)
        self._note(*(f"requests of {text} ended" for text in self.fleet.faulty_kube.broken_streams))

    def _ready(self) -> Counter[Ref]:
        return Counter(pod.service for pod in self._pods.values() if pod.takes_requests)

    def _forget_lost(self) -> None:
        """A service that has its floor again may not fall below it once more."""
        ready, lost = self._ready(), self.fleet.faulty_kube.lost
        for service, floor in self.fleet.min_replicas.items():
            if ready[service] >= floor:
                lost[service] = 0

    def _check_floors(self) -> None:
        ready = self._ready()
        lost = self.fleet.faulty_kube.lost
        for service, floor in self.fleet.min_replicas.items():
            self._reached[service] = min(floor, max(self._reached[service], ready[service]))
            if ready[service] + lost[service] < self._reached[service]:
                self._note(
                    f"{self.fleet.kube.at:%H:%M:%S} {service} has {ready[service]} ready of "
                    f"{self._reached[service]}, {lost[service]} of them lost by a fault"
                )

    def _note(self, *findings: str) -> None:
        self.findings += [finding for finding in findings if finding not in self.findings]


@dataclass(slots=True)
class LayoutPlay:
    """One sequence on one backend."""

    backend: str
    sequence: FaultSequence[LayoutFleet]
    log: list[str] = field(default_factory=list)

    async def run(self) -> list[str]:
        """Play it and return everything that is wrong; nothing if all is well."""
        rng = random.Random(self.sequence.seed)  # noqa: S311 - no secret
        name = rng.choice(_SCENARIOS)
        scenario = SCENARIOS[name]
        self.log.append(f"scenario: {name}")
        fleet = LayoutFleet.begin(BACKENDS[self.backend], scenario, self.sequence.seed)
        observer = FleetObserver(fleet)
        try:
            scenario.begin(fleet)
            await fleet.run_until_quiet()
            observer.look()
            scenario.change(fleet)
            planned = occurrences(self.sequence, rng, fleet.ticks * TICK, _SPREAD_SECONDS, TICK)
            await self._play(fleet, observer, planned, rng)
            await self._settle(fleet, observer)
            return [*observer.findings, *end_findings(fleet)]
        except InvariantError as error:
            return [*observer.findings, str(error)]
        finally:
            self.log += fleet.describe()
            await fleet.close()

    async def _play(
        self,
        fleet: LayoutFleet,
        observer: FleetObserver,
        planned: list[Occurrence[LayoutFleet]],
        rng: random.Random,
    ) -> None:
        while not all(occurrence.over for occurrence in planned):
            for occurrence in planned:
                if occurrence.step(fleet, fleet.ticks * TICK, rng):
                    self._note(fleet, occurrence.describe())
            await fleet.tick()
            observer.look()

    async def _settle(self, fleet: LayoutFleet, observer: FleetObserver) -> None:
        """Go on until the fleet is quiet or makes no progress for five minutes."""
        progress, unchanged, quiet = None, 0, 0
        for _ in range(_MAX_TICKS):
            version = fleet.kube.version
            writes = await fleet.tick()
            observer.look()
            quiet = 0 if writes or version != fleet.kube.version or fleet.mig.units else quiet + 1
            if quiet >= QUIET and not end_findings(fleet):
                return
            status = fleet.mig
            current = (
                fleet.reason,
                status.target and status.target.name,
                status.done,
                [(unit.node, unit.phase, unit.gpus, unit.attempt) for unit in status.units],
            )
            if current != progress:
                self._note(fleet, f"{fleet.reason} {current[2]} {current[3]}")
            progress, unchanged = current, unchanged + 1 if current == progress else 0
            if unchanged >= _SETTLE_TICKS:
                return

    def _note(self, fleet: LayoutFleet, text: str) -> None:
        self.log.append(f"{fleet.kube.at:%H:%M:%S} {text}")


def end_findings(fleet: LayoutFleet) -> list[str]:
    """Return what is neither clean nor named at the end."""
    reason, message = _verdict(fleet)
    named = reason is not None and not reason.is_true
    units = {unit.node for unit in fleet.mig.units}
    findings = []
    if named and reason in _UNDER_WAY:
        findings.append(f"it goes on for ever: {reason}: {message}")
    elif named and not _OBJECT.search(message):
        findings.append(f"it names no object: {reason}: {message}")
    for machine in fleet.machines:
        node = fleet.node(machine.name)
        if node.powered and not (named and node.name in units):
            findings += _node_findings(fleet, node)
    if reason == LayoutReady.AS_PLANNED:
        findings += _layout_findings(fleet) + _service_findings(fleet) + _floor_findings(fleet)
    return findings


def _verdict(fleet: LayoutFleet) -> tuple[LayoutReady | None, str]:
    """Return reason and message of LayoutReady; None without the pool."""
    conditions = fleet.kube.objects.get(POOL, {}).get("status", {}).get("conditions", ())
    return next(
        (
            (
                next(word for word in LayoutReady if word == condition["reason"]),
                condition["message"],
            )
            for condition in conditions
            if condition["type"] == "LayoutReady"
        ),
        (None, ""),
    )


def _node_findings(fleet: LayoutFleet, node: FaultyNode) -> list[str]:
    """Return what is left on a node that is in no unit."""
    body = fleet.kube.objects[node.key]
    findings = []
    if TAINT in [taint["key"] for taint in body["spec"].get("taints", [])]:
        findings.append(f"{node.name} is left with the taint")
    for label in (DEVICE_PLUGIN_LABEL, FEATURE_DISCOVERY_LABEL):
        if node.labels.get(label) != "true":
            findings.append(f"{node.name} is left with {label}={node.labels.get(label)}")
    offered = Counter[str]()
    for name, count in body["status"]["allocatable"].items():
        if (profile := profile_of(A100, name)) is not None and int(count):
            offered[profile] += int(count)
    slices = Counter[str]()
    for layout in node.layouts().values():
        slices.update(placement.profile for placement in layout)
    if offered != slices:
        findings.append(f"{node.name} offers {dict(offered)} and has the slices {dict(slices)}")
    return findings


def _layout_findings(fleet: LayoutFleet) -> list[str]:
    """Return nodes whose slices are not those of the plan.

    Without an agent nobody knows which GPU has which of the layouts of its node.
    """
    target = fleet.mig.target
    if target is None:
        return ["AsPlanned without a plan"]
    # A plan for the agent says where each slice begins.
    pinned = any("@" in text for node in target.nodes for gpu in node.gpus for text in gpu.slices)
    findings = []
    for node in target.nodes:
        layouts = fleet.node(node.node).layouts()
        actual = [
            Counter(f"{placement.profile}@{placement.start}" for placement in layout)
            if pinned
            else Counter(dict(geometry(layout)))
            for layout in (layouts[gpu.gpu] for gpu in node.gpus)
        ]
        planned = [Counter(gpu.slices) for gpu in node.gpus]
        if not fleet.backend.has_agent:
            actual, planned = sorted(actual, key=_order), sorted(planned, key=_order)
        if actual != planned:
            findings.append(
                f"AsPlanned, but {node.node} has {list(map(dict, actual))} instead of "
                f"{list(map(dict, planned))}"
            )
    return findings


def _order(slices: Counter[str]) -> list[tuple[str, int]]:
    return sorted(slices.items())


def _service_findings(fleet: LayoutFleet) -> list[str]:
    """Return services that do not stand on the profile of the plan."""
    target = fleet.mig.target
    assert target is not None
    profiles = {service.service: service.profile for service in target.services}
    findings = []
    for service in fleet.min_replicas:
        pods = [pod for _, pod in fleet.kube.pods() if pod.service == service]
        actual = {profile_of(A100, device) for pod in pods for device in pod.devices}
        if str(service) in profiles and actual != {profiles[str(service)]}:
            findings.append(
                f"AsPlanned, but {service} stands on {sorted(map(str, actual))} instead of "
                f"{profiles[str(service)]}"
            )
    return findings


def _floor_findings(fleet: LayoutFleet) -> list[str]:
    ready = Counter(pod.service for _, pod in fleet.kube.pods() if pod.takes_requests)
    return [
        f"AsPlanned, but {service} has {ready[service]} ready of {floor}"
        for service, floor in fleet.min_replicas.items()
        if ready[service] < floor
    ]


def layout_sequence(backend: str, seed: int) -> FaultSequence[LayoutFleet]:
    """Return the sequence of a seed on a backend."""
    return sequence_of(LAYOUT_FAULTS, seed, backend)
