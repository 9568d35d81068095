"""Drawn sequences come to rest, and their judge finds what is wrong with one that does not."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest

from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.manifest import ObjectKey
from tests.floors.drawn.fleet import DrawnFleet
from tests.floors.drawn.play import Event, Play, drawn_events, shrunk
from tests.floors.drawn.promises import Promises
from tests.floors.drawn.verdict import end_findings
from tests.floors.fleet import NAMESPACE, add_gpus
from tests.floors.kube import BAD_IMAGE

# Sequences of the short run; `make bench-floors` plays more.
_SEEDS = (4, 59, 557)
CHAT = ObjectKey(INFERENCE_SERVICES.plural, NAMESPACE, "chat")


@pytest.fixture
async def fleet() -> AsyncIterator[DrawnFleet]:
    """Serve two replicas on three GPUs, at rest."""
    fleet = DrawnFleet.begin()
    add_gpus(fleet, "a100", 3)
    fleet.serve("chat", 2)
    await fleet.settle()
    await fleet.run(330)
    assert list(end_findings(fleet)) == [], fleet.describe()
    yield fleet
    await fleet.close()


def _say(fleet: DrawnFleet, type: str, status: str, reason: str, message: str) -> None:
    """Write a condition as an operator that is wrong would."""
    fleet.kube.condition(CHAT, type, status, reason=reason, message=message)


def _findings(fleet: DrawnFleet) -> str:
    return "\n".join(each for each in end_findings(fleet) if "changed" not in each)


@pytest.mark.parametrize("seed", _SEEDS)
async def test_a_drawn_sequence_comes_to_rest(seed: int) -> None:
    play = Play(seed)
    verdict = await play.run()
    text = "\n".join([*verdict.findings[:5], *play.log])
    assert verdict.is_clean, text


def test_a_seed_draws_the_same_events_and_each_kind_sometime() -> None:
    assert drawn_events(7) == drawn_events(7)
    kinds = {event.kind for seed in range(100) for event in drawn_events(seed)}
    assert {"node-silent", "autoscaler", "revision-deleted", "clock-steps"} <= kinds


@pytest.mark.parametrize(
    ("reason", "message", "finding"),
    [
        ("RollingOut", "an old replica stops first", "is RollingOut for ever"),
        ("FieldManagerConflict", "set it back to 2", "says FieldManagerConflict"),
        ("ProgressDeadlineExceeded", "change spec.engine", "waits for an edit that was made"),
        ("RolledBack", "Dearer: 0.0885 > 0.0527", "says RolledBack: Dearer"),
    ],
)
async def test_a_reason_that_is_no_end_is_found(
    reason: str, message: str, finding: str, fleet: DrawnFleet
) -> None:
    _say(fleet, "Progressing", "False", reason, message)
    assert finding in _findings(fleet)


async def test_a_service_that_is_set_aside_is_found(fleet: DrawnFleet) -> None:
    _say(fleet, "Accepted", "False", "PlannerError", "spec: planning raised ValueError")
    assert "is set aside" in _findings(fleet)


async def test_a_floor_beside_a_free_device_is_found(fleet: DrawnFleet) -> None:
    fleet.kube.begin_deletion(next(key for key, _ in fleet.kube.pods()))
    assert "is below its floor beside 1 nvidia.com/gpu that are free" in _findings(fleet)


async def test_a_service_that_lacks_hardware_is_at_rest_once_a_condition_names_it(
    fleet: DrawnFleet,
) -> None:
    fleet.take_devices("a100")
    fleet.set_floor("chat", 3)
    await fleet.run(900)
    assert _findings(fleet) == ""
    _say(fleet, "Placed", "True", "Placed", "on a100")
    _say(fleet, "Progressing", "True", "RolloutComplete", "2 replicas ready")
    assert "has no condition that says what to do" in _findings(fleet)


async def test_a_template_that_the_spec_has_no_more_is_found(fleet: DrawnFleet) -> None:
    fleet.edit("chat", podTemplate={"annotations": {"edit": "1"}})
    assert "of an older template" in _findings(fleet)


async def test_a_template_that_cannot_start_is_found_once_the_spec_is_mended(
    fleet: DrawnFleet,
) -> None:
    fleet.break_template("chat")
    await fleet.run(90)
    assert BAD_IMAGE in fleet.images("chat")
    assert _findings(fleet) == ""
    fleet.edit("chat", engine=None)
    assert "of a template that cannot start" in _findings(fleet)


async def test_writes_that_go_on_are_found(fleet: DrawnFleet) -> None:
    for _ in range(3):
        fleet.kube.touch(CHAT)
        await fleet.run(60)
    assert "inferenceservices/chat changed 3 times" in "\n".join(end_findings(fleet))


async def test_more_replicas_than_a_closed_limit_pays_are_found(fleet: DrawnFleet) -> None:
    fleet.set_budget([{"window": "Month", "amount": "0.01"}])
    fleet.closed_at = {"chat": 1}
    fleet.set_floor("chat", 1)
    assert "of which the budget pays 1" in _findings(fleet)


async def test_a_promise_that_nothing_follows_is_found_once(fleet: DrawnFleet) -> None:
    promises = Promises(fleet)
    _say(fleet, "Progressing", "True", "RollingOut", "in place, an old replica stops first")
    for minutes in (0, 10, 20, 30):
        fleet.kube.at += timedelta(minutes=minutes)
        promises.look()
    assert len(promises.untrue) == 1
    assert "nothing changed for" in promises.untrue[0]


async def test_a_promise_is_kept_by_its_act_or_by_other_words(fleet: DrawnFleet) -> None:
    promises = Promises(fleet)
    for words in ("an old replica stops first", "an old replica leaves first"):
        _say(fleet, "Progressing", "True", "RollingOut", words)
        promises.look()
        fleet.kube.at += timedelta(minutes=10)
        promises.look()
    fleet.kube.begin_deletion(next(key for key, _ in fleet.kube.pods()))
    fleet.kube.at += timedelta(minutes=10)
    promises.look()
    assert promises.untrue == []


async def test_a_moment_that_is_over_is_found(fleet: DrawnFleet) -> None:
    promises = Promises(fleet)
    until = fleet.kube.at + timedelta(minutes=5)
    text = f"the number stays until {until:%H:%M:%S} UTC"
    _say(fleet, "Progressing", "False", "WaitingForDevice", text)
    promises.look()
    fleet.kube.at = until
    promises.look()
    assert promises.untrue == []
    fleet.kube.at += timedelta(minutes=3)
    promises.look()
    assert "is over" in promises.untrue[0]


async def test_events_that_a_finding_does_not_need_are_dropped() -> None:
    events = [Event(kind="edit", begins=tick, ticks=2, draw=tick) for tick in range(12)]

    async def finds(fewer: Sequence[Event]) -> bool:
        return {2, 7} <= {event.draw for event in fewer}

    assert [event.draw for event in await shrunk(events, finds)] == [2, 7]
