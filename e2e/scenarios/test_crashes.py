"""The operator is killed with -9 at ten seeded moments; the fleet ends as if it never was.

Two courses of the same actions are played, one undisturbed and one with kills. The moments come
from a seed; two are aimed: one between two writes of one turn, one while a wish waits in its
window.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from demo.load import steady_load
from demo.stage import Json
from scenarios.actions import Place
from scenarios.kills import kill_operator
from tessera.resources.api_resources import DEPLOYMENTS, INFERENCE_SERVICES, SERVICES
from world.object_comparison import comparable, differences
from world.testing import eventually

SEED = 20261120
FLEET = 12
Kill = Callable[[], Awaitable[None]]

SCALING = {
    "minReplicas": 1,
    "maxReplicas": 2,
    "queue": {"target": 2},
    "scaleUp": {"stabilizationWindow": "8s", "pods": 1, "period": "10s"},
    "scaleDown": {"stabilizationWindow": "15s"},
}


async def act(place: Place, kill: Kill, moments: random.Random) -> None:
    """Twelve services come, some change, some go; after every action a kill may follow."""

    async def perhaps() -> None:
        await asyncio.sleep(moments.uniform(0, 0.4))
        await kill()

    for index in range(FLEET):
        await place.serve(f"svc-{index:02d}", replicas=0)
    await perhaps()
    for index in range(FLEET):
        await _until_deployed(place, f"svc-{index:02d}", 0)
    await place.serve("svc-00", replicas=0, drain={"timeout": "90s"})
    await perhaps()
    await place.serve("svc-01", replicas=0, context={"maxModelLen": 4096})
    await place.serve("svc-02", replicas=2)
    await perhaps()
    await place.unserve("svc-03")
    await perhaps()
    await _until_deployed(place, "svc-02", 2)
    await place.serve("svc-02", replicas=1)
    await place.serve("svc-04", replicas=0, engine={"extraArgs": ["--max-logprobs=5"]})
    await perhaps()
    await place.serve("svc-05", replicas=0, model={"uri": "hf://Qwen/Qwen2.5-0.5B-Instruct"})
    await perhaps()
    await place.stage.api.delete(SERVICES.path(place.namespace, "svc-06"))
    await perhaps()


async def _until_deployed(place: Place, name: str, replicas: int) -> None:
    """Wait until a number was carried over, so that both courses take the same steps."""

    async def counts() -> list[int]:
        return [one["spec"]["replicas"] for one in _of(await place.children(), name)]

    await eventually(counts, lambda found: found == [replicas], within=60)


def _of(children: dict[str, Json], name: str) -> list[Json]:
    return [one for key, one in children.items() if key.startswith(f"Deployment/{name}-")]


async def settled(place: Place) -> dict[str, Any]:
    """Every object of the place once nothing moves any more, without what may differ."""
    for index in range(FLEET):
        if index != 3:
            reason = "RolloutComplete"
            await place.until_condition(f"svc-{index:02d}", "Progressing", reason, within=90)
    await place.until_ready("svc-02", within=60)
    await eventually(place.children, lambda all_made: not _of(all_made, "svc-03"), within=60)

    async def all_objects() -> dict[str, Any]:
        services = {
            f"InferenceService/{one['metadata']['name']}": one
            for one in await place.all(INFERENCE_SERVICES)
        }
        return {
            name: comparable(one, {place.namespace: "<place>"})
            for name, one in (services | await place.children()).items()
        }

    last: dict[str, Any] = {}

    async def unchanged() -> bool:
        nonlocal last
        before, last = last, await all_objects()
        return before == last

    await eventually(unchanged, bool)
    return last


@pytest.mark.full
async def test_killed_at_any_moment_all_objects_end_equal(place: Place) -> None:
    kills = 0

    async def nothing() -> None:
        """The undisturbed course."""

    async def kill() -> None:
        nonlocal kills
        await kill_operator(place.stage)
        kills += 1

    await act(place, nothing, random.Random(SEED))  # noqa: S311 - a seeded course, no secret
    undisturbed = await settled(place)
    for one in await place.all(INFERENCE_SERVICES):
        await place.unserve(one["metadata"]["name"])
    await eventually(place.children, lambda left: not left, within=60)
    await act(place, kill, random.Random(SEED))  # noqa: S311
    disturbed = await settled(place)
    assert kills == 7
    different = differences(undisturbed, disturbed)
    assert not different, "\n".join(different)


async def test_killed_between_two_writes_of_one_turn_the_rest_follows(place: Place) -> None:
    """Many services at once make a turn of many writes; the kill falls into its midst."""
    for index in range(3 * FLEET):
        await place.serve(f"svc-{index:02d}", replicas=0)

    async def made() -> int:
        return len(await place.all(DEPLOYMENTS))

    await eventually(made, lambda count: count > 0)
    await kill_operator(place.stage)
    at_kill = _writes_before_last_start(place)
    assert 0 < at_kill < 3 * FLEET, f"{at_kill} Deployments were written before the kill"
    await eventually(made, lambda count: count == 3 * FLEET, within=30)
    for index in range(3 * FLEET):
        await place.until_condition(f"svc-{index:02d}", "Progressing", "RolloutComplete", within=30)


@pytest.mark.full
async def test_killed_while_a_wish_waits_nothing_moves_early_and_the_wish_is_kept(
    place: Place,
) -> None:
    ref = await place.serve(scaling=SCALING)
    await place.until_ready()
    base = await place.stage.address(ref)
    moves = Moves(place)
    async with steady_load(base, ref.name, clients=70, tokens=200):
        await _until_reason(place, "ScaleUpStabilized")
        await kill_operator(place.stage)
        await moves.until(2, within=60)
    quiet_since = await _until_reason(place, "ScaleDownStabilized")
    await kill_operator(place.stage)
    await moves.until(1, within=90)
    assert moves.seen == [1, 2, 1]
    assert moves.at - quiet_since >= 15 - 2.5, "replicas left before the window was over"


class Moves:
    """The numbers of replicas that were wanted, and when the last one came."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.seen: list[int] = [1]
        self.at = 0.0

    async def until(self, count: int, within: float) -> None:
        async def wanted() -> int:
            now = int((await self._place.status())["scaling"]["desiredReplicas"])
            if now != self.seen[-1]:
                self.seen.append(now)
                self.at = asyncio.get_running_loop().time()
            return now

        await eventually(wanted, lambda now: now == count, within=within)


async def _until_reason(place: Place, reason: str) -> float:
    async def told() -> str:
        return str((await place.status()).get("scaling", {}).get("reason"))

    await eventually(told, lambda now: now == reason, within=60)
    return asyncio.get_running_loop().time()


def _writes_before_last_start(place: Place) -> int:
    """Deployments of this place that the audit log has before the operator listed anew."""
    written, at_last_start = 0, 0
    for line in place.stage.world.audit_log.read_text().splitlines():
        entry = json.loads(line)
        if "tessera-operator" not in entry["user"]["username"]:
            continue
        target = entry.get("objectRef", {})
        if target.get("resource") == "leases":
            at_last_start = written
        if target.get("resource") == "deployments" and target["namespace"] == place.namespace:
            written += 1
    return at_last_start or written
