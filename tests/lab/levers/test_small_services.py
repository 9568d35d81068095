"""Many small services on whole GPUs and on slices, by hand."""

from dataclasses import replace

import pytest

from ladders import committed
from tessera.domain.hardware.gpu_models import find_gpu_model
from tessera_lab.engine.setup import EngineSetup
from tessera_lab.levers.published import small_services
from tessera_lab.levers.replica_rate import ReplicaRate
from tessera_lab.levers.small_services import ServicesLadder, ServicesRung, SmallServices
from tests.lab.levers.cases import A100, CASE, HOURS

STEPS = (
    "a whole GPU each, for its peak",
    "the cheapest whole GPU each",
    "MIG slices",
    "fp8",
    "scaling with the load",
    "sleep while no request comes",
    "reserved and on demand",
)
# A quarter of a day with few requests, a quarter with many, and a half without any.
DEMAND = ((3600.0, 1.0), (3600.0, 3.0), (3600.0, 0.0), (3600.0, 0.0))


def rate(setup: EngineSetup) -> ReplicaRate:
    """Return 1 request per second for each seventh of a GPU, half as many on an L4."""
    gpu_model = find_gpu_model(setup.hardware.product)
    profile = gpu_model and gpu_model.find_profile(setup.hardware.profile or "")
    rate = profile.compute_slices if profile else 7.0 if gpu_model else 3.0
    rate *= 1.0 if setup.precision is None else 2.0
    return ReplicaRate(rate=rate, saturated=rate / 0.8, keeps_slo=True, ttft=0.1, tpot=0.01)


def services(count: int) -> SmallServices:
    """Return services that are alike, on A100 GPUs of 4 USD and L4 GPUs of 1 USD."""
    case = replace(CASE, demand=DEMAND, shape=CASE.small or CASE.shape)
    return SmallServices(cases={f"s{number}": case for number in range(count)}, product=A100)


@pytest.fixture(scope="module")
def rungs() -> dict[str, ServicesRung]:
    return {rung.title: rung for rung in ServicesLadder(services(4), rate).climb()}


def test_each_step_costs_what_its_gpus_cost(rungs: dict[str, ServicesRung]) -> None:
    assert tuple(rungs) == STEPS
    hourly = {title: rung.per_month / HOURS for title, rung in rungs.items()}
    assert hourly["a whole GPU each, for its peak"] == 4 * 4.0
    # An L4 carries 3 per second too.
    assert hourly["the cheapest whole GPU each"] == 4 * 1.0
    # 3 per second are a slice of three sevenths, of which 2 are on a GPU.
    assert (hourly["MIG slices"], rungs["MIG slices"].peak_gpus) == (2 * 4.0, 2)
    # In fp8 two sevenths suffice, of which 3 are on a GPU with a seventh left.
    assert hourly["fp8"] == 2 * 4.0


def test_gpus_follow_the_load_and_services_sleep(rungs: dict[str, ServicesRung]) -> None:
    # In two of four hours 3 per second are served or about to come: 2 GPUs, else the least.
    assert rungs["scaling with the load"].mean_gpus == (2 + 2 + 1 + 1) / 4
    # Replicas for the first hour start in the last one; in the third no request comes.
    assert rungs["sleep while no request comes"].mean_gpus == (2 + 2 + 0 + 1) / 4
    reserved, asleep = (rungs[STEPS[-1]], rungs[STEPS[-2]])
    assert reserved.per_month < asleep.per_month
    assert reserved.mean_gpus == asleep.mean_gpus


def test_the_last_step_without_slices_has_the_other_levers() -> None:
    whole = ServicesLadder(services(4), rate).without_slices()
    # An L4 for each in fp8, in three of four hours; all are needed often enough to be reserved.
    assert (whole.mean_gpus, whole.peak_gpus) == (3.0, 4)
    assert whole.per_month / HOURS == pytest.approx(4 * 0.6)


def test_the_services_of_the_page_need_a_part_of_a_gpu() -> None:
    cases = small_services().cases
    assert len(cases) == 36
    for case in cases.values():
        assert sum(rate == 0 for _, rate in case.demand) == 6
        assert sum(rate for _, rate in case.demand) / 24 <= 61 / 60 * 1.1
    assert (
        len({max(range(24), key=lambda hour: case.demand[hour][1]) for case in cases.values()}) > 2
    )


def test_the_recorded_steps_are_those_and_slices_save() -> None:
    recorded = committed()
    assert tuple(rung.title for rung in recorded.small_services) == STEPS
    costs = [rung.per_month for rung in recorded.small_services]
    assert costs == sorted(costs, reverse=True)
    assert recorded.without_slices.per_month > costs[-1]
    assert recorded.small_services[0].peak_gpus == 36


@pytest.mark.full
def test_the_recorded_steps_are_computed_again() -> None:
    ladder = ServicesLadder(small_services())
    assert tuple(ladder.climb()) == committed().small_services
    assert ladder.without_slices() == committed().without_slices
