"""A recorded day of GPUs: whoever used them, rows sum to what their counters say.

`make record-energy` recorded it: slices and whole GPUs, loads, a driver that was loaded again, a
service that moved, and a node whose GPU was partitioned.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from bench.recorded_energy import RecordedEnergy, read_energy
from tessera.domain.cost.energy import UNSPLIT, EnergyMeter, meter_energy
from tessera.domain.cost.energy_windows import EnergyGap, EnergySplit
from tessera.domain.hardware.pools import discover
from tessera.domain.observed.energy import EnergySource

DAY = Path(__file__).parent / "data" / "energy_day.json.xz"


@cache
def the_day() -> RecordedEnergy:
    return read_energy(DAY)


@cache
def meters() -> tuple[EnergyMeter, ...]:
    """The meter after each round."""

    def played() -> Iterator[EnergyMeter]:
        meter = EnergyMeter()
        for cycle in the_day().cycles:
            snapshot = cycle.snapshot
            views = discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
            meter = meter_energy(meter, snapshot, views)
            yield meter

    return tuple(played())


def by_state(meter: EnergyMeter) -> Mapping[tuple[str, str, str], float]:
    """Joules by source, split and state, as the operator shows them."""
    millijoules: Counter[tuple[str, str, str]] = Counter()
    for key, energy in meter.lines.items():
        millijoules[key.source.value, key.split.value, str(key.state)] += energy.millijoules
    return {labels: amount / 1000 for labels, amount in millijoules.items()}


def counted() -> Mapping[str, tuple[int, int]]:
    """Of each GPU the millijoules between its first sample used and its last one, by the scrapes
    of its counter; and those of the window in which it fell."""
    ends: dict[str, list[float]] = {}
    fallen: dict[str, tuple[float, float]] = {}
    for before, after in pairwise(meters()):
        for uuid, gpu in after.last.items():
            last = before.last.get(uuid)
            ends.setdefault(uuid, [(last or gpu).at.timestamp()] * 2)[1] = gpu.at.timestamp()
            assert gpu.millijoules is not None
            if last and last.millijoules is not None and last.millijoules > gpu.millijoules:
                fallen[uuid] = last.at.timestamp(), gpu.at.timestamp()
    amounts = {}
    for uuid, (begin, end) in ends.items():
        samples = dict(the_day().counters[uuid])
        times = [at for at in samples if begin - 0.001 <= at <= end + 0.001]
        reset = fallen.get(uuid, (0.0, 0.0))
        windows = list(pairwise(sorted(times)))
        lost = [w for w in windows if reset[0] - 0.001 <= w[0] and w[1] <= reset[1] + 0.001]
        rises = {w: samples[w[1]] - samples[w[0]] for w in windows}
        amounts[uuid] = (
            sum(rise for window, rise in rises.items() if window not in lost),
            sum(max(0, rises[window]) for window in lost),
        )
    return amounts


def test_tenants_idle_stranded_and_unsplit_sum_to_the_counters() -> None:
    measured = sum(
        energy.millijoules
        for key, energy in meters()[-1].lines.items()
        if key.source is EnergySource.MEASURED
    )
    assert measured == sum(amount for amount, _ in counted().values())


def test_the_rest_is_the_window_in_which_a_driver_was_loaded_again() -> None:
    last = meters()[-1]
    assert {gap for _, gap in last.gaps} == {EnergyGap.COUNTER_RESET}
    # Both GPUs of the node, between two rounds of 30 seconds each.
    assert last.gaps["whole", EnergyGap.COUNTER_RESET] == pytest.approx(60, abs=0.1)
    sampled = sum(
        e.millijoules for key, e in last.lines.items() if key.source is EnergySource.POWER
    )
    # Power was sampled at the ends of the window, under load; what was counted after the restart
    # alone is a part of it.
    assert 0 < sum(lost for _, lost in counted().values()) < sampled
    assert not any(key.source is EnergySource.MODEL for key in last.lines)


def test_the_day_has_what_it_is_recorded_for() -> None:
    last = meters()[-1]
    assert {str(key.state) for key in last.lines} >= {
        *("serving", "warmIdle", "loading", "coldIdle", "stranded"),
        UNSPLIT,
    }
    assert {key.line.profile for key in last.lines} >= {"1g.10gb", "2g.20gb", "whole"}
    pools = {(key.line.service, key.line.pool) for key in last.lines}
    assert {("moves", "whole"), ("moves", "slices"), ("chat", "slices")} <= pools
    unsplit = [key for key in last.lines if key.split is EnergySplit.NONE]
    assert {key.line.pool for key in unsplit} == {"slices"}


def test_the_operator_showed_a_round_of_the_same_day() -> None:
    shown = {tuple(labels): joules for *labels, joules in the_day().joules}
    assert any(by_state(meter) == pytest.approx(shown) for meter in meters())


@pytest.mark.parametrize(("source", "off"), [(EnergySource.POWER, 0.05), (EnergySource.MODEL, 0.2)])
def test_how_far_each_pool_is_off_without_counters(source: EnergySource, off: float) -> None:
    """The world's GPUs follow another curve than the straight line of the table."""
    meter = EnergyMeter()
    for cycle in the_day().cycles:
        readings = cycle.snapshot.readings
        assert readings is not None
        assert readings.energy is not None
        gpus = [replace(gpu, millijoules=None) for gpu in readings.energy.gpus]
        left = tuple(gpus) if source is EnergySource.POWER else ()
        energy = replace(readings.energy, gpus=left)
        snapshot = replace(cycle.snapshot, readings=replace(readings, energy=energy))
        views = discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
        meter = meter_energy(meter, snapshot, views)
    assert {key.source for key in meter.lines} == {source}
    known, estimated = by_pool(meters()[-1]), by_pool(meter)
    assert known.keys() == estimated.keys()
    assert all(abs(estimated[pool] / known[pool] - 1) < off for pool in known)


def by_pool(meter: EnergyMeter) -> Mapping[str, int]:
    millijoules: Counter[str] = Counter()
    for key, energy in meter.lines.items():
        millijoules[key.line.pool] += energy.millijoules
    return millijoules
