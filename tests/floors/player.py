"""Generates fleets by a seed, plays what meets in them, and judges floors, the end and its cost."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal

from tessera.api.ref import Ref
from tests.builders import H100
from tests.fault_sequences.language import Fault, Occurrence
from tests.floors.costs import dollars_above_cheapest
from tests.floors.events import EVENTS
from tests.floors.fleet import GPU, NAMESPACE, SLICE, TICK, FloorFleet
from tests.floors.kube import PodTimes

# Of a fleet, with which something happens to the plan of its next cycle.
_FIRST_EVENTS = tuple(fault for fault in EVENTS if fault.name != "late-controllers")
_SPREAD_SECONDS = 240.0
_REST = timedelta(minutes=30)
_QUIET = timedelta(minutes=3)
# What a message names that the reader can change.
_WAY_OUT = re.compile(r"\b([A-Z][A-Za-z]+/[a-z0-9]|spec\.|quota|image)", re.IGNORECASE)
_UNDER_WAY = ("RollingOut", "Starting", "Draining")
# As many of each: tier, price of a GPU, product, and whether in slices.
_POOLS: Mapping[str, tuple[str, str, str | None, bool]] = {
    "a100": ("Reserved", "2.00", None, False),
    "a100-mig": ("Reserved", "1.68", None, True),
    "a100-od": ("OnDemand", "3.36", None, False),
    "a100-od-mig": ("OnDemand", "3.36", None, True),
    "h100-od": ("OnDemand", "2.99", H100, False),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a fleet lost, and what is wrong with its end."""

    ticks_below_floor: int
    unsettled: int
    dollars_above_cheapest: Decimal
    findings: Sequence[str]


def generated_fleet(rng: random.Random, seed: int) -> FloorFleet:
    """Return a fleet of one or two services on one to three pools, whose floors have room."""
    fleet = FloorFleet.begin(seed, PodTimes(start=(10, 60)))
    devices = dict.fromkeys(rng.sample(sorted(_POOLS), rng.choice((1, 2, 2, 3, 3))), 0)
    for name in devices:
        tier, price, product, in_slices = _POOLS[name]
        fleet.add_pool(name, tier, price)
        devices[name] = rng.randint(2, 5) if in_slices else rng.randint(1, 3)
        count = {"slices": devices[name]} if in_slices else {"whole": devices[name]}
        if product is not None:
            fleet.add_node(name, **count, product=product)
        elif not in_slices and devices[name] > 1 and rng.random() < 0.5:
            fleet.add_node(name, whole=1)
            fleet.add_node(name, whole=devices[name] - 1)
        else:
            fleet.add_node(name, **count)
    free = sum(devices.values())
    for name in ("chat", "sage")[: rng.randint(1, 2)]:
        if free:
            floor = rng.randint(1, min(5, free))
            free -= floor
            scaling = {"maxReplicas": rng.choice((floor, floor + 4))}
            fleet.serve(name, floor, scaling=scaling)
    # Somebody else has most of the rest, so that what meets is seldom without effect.
    for name in rng.sample(sorted(devices), len(devices)):
        taken = min(devices[name], max(0, free - rng.choice((0, 0, 1, 2))))
        fleet.take_devices(name, taken, fleet.resource(name), priority=9)
        free -= taken
    return fleet


@dataclass(slots=True)
class FloorPlay:
    """One sequence: a generated fleet, and what meets in it."""

    seed: int
    events: Sequence[Fault[FloorFleet]] = ()
    """Drawn by the seed where none are given."""
    log: list[str] = field(default_factory=list)

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
                [*fleet.judge.findings[:3], *findings],
            )
        finally:
            await fleet.close()

    def _occurrences(
        self, fleet: FloorFleet, rng: random.Random
    ) -> list[Occurrence[FloorFleet]]:
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
            await fleet.run(TICK.total_seconds())


def end_findings(fleet: FloorFleet) -> list[str]:
    """Return what is neither clean nor named half an hour after the last event."""
    findings, last = [], fleet.judge.last_change
    if last is not None and fleet.kube.at - last < _QUIET:
        findings.append(f"Deployments or pods still change, at {last:%H:%M:%S}")
    floors, healthy = fleet.judge.floors(), fleet.judge.healthy()
    for service in fleet.services():
        floor, count = floors[Ref(NAMESPACE, service)], healthy[Ref(NAMESPACE, service)]
        progressing = fleet.condition(service, "Progressing").get("reason")
        conditions = [
            fleet.condition(service, kind) for kind in ("Accepted", "Placed", "Progressing", "Ready")
        ]
        is_named = any(
            each.get("status") == "False" and _WAY_OUT.search(each["message"])
            for each in conditions
        )
        is_under_way = progressing in _UNDER_WAY
        if is_under_way and (count >= floor or not is_named):
            findings.append(f"{service} is {progressing} for ever with {count} healthy of {floor}")
        elif (count < floor or fleet.condition(service, "Ready").get("status") != "True") and (
            not is_named
        ):
            findings.append(f"{service} has {count} healthy of {floor}, and no condition says why")
    return findings


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
    """Judge the next plan, and the controllers' next step, of a generated fleet with one event."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    fleet = generated_fleet(rng, seed)
    try:
        await fleet.settle(300)
        before = fleet.judge.ticks_below_floor
        event = rng.choice(_FIRST_EVENTS)
        targets = sorted(event.targets(fleet))
        if targets:
            event.begin(fleet, rng.choice(targets))
        await fleet.run(2 * TICK.total_seconds())
        return Verdict(
            fleet.judge.ticks_below_floor - before, 0, Decimal(0), fleet.judge.findings[:3]
        )
    finally:
        await fleet.close()
