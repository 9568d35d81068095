"""Instance types in the simulator: the recorded load decides, and both types run while it moves."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tessera.api.ref import Ref
from tessera.domain.instance_types.change import REST, RunningType
from tessera.domain.instance_types.rank import MIN_HISTORY
from tessera.domain.observed.load_history import SPAN, LoadHistory, LoadSpan
from tessera_lab.fleet.instance_types import RecordedTypes
from tessera_lab.fleet.model import Router
from tessera_lab.fleet.policies import product
from tessera_lab.fleet.policies.product import FleetObjects, ProductPolicy, WholeGpuPool
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.sizing import sized_fleet
from tests.lab.fleet.builders import steady

SPEC = {
    "model": {"uri": "hf://Qwen/Qwen3-32B-FP8"},
    "slo": {"ttftP95": "1s", "itlP95": "50ms"},
    "context": {"typicalInputTokens": 1300, "typicalOutputTokens": 1500, "maxModelLen": 32768},
    "scaling": {"minReplicas": 1, "maxReplicas": 16},
}
START = datetime(2026, 1, 5, tzinfo=UTC)
HOURS = 8


def objects() -> FleetObjects:
    pool = WholeGpuPool(name="h100", product="NVIDIA-H100-80GB-HBM3", price="6.88", nodes=4)
    return pool.objects(Ref("lab", "service"), SPEC)


def span(end: datetime, rate: float, answer: float) -> LoadSpan:
    return LoadSpan(
        end=end,
        rate=rate,
        input_tokens=1300,
        output_tokens=answer,
        input_variation=0.5,
        resident_tokens=1300 + answer / 2,
    )


def types(rate: float, answer: float) -> RecordedTypes:
    """Return the types of the service after hours of equal requests."""
    load = steady(0.01, HOURS * 3600 + 600)
    known = objects().types(load, 600, timedelta(seconds=110))
    assert known is not None
    spans = (span(START + number * SPAN, rate, answer) for number in range(1 - 6 * HOURS, 2))
    return replace(known, recorded=LoadHistory(read_at=START, spans=tuple(spans)))


def test_the_hours_before_decide_the_type_that_a_run_begins_with() -> None:
    long = types(1.0, 8000).at(START)
    assert (long.choice.fit.hardware.devices, long.running.since) == (2, START - timedelta(hours=2))
    short = types(0.5, 50).at(START)
    assert (short.choice.fit.hardware.devices, short.running.since) == (1, None)


def test_less_than_six_hours_decide_nothing() -> None:
    assert objects().types(steady(0.01, 6600), 600, timedelta(seconds=110)) is None


def test_the_types_are_all_numbers_of_gpus_of_a_node() -> None:
    known = types(0.5, 50)
    assert [each.fit.hardware.devices for each in known.choices] == [1, 2, 4, 8]
    fleet = sized_fleet(known.spec, known.choices[0].fit)
    slow = replace(fleet, step=fleet.step.scaled(1.5, "Measured"))
    pools = replace(known, running=RunningType(variant="h100-2gpu")).pools(slow)
    assert [pool.size for pool in pools] == [2, 1, 4, 8]
    assert pools[0].hardware is not None
    predicted = known.choices[1].fit.step.weights
    assert pools[0].hardware.step.weights == pytest.approx(1.5 * predicted)


def test_a_service_moves_to_another_type_with_both_side_by_side_and_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(product, "READ_INTERVAL", timedelta(minutes=3))
    known = types(1.0, 8000)
    # It changed a day before the second reading, and may again.
    changed = START + timedelta(minutes=3) - REST
    days = known.recorded.spans[0]
    days = replace(days, end=changed - MIN_HISTORY)
    recorded = replace(known.recorded, spans=(days, *known.recorded.spans))
    known = replace(known, recorded=recorded, running=replace(known.running, since=changed))
    policy = ProductPolicy(objects(), types=known)
    fleet = sized_fleet(known.spec, known.choices[0].fit)
    fleet = replace(fleet, initial_replicas=3, pools=known.pools(fleet), router=Router.GATEWAY)
    course = Simulation(steady(0.2, 480, 1300, 300), fleet, policy).run()
    first, second = ([each for each in course.lifetimes if each.size == size] for size in (1, 2))
    assert {each.begin for each in second} == {185}
    # The last one of the previous type leaves once the new one serves.
    assert max(each.end for each in first) > min(each.ready_at for each in second)
    assert max(each.end for each in first) < 480
    assert course.broken_streams == 0
    assert min(sample.ready for sample in course.samples) >= 1
    assert max(course.ttft) < 1
