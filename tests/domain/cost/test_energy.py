"""The energy of GPUs: its rows sum to the differences of the samples, to the millijoule.

The A100 of these tests draws 62 W when idle, so 930,000 mJ in 15 seconds, and 400 W at most; a
1g.10gb slice weighs 15 of 112 parts of it, and has 14 of its 108 multiprocessors.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from tessera.domain.cost.bill import LINE_LIFETIME, MAX_SERVICES
from tessera.domain.cost.energy import (
    UNSPLIT,
    Energy,
    EnergyLine,
    EnergyMeter,
    IdleGPU,
    meter_energy,
    restored_meter,
)
from tessera.domain.cost.energy_windows import MAX_WINDOW, EnergyGap, EnergySplit
from tessera.domain.hardware.pools import discover
from tessera.domain.observed.energy import (
    DeviceReading,
    EnergyReadings,
    EnergySource,
    GPUReading,
)
from tessera.domain.observed.snapshot import (
    BatchPod,
    Node,
    Pod,
    PodReading,
    Pool,
    Readings,
    Ref,
    Snapshot,
)
from tests.builders import NOW, a_node, a_pod, a_pool, at
from tests.properties import examples

IDLE_MILLIJOULES = 930_000
SLICE = "1g.10gb"
CHAT = Ref("team-a", "chat-0")
MEASURED, POWER, MODEL = EnergySource
ACTIVITY, WEIGHT, NONE = EnergySplit


def whole(pod: Ref | None = None, activity: float | None = None) -> tuple[DeviceReading, ...]:
    return (DeviceReading("", "", pod, activity),)


def slices(
    pods: Mapping[int, tuple[Ref, float]] | None = None, count: int = 7, profile: str = SLICE
) -> tuple[DeviceReading, ...]:
    """Slices of one profile; given are the holders of some, and how active they are."""
    holders = pods or {}
    return tuple(
        DeviceReading(str(7 + index), profile, *holders.get(index, (None, 0.0)))
        for index in range(count)
    )


def a_gpu(seconds: float, millijoules: int | None = None, **fields: Any) -> GPUReading:
    """A sample of the GPU of the node, so many seconds after NOW."""
    defaults: dict[str, Any] = {
        "uuid": "GPU-0",
        "node": "a100-0",
        "gpu": "0",
        "exporter": "10.0.0.1:9400",
        "devices": whole(),
    }
    return GPUReading(at=at(seconds), millijoules=millijoules, **{**defaults, **fields})


def a_loaded_pod(name: str = "chat-0", profile: str = "", **fields: Any) -> Pod:
    """A replica that had one device for a minute before NOW."""
    resource = f"nvidia.com/mig-{profile}" if profile else "nvidia.com/gpu"
    defaults: dict[str, Any] = {
        "node": "a100-0",
        "devices": {resource: 1},
        "bound": at(-60),
        "ready_since": at(-60),
    }
    return a_pod(name, **{**defaults, **fields})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What a round sees beside the samples."""

    nodes: Sequence[Node] = (a_node(whole=1),)
    pods: Sequence[Pod] = ()
    pools: Sequence[Pool] = (a_pool(),)
    activity: float | None = None
    """That of the engines of all pods, which a GPU without samples is modelled by."""
    running: float = 0.0

    def round(self, meter: EnergyMeter, seconds: float, gpus: Sequence[GPUReading]) -> EnergyMeter:
        reading = PodReading(waiting=0.0, running=self.running, activity=self.activity)
        snapshot = Snapshot(
            at=at(seconds),
            pools=tuple(self.pools),
            nodes=tuple(self.nodes),
            pods=tuple(self.pods),
            readings=Readings(
                at=at(seconds),
                pods={pod.ref: reading for pod in self.pods},
                energy=EnergyReadings(at=at(seconds), gpus=tuple(gpus)),
            ),
        )
        return meter_energy(
            meter, snapshot, discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
        )

    def play(
        self, *rounds: tuple[float, Sequence[GPUReading]], meter: EnergyMeter | None = None
    ) -> EnergyMeter:
        """The meter after rounds: when each was, and what it read."""
        current = meter or EnergyMeter()
        for seconds, gpus in rounds:
            current = self.round(current, seconds, gpus)
        return current

    def window(self, before: GPUReading, after: GPUReading) -> EnergyMeter:
        """The meter after two rounds, each a second after its sample."""
        return self.play(*((1 + (gpu.at - NOW).total_seconds(), (gpu,)) for gpu in (before, after)))


def parts(meter: EnergyMeter) -> Mapping[tuple[str, str], int]:
    """The millijoules by state and service."""
    totals: Counter[tuple[str, str]] = Counter()
    for key, energy in meter.lines.items():
        totals[key.state, key.line.service or key.line.namespace] += energy.millijoules
    return dict(totals)


def total(meter: EnergyMeter) -> int:
    return sum(energy.millijoules for energy in meter.lines.values())


def labels(meter: EnergyMeter) -> set[tuple[EnergySource, EnergySplit]]:
    return {(key.source, key.split) for key in meter.lines}


def seconds_of_gaps(meter: EnergyMeter) -> Mapping[EnergyGap, float]:
    return {gap: seconds for (_, gap), seconds in meter.gaps.items()}


SLICED = Fleet(nodes=(a_node(slices={SLICE: 7}),))
CHAT_ON_A_SLICE = replace(SLICED, pods=(a_loaded_pod(profile=SLICE),))
CHAT_ON_A_GPU = Fleet(pods=(a_loaded_pod(),))


def test_the_first_sample_charges_nothing() -> None:
    meter = Fleet().play((1, [a_gpu(0, 5_000_000)]))
    assert (meter.lines, meter.gaps, meter.as_of) == ({}, {}, at(1))
    assert [gpu.millijoules for gpu in meter.last.values()] == [5_000_000]


def test_of_seven_slices_the_busy_one_pays_all_above_the_idle_watts() -> None:
    busy = slices({0: (CHAT, 0.5)})
    meter = CHAT_ON_A_SLICE.window(
        a_gpu(0, 1_000_000, devices=busy), a_gpu(15, 2_500_000, devices=busy)
    )
    # Of 1,500,000 mJ, 930,000 go by weight: 15 : 90 : 7 of 112. The replica has 570,000 beside
    # 930,000 * 15 / 112 = 124,553.57, which has the largest remainder.
    assert parts(meter) == {
        ("warmIdle", "chat"): 570_000 + 124_554,
        ("coldIdle", ""): 747_321,
        ("stranded", ""): 58_125,
    }
    assert labels(meter) == {(MEASURED, ACTIVITY)}
    # 97 of 112 parts are free.
    assert meter.idle_watts == {IdleGPU("a100", "a100-0", "0"): pytest.approx(62 * 97 / 112)}


def test_seven_idle_slices_pay_by_weight() -> None:
    meter = SLICED.window(
        a_gpu(0, 0, devices=slices()), a_gpu(15, IDLE_MILLIJOULES, devices=slices())
    )
    # 930,000 * 105 / 112 = 871,875.
    assert parts(meter) == {("coldIdle", ""): 871_875, ("stranded", ""): 58_125}
    assert meter.idle_watts == {}


def test_two_whole_gpus_have_their_own_counters() -> None:
    fleet = Fleet(nodes=(a_node(whole=2),), pods=(a_loaded_pod(),))
    first = {"uuid": "GPU-0", "gpu": "0", "devices": whole(CHAT, 0.9)}
    second = {"uuid": "GPU-1", "gpu": "1"}
    meter = fleet.play(
        (1, [a_gpu(0, 0, **first), a_gpu(0, 70, **second)]),
        (16, [a_gpu(15, 4_000_000, **first), a_gpu(15, 900_070, **second)]),
    )
    assert parts(meter) == {("warmIdle", "chat"): 4_000_000, ("coldIdle", ""): 900_000}


def test_a_batch_beside_a_service_pays_by_its_activity() -> None:
    batch = BatchPod(
        ref=Ref("team-b", "night-0"),
        uid="uid-night-0",
        service=Ref("team-b", ""),
        batch=Ref("team-b", "night"),
        attempt=1,
        created=at(-60),
        bound=at(-60),
        ready_since=at(-60),
        node="a100-0",
        devices={f"nvidia.com/mig-{SLICE}": 1},
    )
    fleet = replace(SLICED, pods=(a_loaded_pod(profile=SLICE), batch))
    busy = slices({0: (CHAT, 0.25), 1: (batch.ref, 0.75)})
    meter = fleet.window(a_gpu(0, 0, devices=busy), a_gpu(15, 1_730_000, devices=busy))
    # Of 800,000 mJ above the floor a quarter, and three; by weight each has 124,553.57 of the
    # floor. Activity is counted in millionths of a GPU, so it is off by some mJ.
    by_state = parts(meter)
    assert by_state["warmIdle", "chat"] == pytest.approx(200_000 + 124_554, abs=3)
    assert by_state["serving", "batch/night"] == pytest.approx(600_000 + 124_554, abs=3)
    assert total(meter) == 1_730_000


def test_without_any_activity_all_goes_by_weight_and_says_so() -> None:
    meter = CHAT_ON_A_SLICE.window(
        *(a_gpu(15 * i, 1_120_000 * i, devices=slices({0: (CHAT, 0.0)})) for i in range(2))
    )
    assert parts(meter) == {
        ("warmIdle", "chat"): 150_000,
        ("coldIdle", ""): 900_000,
        ("stranded", ""): 70_000,
    }
    assert labels(meter) == {(MEASURED, WEIGHT)}


@pytest.mark.parametrize("activity", [1e-9, 1e-7, 5e-324])
def test_an_activity_that_is_next_to_nothing_stops_no_meter(activity: float) -> None:
    busy = slices({0: (CHAT, activity)})
    meter = CHAT_ON_A_SLICE.window(a_gpu(0, 0, devices=busy), a_gpu(15, 1_120_000, devices=busy))
    assert total(meter) == 1_120_000
    assert labels(meter) == {(MEASURED, WEIGHT)}


def test_a_gpu_that_is_partitioned_within_a_window_is_not_split() -> None:
    meter = CHAT_ON_A_SLICE.window(
        a_gpu(0, 0, devices=slices({0: (CHAT, 0.5)})),
        a_gpu(60, 7_000_000, devices=slices(count=3, profile="2g.20gb")),
    )
    assert parts(meter) == {(UNSPLIT, ""): 7_000_000}
    assert labels(meter) == {(MEASURED, NONE)}


def test_after_a_gap_of_an_hour_the_difference_is_exact_and_not_split() -> None:
    meter = CHAT_ON_A_GPU.window(a_gpu(0, 10), a_gpu(3600, 500_000_017))
    assert parts(meter) == {(UNSPLIT, ""): 500_000_007}
    assert seconds_of_gaps(meter) == {}


def test_a_pod_that_comes_within_a_window_pays_for_its_time() -> None:
    fleet = Fleet(pods=(a_loaded_pod(bound=at(5), ready_since=at(10)),))
    meter = fleet.window(a_gpu(0, 0), a_gpu(15, 900_000, devices=whole(CHAT, 0.0)))
    assert parts(meter) == {
        ("coldIdle", ""): 300_000,
        ("loading", "chat"): 300_000,
        ("warmIdle", "chat"): 300_000,
    }


def test_a_pod_that_goes_within_a_window_pays_for_its_time() -> None:
    fleet = Fleet(pods=(a_loaded_pod(ended=at(5)),))
    meter = fleet.window(a_gpu(0, 0, devices=whole(CHAT, 0.0)), a_gpu(15, 900_000))
    assert parts(meter) == {("warmIdle", "chat"): 300_000, ("coldIdle", ""): 600_000}


@pytest.mark.parametrize("known", [True, False])
def test_a_pod_that_left_pays_for_the_activity_of_its_last_window_alone(known: bool) -> None:
    mail = a_loaded_pod("mail-0", service="mail", bound=at(15), ready_since=at(15))
    left = (a_loaded_pod(ended=at(15)),) if known else ()
    fleet = Fleet(pods=(*left, mail))
    # Its activity is an average of a minute, and shown as long.
    no_more = DeviceReading("", "", CHAT, 0.9, is_held=False)
    meter = fleet.play(
        (1, [a_gpu(0, 0, devices=whole(CHAT, 0.9))]),
        (31, [a_gpu(30, 4_860_000, devices=(*whole(mail.ref, 0.1), no_more))]),
        (61, [a_gpu(60, 9_720_000, devices=(*whole(mail.ref, 0.1), no_more))]),
    )
    # The floor of 30 seconds is 1,860,000, of which each has a half of the first; of the
    # 3,000,000 above it 9 in 10 are due to the pod that left, and all later to the other.
    assert parts(meter) == {
        ("warmIdle", "chat") if known else ("coldIdle", ""): 930_000 + 2_700_000,
        ("warmIdle", "mail"): 930_000 + 300_000 + 4_860_000,
    }


def test_a_counter_that_repeats_waits_for_the_next_one() -> None:
    # Collected each 30 seconds, scraped each 15.
    repeated = CHAT_ON_A_GPU.play(
        (1, [a_gpu(0, 0)]),
        (16, [a_gpu(15, 0)]),
        (31, [a_gpu(30, 1_860_000)]),
        (46, [a_gpu(45, 1_860_000)]),
    )
    assert (total(repeated), seconds_of_gaps(repeated)) == (1_860_000, {})
    assert [gpu.at for gpu in repeated.last.values()] == [at(30)]


def test_a_counter_that_stands_still_is_no_measurement_and_said() -> None:
    meter = CHAT_ON_A_GPU.play(*((15 * i + 1, [a_gpu(15 * i, 7)]) for i in range(20)))
    assert meter.lines == {}
    assert seconds_of_gaps(meter) == {EnergyGap.NO_READING: 195.0}


def test_a_counter_that_fell_is_a_gap_that_samples_of_power_stand_for() -> None:
    bare = CHAT_ON_A_GPU.window(a_gpu(0, 9_000_000), a_gpu(15, 100_000))
    assert labels(bare) == {(MODEL, ACTIVITY)}
    assert (total(bare), seconds_of_gaps(bare)) == (
        IDLE_MILLIJOULES,
        {EnergyGap.COUNTER_RESET: 15.0},
    )
    powered = CHAT_ON_A_GPU.window(a_gpu(0, 9_000_000, watts=80.0), a_gpu(15, 100_000, watts=90.0))
    # 85 W for 15 seconds.
    assert (total(powered), {source for source, _ in labels(powered)}) == (1_275_000, {POWER})
    assert seconds_of_gaps(powered) == {EnergyGap.COUNTER_RESET: 15.0}


def test_counting_goes_on_from_the_counter_that_fell() -> None:
    meter = CHAT_ON_A_GPU.play(
        (1, [a_gpu(0, 9_000_000)]), (16, [a_gpu(15, 100)]), (31, [a_gpu(30, 1_000_100)])
    )
    measured = [e.millijoules for key, e in meter.lines.items() if key.source is MEASURED]
    assert sum(measured) == 1_000_000


@pytest.mark.parametrize("jump", [10**12, 10**18, 61_000_000])
def test_an_absurd_jump_of_a_counter_is_no_energy_and_said(jump: int) -> None:
    # Twice 400 W for 15 seconds and a minute are 60,000,000 mJ.
    meter = CHAT_ON_A_GPU.window(a_gpu(0, 0, watts=100.0), a_gpu(15, jump, watts=100.0))
    assert (total(meter), {source for source, _ in labels(meter)}) == (1_500_000, {POWER})
    assert seconds_of_gaps(meter) == {EnergyGap.IMPLAUSIBLE: 15.0}


def test_without_a_counter_power_is_what_is_known() -> None:
    meter = CHAT_ON_A_GPU.window(a_gpu(0, watts=100.0), a_gpu(15, watts=200.0))
    assert (total(meter), {source for source, _ in labels(meter)}) == (2_250_000, {POWER})
    assert seconds_of_gaps(meter) == {}


@pytest.mark.parametrize("watts", [-100.0, 0.0, 801.0, 1e9])
def test_power_that_no_gpu_draws_is_none(watts: float) -> None:
    meter = CHAT_ON_A_GPU.window(a_gpu(0, watts=watts), a_gpu(15, watts=100.0))
    assert (total(meter), {source for source, _ in labels(meter)}) == (IDLE_MILLIJOULES, {MODEL})
    assert seconds_of_gaps(meter) == {EnergyGap.NO_READING: 15.0}


def test_samples_of_power_far_apart_are_no_energy() -> None:
    meter = CHAT_ON_A_GPU.window(a_gpu(0, watts=100.0), a_gpu(3600, watts=100.0))
    assert meter.lines == {}
    assert seconds_of_gaps(meter) == {EnergyGap.NO_READING: 3600.0}


def test_a_node_without_an_exporter_is_modelled_by_watts_and_activity() -> None:
    fleet = replace(CHAT_ON_A_GPU, nodes=(a_node(whole=2),), activity=0.5)
    meter = fleet.play((0, []), (15, []))
    # Two times 62 W, and half of one GPU's 338 W above: (124 + 169) * 15 s.
    assert parts(meter) == {("warmIdle", "chat"): 930_000 + 2_535_000, ("coldIdle", ""): 930_000}
    assert labels(meter) == {(MODEL, ACTIVITY)}
    assert seconds_of_gaps(meter) == {EnergyGap.NO_READING: 30.0}


@pytest.mark.parametrize("activity", [None, 0.0])
def test_a_modelled_replica_that_works_without_a_reading_of_activity_is_busy(
    activity: float | None,
) -> None:
    fleet = replace(CHAT_ON_A_GPU, running=1.0, activity=activity)
    meter = fleet.play((0, []), (15, []))
    assert parts(meter) == {("serving", "chat"): 6_000_000}


def test_the_time_that_is_too_long_for_a_model_is_named() -> None:
    meter = CHAT_ON_A_GPU.play((0, []), (600, []))
    assert meter.lines == {}
    assert seconds_of_gaps(meter) == {EnergyGap.NO_READING: 600.0}


def test_an_exporter_that_never_comes_back_leaves_a_gap_of_a_day_and_then_a_model() -> None:
    day = LINE_LIFETIME.total_seconds()
    meter = CHAT_ON_A_GPU.play((1, [a_gpu(0, 0)]), (31, []), (day, []), (day + 30, []))
    assert seconds_of_gaps(meter) == {EnergyGap.NO_READING: day + 30}
    # 62 W for 30 seconds.
    assert (total(meter), {source for source, _ in labels(meter)}) == (1_860_000, {MODEL})


def test_of_a_product_without_watts_the_counter_goes_by_activity_alone() -> None:
    node = a_node(whole=1, product="NVIDIA-B100-New")
    fleet = Fleet(nodes=(node,), pods=(a_loaded_pod(),))
    busy = whole(CHAT, 0.5)
    meter = fleet.window(a_gpu(0, 0, devices=busy), a_gpu(15, 777, devices=busy))
    assert parts(meter) == {("warmIdle", "chat"): 777}
    unread = fleet.play((0, []), (15, []))
    assert unread.lines == {}
    assert seconds_of_gaps(unread) == {EnergyGap.NO_READING: 15.0}


@pytest.mark.parametrize("shown", [None, Ref("gpu-operator", "dcgm-exporter-x2z")])
def test_where_the_exporter_knows_no_pods_the_node_is_split_by_weight(shown: Ref | None) -> None:
    """A scraped page without labels of pods has those of the exporter's own pod, if any."""
    fleet = Fleet(nodes=(a_node(whole=2),), pods=(a_loaded_pod(),))
    busy = {"devices": whole(shown, 0.9)}
    before = [a_gpu(0, 0, uuid=f"GPU-{i}", gpu=str(i), **busy) for i in range(2)]
    after = [a_gpu(15, 2_000_000, uuid=f"GPU-{i}", gpu=str(i), **busy) for i in range(2)]
    meter = fleet.play((1, before), (16, after))
    assert parts(meter) == {("warmIdle", "chat"): 2_000_000, ("coldIdle", ""): 2_000_000}
    assert labels(meter) == {(MEASURED, WEIGHT)}
    assert meter.idle_watts == {}


def test_an_idle_gpu_of_an_exporter_of_its_own_is_not_split_among_the_node() -> None:
    fleet = Fleet(nodes=(a_node(whole=2),), pods=(a_loaded_pod(),))
    used = [a_gpu(15 * i, 2_000_000 * i, devices=whole(CHAT, 0.5)) for i in range(2)]
    free = [
        a_gpu(15 * i + 7, 930_000 * i, uuid="GPU-1", gpu="1", exporter=SECOND) for i in range(2)
    ]
    meter = fleet.play(
        *((1, [used[0]]), (8, [used[0], free[0]])),
        *((16, [used[1], free[0]]), (23, [used[1], free[1]])),
    )
    measured = {key: e for key, e in meter.lines.items() if key.source is MEASURED}
    assert parts(replace(meter, lines=measured)) == {
        ("warmIdle", "chat"): 2_000_000,
        ("coldIdle", ""): 930_000,
    }


def test_an_exporter_that_does_not_know_its_node_is_that_of_its_pods() -> None:
    busy = {"node": "dcgm-exporter-x2z", "devices": whole(CHAT, 0.5)}
    meter = CHAT_ON_A_GPU.window(a_gpu(0, 0, **busy), a_gpu(15, 2_000_000, **busy))
    assert parts(meter) == {("warmIdle", "chat"): 2_000_000}


def test_an_exporter_that_does_not_know_its_node_stays_there_without_pods() -> None:
    unknown = {"node": "dcgm-exporter-x2z"}
    meter = CHAT_ON_A_GPU.play(
        (1, [a_gpu(0, 0, devices=whole(CHAT, 0.5), **unknown)]),
        *((15 * i + 1, [a_gpu(15 * i, 1_000_000 * i, **unknown)]) for i in (1, 2)),
        (46, [a_gpu(45, 3_000_000, devices=whole(CHAT, 0.5), **unknown)]),
    )
    assert (total(meter), {source for source, _ in labels(meter)}) == (3_000_000, {MEASURED})


def test_two_pods_of_one_shared_device_share_what_it_draws_above_idle() -> None:
    other = a_loaded_pod("mail-0", service="mail", bound=at(-30))
    fleet = Fleet(pods=(a_loaded_pod(), other))
    shared = (*whole(CHAT, 0.4), *whole(other.ref, 0.4))
    meter = fleet.window(a_gpu(0, 0, devices=shared), a_gpu(15, 1_930_000, devices=shared))
    # As in the bill, the device itself is that of the first.
    assert parts(meter) == {("warmIdle", "chat"): 930_000 + 500_000, ("warmIdle", "mail"): 500_000}


def test_a_gpu_that_goes_to_another_node_charges_neither_for_the_way() -> None:
    nodes = tuple(a_node(whole=1, name=f"a100-{index}") for index in range(2))
    moved = Fleet(nodes=nodes).play(
        (1, [a_gpu(0, 0)]),
        (16, [a_gpu(15, 1_000_000, node="a100-1")]),
        (31, [a_gpu(30, 3_000_000, node="a100-1")]),
    )
    measured = {key: e for key, e in moved.lines.items() if key.source is MEASURED}
    assert sum(energy.millijoules for energy in measured.values()) == 2_000_000


FIRST, SECOND = "10.0.0.1:9400", "10.0.0.2:9400"


def of_both(second: float, of_second: int = 0) -> Sequence[GPUReading]:
    """Return the GPU with its counter by the first exporter, and with another by the second."""
    honest = a_gpu(second, int(100_000 * second), exporter=FIRST)
    return [honest, a_gpu(second, of_second, exporter=SECOND)]


@pytest.mark.parametrize("ahead", [0, 40_000_000, -5_000_000])
def test_of_two_exporters_of_one_gpu_none_counts_and_a_gap_says_so(ahead: int) -> None:
    rounds = [(15 * i + 1, of_both(15 * i, 6 * 1_500_000 * i + ahead)) for i in range(1, 9)]
    meter = CHAT_ON_A_GPU.play(*rounds)
    measured = [
        energy.millijoules for line, energy in meter.lines.items() if line.source is MEASURED
    ]
    assert measured == []
    assert seconds_of_gaps(meter) == {EnergyGap.REPEATED: 105}


def test_a_second_exporter_takes_no_place_at_a_restart_or_while_the_first_is_away() -> None:
    rounds: list[tuple[float, Sequence[GPUReading]]] = [
        (1, [a_gpu(0, 0, exporter=FIRST)]),
        (16, [a_gpu(15, 1_500_000, exporter=FIRST)]),
        *((15 * i + 1, of_both(15 * i, 9_000_000 * i)) for i in range(2, 6)),
        (106, [a_gpu(105, 10_500_000, exporter=FIRST)]),
    ]
    assert total(CHAT_ON_A_GPU.play(*rounds)) == 10_500_000
    ended = EnergyReadings(at=at(16), gpus=tuple(of_both(15, 40_000_000)))
    meter = CHAT_ON_A_GPU.play((76, of_both(75, 80_000_000)), meter=restored_meter(ended))
    assert not [line for line in meter.lines if line.source is MEASURED]


def test_when_an_exporter_moves_the_next_one_goes_on_with_the_counter() -> None:
    meter = CHAT_ON_A_GPU.play(
        (1, [a_gpu(0, 0, exporter=FIRST)]),
        (16, [a_gpu(15, 1_500_000, exporter=FIRST)]),
        (31, [a_gpu(15, 1_500_000, exporter=FIRST), a_gpu(30, 3_000_000, exporter=SECOND)]),
        (106, [a_gpu(105, 10_500_000, exporter=SECOND)]),
        (121, [a_gpu(120, 12_000_000, exporter=SECOND)]),
    )
    assert (total(meter), seconds_of_gaps(meter)) == (12_000_000, {})


def test_a_page_that_names_more_gpus_than_the_node_has_adds_none() -> None:
    real = [(1 + 15 * i, a_gpu(15 * i, 1_000_000 * i)) for i in range(5)]
    rounds = []
    for second, gpu in real:
        fakes = [
            a_gpu(second + 6, int(second * 100_000), uuid=f"GPU-{name}", exporter=SECOND)
            for name in ("+", "z")
        ]
        rounds += [(second, [gpu]), (second + 7, [gpu, *fakes])]
    meter = Fleet().play(*rounds)
    assert (total(meter), set(meter.last)) == (4_000_000, {"GPU-0"})


def test_a_new_gpu_takes_the_place_of_the_one_that_went() -> None:
    meter = Fleet().play(
        (1, [a_gpu(0, 0)]),
        (601, [a_gpu(600, 5_000_000, uuid="GPU-new")]),
        (616, [a_gpu(615, 6_000_000, uuid="GPU-new")]),
    )
    measured = [e.millijoules for key, e in meter.lines.items() if key.source is MEASURED]
    assert sum(measured) == 1_000_000


def test_idle_watts_stay_between_two_samples_and_end_with_the_gpu() -> None:
    busy = slices({0: (CHAT, 0.5)})
    gpu = a_gpu(15, 2_000_000, devices=busy)
    meter = CHAT_ON_A_SLICE.play((1, [a_gpu(0, 0, devices=busy)]), (16, [gpu]))
    later = CHAT_ON_A_SLICE.play((18, [gpu]), meter=meter)
    assert later.idle_watts == meter.idle_watts != {}
    assert CHAT_ON_A_SLICE.play((300, []), meter=later).idle_watts == {}
    freed = a_gpu(30, 3_000_000, devices=slices())
    assert SLICED.play((31, [freed]), meter=later).idle_watts == {}


def test_a_restarted_operator_goes_on_where_it_ended() -> None:
    before = EnergyReadings(at=at(16), gpus=(a_gpu(15, 1_000_000),))
    meter = CHAT_ON_A_GPU.play((76, [a_gpu(75, 7_000_000)]), meter=restored_meter(before))
    assert total(meter) == 6_000_000
    assert restored_meter(None) == EnergyMeter()


def test_a_query_that_was_charged_is_not_charged_again() -> None:
    meter = CHAT_ON_A_GPU.window(a_gpu(0, 0), a_gpu(15, 1_000_000))
    assert CHAT_ON_A_GPU.play((16, [a_gpu(15, 1_000_000)]), meter=meter) is meter
    assert CHAT_ON_A_GPU.play((3, [a_gpu(2, 9)]), meter=meter) is meter


def test_electricity_and_co2_are_by_the_hour_in_which_a_window_began() -> None:
    energy = {
        "electricityPerKWh": [{"fromHour": 8, "value": "0.30"}, {"fromHour": 20, "value": "0.10"}],
        "gramsCO2PerKWh": [{"value": "400"}],
        "currency": "EUR",
        "pue": "1.5",
        "source": "a contract",
        "date": "2026-11-01",
    }
    fleet = Fleet(pools=(a_pool(energy=energy),))
    # From 20:00 on, 36,000,000 mJ are 0.01 kWh: by 1.5 and 0.10 these are 0.0015, and 6 g.
    evening = 8 * 3600
    meter = fleet.window(a_gpu(evening, 0), a_gpu(evening + 60, 36_000_000))
    assert meter.lines == {
        EnergyLine(line=next(iter(meter.lines)).line, source=MEASURED, split=WEIGHT): Energy(
            36_000_000, 1_500_000, 6_000_000
        )
    }
    assert {key.line.currency for key in meter.lines} == {"EUR"}
    # A second before it the day's price holds, and before 8:00 that of the evening.
    last = fleet.window(a_gpu(evening - 1, 0), a_gpu(evening + 59, 36_000_000))
    assert sum(part.nanos for part in last.lines.values()) == 4_500_000
    night = fleet.window(a_gpu(15 * 3600, 0), a_gpu(15 * 3600 + 60, 36_000_000))
    assert sum(part.nanos for part in night.lines.values()) == 1_500_000


def test_without_factors_energy_has_no_cost_and_no_currency() -> None:
    meter = Fleet().window(a_gpu(0, 0), a_gpu(15, 1_000_000))
    assert [(key.line.currency, energy) for key, energy in meter.lines.items()] == [
        ("", Energy(1_000_000, 0, 0))
    ]


def test_services_whose_names_change_for_ever_share_one_line() -> None:
    meter = Fleet().play((1, [a_gpu(0, 0)]))
    for index in range(1, MAX_SERVICES + 10):
        pod = a_loaded_pod(service=f"x{index}")
        meter = Fleet(pods=(pod,)).play(
            (15 * index + 1, [a_gpu(15 * index, 1_000_000 * index, devices=whole(CHAT, 0.5))]),
            meter=meter,
        )
    named = {key.line.service for key in meter.lines if key.line.namespace}
    assert len(named - {""}) == MAX_SERVICES
    assert "" in named
    assert total(meter) == 1_000_000 * (MAX_SERVICES + 9)


def test_a_line_and_a_gpu_end_a_day_after_their_last_charge() -> None:
    meter = CHAT_ON_A_GPU.window(a_gpu(0, 0), a_gpu(15, 1_000_000))
    day = LINE_LIFETIME.total_seconds()
    later = Fleet(nodes=()).play((day + 17, []), meter=meter)
    assert (later.lines, later.charged_at, later.last) == ({}, {}, {})


class _Devices(dict[str, int]):
    @override
    def items(self) -> Any:
        raise OverflowError("cannot convert float infinity to integer")


@pytest.mark.parametrize(
    "bad",
    [
        {"pod": a_loaded_pod("bad-0", node="a100-1", devices=_Devices())},
        {"devices": whole(Ref("team-a", "good-0"), float("nan"))},
        {"millijoules": float("nan")},
    ],
)
def test_a_node_that_raises_costs_its_own_rows_alone(bad: dict[str, Any]) -> None:
    nodes = tuple(a_node(whole=1, name=f"a100-{index}") for index in range(2))
    pods = (a_loaded_pod(), *([bad["pod"]] if "pod" in bad else []))
    samples = {"uuid": "GPU-1", "node": "a100-1", "devices": bad.get("devices", whole())}
    counter = bad.get("millijoules", 2_000_000)
    meter = Fleet(nodes=nodes, pods=pods).play(
        (1, [a_gpu(0, 0), a_gpu(0, 0, **samples)]),
        (16, [a_gpu(15, 1_000_000, devices=whole(CHAT, 0.5)), a_gpu(15, counter, **samples)]),
    )
    assert parts(meter) == {("warmIdle", "chat"): 1_000_000}


SAMPLES = st.tuples(
    st.sampled_from(["GPU-0", "GPU-1", "GPU-2", "GPU-fake"]),
    st.sampled_from(["a100-0", "a100-1", "unknown"]),
    st.sampled_from([FIRST, SECOND]),
    st.sampled_from([0, 0, 1, 15, 40]),
    st.one_of(st.none(), st.integers(0, 9_000_000), st.just(10**15)),
    st.sampled_from([None, 100.0, 62.0, -1.0, 1e9]),
    st.lists(
        st.tuples(
            st.sampled_from(["", "7", "8"]),
            st.sampled_from(["", SLICE, "3g.40gb"]),
            st.sampled_from([None, CHAT, Ref("team-a", "mail-0"), Ref("evil", "x")]),
            st.sampled_from([None, 0.0, 1e-9, 0.3, 1.0]),
            st.booleans(),
        ),
        max_size=4,
    ),
)
ROUNDS = st.lists(
    st.tuples(st.sampled_from([1, 15, 30, 200]), st.lists(SAMPLES, max_size=6)),
    min_size=2,
    max_size=8,
)
HOSTS = (a_node(whole=2), a_node(slices={SLICE: 7}, name="a100-1"))
GUESTS = (
    a_loaded_pod(),
    a_loaded_pod("mail-0", SLICE, service="mail", node="a100-1", bound=at(20), ended=at(90)),
)


def samples_of(drawn: Sequence[Any], second: float) -> list[GPUReading]:
    return [
        a_gpu(
            second - age,
            millijoules,
            uuid=uuid,
            node=node,
            exporter=exporter,
            watts=watts,
            devices=tuple(DeviceReading(*device) for device in devices),
        )
        for uuid, node, exporter, age, millijoules, watts, devices in drawn
    ]


@settings(max_examples=examples(80))
@given(ROUNDS)
def test_whatever_is_read_no_energy_shrinks_or_is_more_than_the_samples_say(
    rounds: Sequence[tuple[int, Sequence[Any]]],
) -> None:
    fleet = Fleet(nodes=HOSTS, pods=GUESTS, activity=0.5)
    meter, second = EnergyMeter(), 0.0
    for seconds, drawn in rounds:
        second += seconds
        before, meter = meter, fleet.play((second, samples_of(drawn, second)), meter=meter)
        for key, energy in before.lines.items():
            assert all(map(int.__le__, energy, meter.lines[key]))
        assert all(min(energy) >= 0 and energy.millijoules for energy in meter.lines.values())
        assert all(seconds >= before.gaps.get(gap, 0.0) for gap, seconds in meter.gaps.items())
        measured = [
            sum(energy.millijoules for key, energy in each.lines.items() if key.source is MEASURED)
            for each in (before, meter)
        ]
        assert measured[1] - measured[0] == sum(
            increase(before.last.get(uuid), gpu) for uuid, gpu in meter.last.items()
        )
        for node in HOSTS:
            current = [
                gpu
                for gpu in meter.last.values()
                if gpu.node == node.name and at(second) - gpu.at <= MAX_WINDOW
            ]
            assert len(current) <= int(node.labels["nvidia.com/gpu.count"])


def increase(before: GPUReading | None, after: GPUReading) -> int:
    """The difference of two samples of a GPU, unless it is more than 800 W and a minute of it."""
    if before is None or before is after or before.node != after.node:
        return 0
    if before.millijoules is None or after.millijoules is None:
        return 0
    difference = after.millijoules - before.millijoules
    seconds = (after.at - before.at).total_seconds() + 60
    return difference if 0 < difference <= 800_000 * seconds else 0
