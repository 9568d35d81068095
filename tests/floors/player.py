"""Generates fleets by a seed, plays what meets in them, and judges floors, the end and its cost."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal

from tessera.api.ref import Ref
from tests.builders import A100, H100
from tests.fault_sequences.language import Fault, Occurrence
from tests.floors.costs import dollars_above_cheapest
from tests.floors.events import EVENTS
from tests.floors.fleet import NAMESPACE, TICK, FloorFleet
from tests.floors.kube import BAD_IMAGE, PodTimes

_SPREAD_SECONDS = 240.0
_REST = timedelta(minutes=30)
_QUIET = timedelta(minutes=3)
# What a message names that the reader can change.
_WAY_OUT = re.compile(r"[A-Z][A-Za-z]+/[a-z0-9]|\bspec\.|[Qq]uota|\bimage\b")
_UNDER_WAY = ("RollingOut", "Starting", "Draining")
# Tier, price of a GPU, product, and whether in slices.
_POOLS: Mapping[str, tuple[str, str, str, bool]] = {
    "a100": ("Reserved", "2.00", A100, False),
    "a100-mig": ("Reserved", "1.68", A100, True),
    "a100-od": ("OnDemand", "3.36", A100, False),
    "a100-od-mig": ("OnDemand", "3.36", A100, True),
    "h100-od": ("OnDemand", "2.99", H100, False),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a fleet lost, and what is wrong with its end."""

    ticks_below_floor: int
    unsettled: int
    dollars_above_cheapest: Decimal
    findings: Sequence[str]

    @property
    def is_clean(self) -> bool:
        return not (self.ticks_below_floor or self.unsettled or self.dollars_above_cheapest)


def generated_fleet(rng: random.Random, seed: int) -> FloorFleet:
    """Return a fleet of one or two services on one to three pools, whose floors have room."""
    fleet = FloorFleet.begin(seed, PodTimes(start=(10, 60)))
    names = rng.sample(sorted(_POOLS), rng.choice((1, 2, 2, 3, 3)))
    devices = {name: _add_devices(fleet, name, rng) for name in names}
    free = sum(devices.values())
    for service in ("chat", "sage")[: rng.randint(1, 2)]:
        if free:
            floor = rng.randint(1, min(5, free))
            free -= floor
            fleet.serve(service, floor, scaling={"maxReplicas": rng.choice((floor, floor + 4))})
    # Somebody else has most of the rest, so that what meets is seldom without effect.
    for name in rng.sample(sorted(devices), len(devices)):
        taken = min(devices[name], max(0, free - rng.choice((0, 0, 1, 2))))
        fleet.take_devices(name, taken, fleet.resource(name), priority=9)
        free -= taken
    return fleet


def _add_devices(fleet: FloorFleet, name: str, rng: random.Random) -> int:
    """Add a pool with one or two nodes, and return the number of its devices."""
    tier, price, product, in_slices = _POOLS[name]
    fleet.add_pool(name, tier, price)
    if in_slices:
        slices = rng.randint(2, 5)
        fleet.add_node(name, slices=slices, product=product)
        return slices
    whole = rng.randint(1, 3)
    first = 1 if whole > 1 and rng.random() < 0.5 else whole
    fleet.add_node(name, whole=first, product=product)
    if first < whole:
        fleet.add_node(name, whole=whole - first, product=product)
    return whole


@dataclass(slots=True)
class FloorPlay:
    """One sequence: a generated fleet, and what meets in it."""

    seed: int
    events: Sequence[Fault[FloorFleet]] = ()
    """Drawn by the seed where none are given."""
    log: list[str] = field(default_factory=list)
    hit: set[str] = field(default_factory=set)
    """The names of the events that found something."""

    async def run(self) -> Verdict:
        """Play it to its rest and return the verdict."""
        rng = random.Random(self.seed)  # noqa: S311 - no secret
        fleet = generated_fleet(rng, self.seed)
        try:
            await fleet.settle(900)
            self.log += [f"begins with {line}" for line in fleet.describe() if " on " in line]
            await self._play(fleet, self._occurrences(fleet, rng), rng)
            await fleet.run(_REST.total_seconds())
            findings = end_findings(fleet)
            dollars = Decimal(0) if findings else above_cheapest(fleet)
            if dollars:
                self.log.append(f"{dollars} USD/h above the cheapest")
            self.log += fleet.describe()
            return Verdict(
                fleet.judge.ticks_below_floor,
                len(findings),
                dollars,
                [*fleet.judge.findings, *findings],
            )
        finally:
            await fleet.close()

    def _occurrences(self, fleet: FloorFleet, rng: random.Random) -> list[Occurrence[FloorFleet]]:
        """Return when each event happens: any time after the one before began."""
        events = self.events or rng.sample(EVENTS, rng.randint(3, 6))
        begins, planned = fleet.kube.at.timestamp(), []
        for event in events:
            begins += rng.choice((0.0, rng.uniform(0, 60), rng.uniform(0, _SPREAD_SECONDS)))
            ends = begins + rng.uniform(*event.seconds)
            planned.append(Occurrence(fault=event, begins=begins, ends=ends))
        return planned

    async def _play(
        self, fleet: FloorFleet, planned: list[Occurrence[FloorFleet]], rng: random.Random
    ) -> None:
        while not all(occurrence.over for occurrence in planned):
            for occurrence in planned:
                if occurrence.step(fleet, fleet.kube.at.timestamp(), rng):
                    self.log.append(f"{fleet.kube.at:%H:%M:%S} {occurrence.describe()}")
                if occurrence.target is not None:
                    self.hit.add(occurrence.fault.name)
            await fleet.run(TICK.total_seconds())


def end_findings(fleet: FloorFleet) -> list[str]:
    """Return what is neither clean nor named half an hour after the last event."""
    findings, last = [], fleet.judge.last_change
    if last is not None and fleet.kube.at - last < _QUIET:
        findings.append(f"Deployments or pods still change, at {last:%H:%M:%S}")
    floors, healthy = fleet.judge.floors(), fleet.judge.healthy()
    for service in fleet.services():
        ref = Ref(NAMESPACE, service)
        finding = _rollout_finding(fleet, service) or _condition_finding(
            fleet, service, healthy[ref], floors[ref]
        )
        if finding:
            findings.append(f"{service} {finding} with {healthy[ref]} healthy of {floors[ref]}")
    return findings


def _rollout_finding(fleet: FloorFleet, service: str) -> str:
    """Return why a rollout does not end that could: its pods or its surge are not as wanted."""
    wanted = fleet.spec(service).get("engine", {}).get("image")
    images = fleet.images(service)
    if BAD_IMAGE in images and wanted != BAD_IMAGE:
        return "keeps a bad image that its spec does not have"
    return ""


def _condition_finding(fleet: FloorFleet, service: str, count: int, floor: int) -> str:
    """Return what is under way for ever, or missing while no condition says what to do."""
    progressing = fleet.condition(service, "Progressing").get("reason")
    is_ready = fleet.condition(service, "Ready").get("status") == "True"
    is_named = any(
        each["status"] == "False" and _WAY_OUT.search(each["message"])
        for each in (*fleet.conditions(service), *fleet.budget_conditions())
    )
    if progressing in _UNDER_WAY and (count >= floor or not is_named):
        return f"is {progressing} for ever"
    if (count < floor or not is_ready) and not is_named:
        return "has no condition that says what to do"
    return ""


def above_cheapest(fleet: FloorFleet) -> Decimal:
    """Return what idle services cost beyond the cheapest, where nothing forbids a move."""
    is_moving = any(
        fleet.condition(service, "Progressing").get("reason") != "RolloutComplete"
        for service in fleet.services()
    )
    if is_moving or fleet.kube.quotas or fleet.has_budget():
        return Decimal(0)
    return sum(
        (
            dollars_above_cheapest(fleet.kube, service, floor)
            for service, floor in fleet.judge.floors().items()
        ),
        Decimal(0),
    )


async def play_one_step(seed: int) -> Verdict:
    """Judge a generated fleet at rest, then one event with the next plan and controllers' steps."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    fleet = generated_fleet(rng, seed)
    try:
        await fleet.settle(900)
        await fleet.run(_QUIET.total_seconds())
        findings = end_findings(fleet)
        dollars = Decimal(0) if findings else above_cheapest(fleet)
        event = rng.choice(EVENTS)
        targets = sorted(event.targets(fleet))
        if targets:
            event.begin(fleet, rng.choice(targets))
        await fleet.run(2 * TICK.total_seconds())
        below = fleet.judge.ticks_below_floor
        return Verdict(below, len(findings), dollars, [*fleet.judge.findings, *findings])
    finally:
        await fleet.close()
