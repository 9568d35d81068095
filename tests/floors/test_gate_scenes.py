"""Services whose changes wait for a gate, in pools without a free device."""

from collections.abc import AsyncIterator, Callable

import pytest

from tests.floors.fleet import NAMESPACE, FloorFleet, add_gpus
from tests.floors.kube import BAD_IMAGE, PodTimes

MINUTE = 60.0
ROLLOUT = {"strategy": "Gated", "gateRef": "answers"}


@pytest.fixture
async def begin() -> AsyncIterator[Callable[[], FloorFleet]]:
    """Begin fleets that end with the test."""
    fleets: list[FloorFleet] = []

    def start() -> FloorFleet:
        fleets.append(FloorFleet.begin(1, PodTimes(start=(10, 30))))
        return fleets[-1]

    yield start
    for fleet in fleets:
        await fleet.close()


@pytest.mark.parametrize(("devices", "restart"), [(2, False), (2, True), (3, False)])
async def test_a_typo_in_a_first_version_is_fixed_by_an_edit(
    devices: int, restart: bool, begin: Callable[[], FloorFleet]
) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", devices)
    fleet.serve_gated("chat", 2, engine={"image": BAD_IMAGE})
    await fleet.run(5 * MINUTE)
    fleet.edit("chat", engine=None)
    if restart:
        await fleet.restart_operator()
    await fleet.run(15 * MINUTE)
    assert fleet.healthy("chat") == 2, "\n".join(fleet.describe())
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


@pytest.mark.parametrize("devices", [2, 3])
async def test_a_gate_that_is_turned_on_over_a_typo_holds_back_no_fix(
    devices: int, begin: Callable[[], FloorFleet]
) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", devices)
    fleet.put_gate()
    fleet.serve("chat", 2)
    await fleet.settle()
    fleet.edit("chat", engine={"image": BAD_IMAGE}, rollout=ROLLOUT)
    await fleet.run(3 * MINUTE)
    fleet.edit("chat", engine=None, podTemplate={"env": [{"name": "EDIT", "value": "1"}]})
    await fleet.run(2 * MINUTE)
    assert "spec.rollout.skipGate" in fleet.condition("chat", "Progressing")["message"]
    await fleet.run(20 * MINUTE)
    assert not fleet.judge.findings
    assert fleet.healthy("chat") == 2, "\n".join(fleet.describe())
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


async def test_an_image_that_is_gone_is_replaced_by_an_edit(
    begin: Callable[[], FloorFleet],
) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", 2)
    fleet.serve_gated("chat", 2)
    await fleet.settle()
    (image,) = fleet.images("chat")
    fleet.kube.lost_images.add(image)
    for key, _ in list(fleet.kube.service_pods(NAMESPACE, "chat")):
        fleet.kube.begin_deletion(key)
    await fleet.run(5 * MINUTE)
    fleet.edit("chat", engine={"image": "example.com/vllm:other"})
    await fleet.run(25 * MINUTE)
    assert fleet.healthy("chat") == 2, "\n".join(fleet.describe())
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


async def test_a_change_that_waits_for_money_is_not_written_in_every_cycle(
    begin: Callable[[], FloorFleet],
) -> None:
    """What is spent moves all the time, and what the change waits for does not."""
    fleet = begin()
    add_gpus(fleet, "a100", 4)
    fleet.serve_gated("chat", 2)
    await fleet.settle()
    fleet.set_budget([{"window": "Month", "amount": "0.01"}])
    fleet.edit_version("chat", 7)
    await fleet.run(MINUTE)
    said = set()
    for _ in range(24):
        await fleet.tick()
        said.add(fleet.status("chat")["candidate"]["missingDevice"])
    assert len(said) == 1, said
    assert "TenantBudget" in min(said)
