"""The energy of a simulated fleet: all of its counters, split among its lines."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tessera.domain.cost.bill import Bill, accrue
from tessera.domain.cost.device_use import CostState
from tessera.domain.cost.energy_windows import EnergySplit
from tessera.domain.hardware.device import Hardware, slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.hardware.pools import discover
from tessera.domain.hardware.power import PowerRange
from tessera.domain.observed.snapshot import Ref
from tessera_lab.fleet.course import Course, Lifetime
from tessera_lab.fleet.energy import FleetEnergy, ReplicaHardware, fleet_energy, hosts_of, scraped
from tessera_lab.fleet.model import Purchase, Tier
from tessera_lab.fleet.policies.product import WholeGpuPool
from tessera_lab.fleet.simulation import Simulation
from tests.builders import NOW
from tests.lab.fleet.builders import Planned, a_fleet, a_trace
from tests.lab.fleet.test_simulation import random_requests

H100 = "NVIDIA-H100-80GB-HBM3"
IDLE, MOST = 70, 700
OBJECTS = WholeGpuPool(name="h100", product=H100, price="3.60", nodes=1).objects(
    Ref("lab", "chat"), {"model": {"uri": "hf://Qwen/Qwen3-8B"}}
)
WHOLE = whole_gpu_hardware(products()[H100], 1)


def on(hardware: Hardware = WHOLE, reserved: int = 0) -> ReplicaHardware:
    return ReplicaHardware(
        service=OBJECTS.service.ref,
        hardware=hardware,
        pool=OBJECTS.pools[0],
        node=OBJECTS.nodes[0],
        reserved=reserved,
    )


def a_slice(profile: str) -> Hardware:
    hardware = slice_hardware(products()[H100], profile)
    assert hardware is not None
    return hardware


def test_replicas_of_two_sizes_use_the_energy_of_their_gpus() -> None:
    activity = ((60.0, 30.0), (120.0, 60.0))
    alone, both = (
        energy_of(
            Course(
                paid_seconds=120.0,
                output_tokens=1,
                lifetimes=[
                    Lifetime(Tier.ON_DEMAND, 0.0, 120.0, 0.0, activity, size) for size in sizes
                ],
            ),
            on(),
        )
        for sizes in ((1,), (1, 2))
    )
    assert both.total.millijoules == 3 * alone.total.millijoules
    assert both.service.millijoules == 3 * alone.service.millijoules > 0


def energy_of(course: Course, replicas: ReplicaHardware) -> FleetEnergy:
    energy = fleet_energy(course, replicas)
    assert energy is not None
    return energy


def joules(energy: FleetEnergy) -> Mapping[CostState, float]:
    states = {key.line.state for key in energy.lines}
    return {
        state: sum(parts for key, parts in energy.lines.items() if key.line.state is state) / 1e3
        for state in states
    }


def busy(begin: float, end: float, share: float, tier: Tier = Tier.ON_DEMAND) -> Lifetime:
    """A replica that is ready at once, whose engine steps for a share of its time."""
    return Lifetime(tier, begin, end, begin, ((end, share * (end - begin)),))


def course_of(*lifetimes: Lifetime, seconds: float = 600.0, tokens: int = 0) -> Course:
    return Course(
        seconds=seconds, paid_seconds=seconds, lifetimes=list(lifetimes), output_tokens=tokens
    )


def played(**fields: Any) -> Course:
    trace = a_trace(random_requests(2000, 300, seed=5), 300)
    policy = Planned((0, 2), (60, 5), (120, 1), (180, 4), (240, 2))
    return Simulation(trace, replace(a_fleet(initial_replicas=2), **fields), policy).run()


@pytest.mark.parametrize("hardware", [WHOLE, whole_gpu_hardware(products()[H100], 2)])
def test_joules_of_the_service_and_idle_ones_are_all_that_the_counters_have(
    hardware: Hardware,
) -> None:
    course = played(purchase=Purchase(reserved=2), node_hold=30.0)
    energy = energy_of(course, on(hardware, reserved=2))
    assert sum(energy.lines.values()) == energy.total.millijoules > 0
    assert joules(energy)[CostState.COLD_IDLE] > 0
    assert EnergySplit.NONE not in {key.split for key in energy.lines}
    assert 0 < energy.service.millijoules < energy.total.millijoules


@pytest.mark.parametrize("profile", ["1g.10gb", "3g.40gb", "4g.40gb"])
def test_of_slices_the_rest_of_the_gpu_is_idle_or_stranded(profile: str) -> None:
    energy = energy_of(played(), on(a_slice(profile)))
    assert sum(energy.lines.values()) == energy.total.millijoules > energy.service.millijoules > 0


def test_gpus_draw_between_idle_and_maximum_by_the_time_in_which_engines_step() -> None:
    for share in (0.0, 0.25, 1.0):
        course = course_of(busy(0, 600, share), tokens=1000)
        energy = energy_of(course, on())
        expected = (IDLE + (MOST - IDLE) * share) * 600
        assert energy.total.millijoules == pytest.approx(expected * 1e3)
        assert energy.total.kwh == pytest.approx(expected / 3.6e6)
        assert energy.total.per_token == pytest.approx(expected / 1000)


def test_energy_of_a_run_is_that_of_its_lifetimes_and_steps() -> None:
    course = played()
    energy = energy_of(course, on())
    stepped = sum(lifetime.activity[-1][1] for lifetime in course.lifetimes)
    expected = IDLE * course.replica_seconds + (MOST - IDLE) * stepped
    assert energy.total.millijoules == pytest.approx(expected * 1e3, rel=1e-6)
    assert energy.service.millijoules == energy.total.millijoules
    assert 0 < stepped < course.replica_seconds


def test_a_reserved_gpu_without_a_replica_is_idle() -> None:
    course = course_of(busy(0, 600, 0.5, Tier.RESERVED))
    energy = energy_of(course, on(reserved=2))
    assert joules(energy)[CostState.COLD_IDLE] == pytest.approx(IDLE * 600)
    assert energy.total.millijoules == pytest.approx((2 * IDLE + 315) * 600e3)


def test_two_slices_share_one_gpu() -> None:
    half = a_slice("3g.40gb")
    alone = energy_of(course_of(busy(0, 600, 0.5)), on(half))
    both = energy_of(course_of(busy(0, 600, 0.5), busy(0, 600, 0.5)), on(half))
    extra = (MOST - IDLE) * 0.5 * 60 / 132 * 600
    assert both.total.millijoules - alone.total.millijoules == pytest.approx(extra * 1e3)
    assert both.service.millijoules > alone.service.millijoules


def test_a_line_without_energy_for_a_day_is_still_counted() -> None:
    days = course_of(
        busy(0, 600, 0.5, Tier.RESERVED),
        busy(200_000, 200_600, 0.5, Tier.RESERVED),
        seconds=201_000.0,
    )
    energy = energy_of(days, on(reserved=1))
    assert sum(energy.lines.values()) == energy.total.millijoules


def test_what_is_scraped_is_billed_as_the_dollars_are() -> None:
    course = played(purchase=Purchase(reserved=2))
    replicas = on(reserved=2)
    hosts, bill = hosts_of(course, replicas), Bill()
    views = discover([replicas.pool], [host.node for host in hosts], NOW.date())
    for snapshot in scraped(replicas, hosts, PowerRange(IDLE, MOST)):
        bill = accrue(bill, snapshot, views)
    hours = sum(nanos for line, nanos in bill.lines.items() if line.namespace) / 1e9 / 3.6
    assert hours * 3600 == pytest.approx(course.replica_seconds, rel=1e-6)
    energy = energy_of(course, replicas)
    billed = {(line.state, line.namespace) for line, nanos in bill.lines.items() if nanos}
    assert {(key.line.state, key.line.namespace) for key in energy.lines} == billed


def test_without_known_watts_there_is_no_energy() -> None:
    unmeasured = whole_gpu_hardware(products()["NVIDIA-GH200-144G-HBM3e"], 1)
    assert fleet_energy(course_of(busy(0, 60, 1.0)), on(unmeasured)) is None


def test_without_a_token_there_are_no_joules_of_one() -> None:
    energy = energy_of(course_of(busy(0, 60, 0.0)), on())
    assert energy.total.per_token is None
    assert math.isclose(energy.total.kwh, IDLE * 60 / 3.6e6)
