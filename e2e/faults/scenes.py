"""Which faults come together, and how they are played."""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import TypeVar

from demo.cluster import Json
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from tests.fault_sequences.language import Fault, FaultSequence, Occurrence, occurrences

# Names of two faults, and the names of the nodes on which they are played.
SHORT_LAYOUTS = ("plugin-slow.other-devices",)
FULL_LAYOUTS = (
    "plugin-slow.slices-gone",
    "plugin-slow.label-off",
    "plugin-slow.pool-deleted",
    "agent-stale.operator-restarts",
    "two-budgets.other-devices",
    "gpus-lost.operator-restarts",
    "service-rolled.operator-restarts",
    "service-rolled-again-and-again.other-devices",
)
SHORT_BATCHES = ("runner-frozen.volume-read-only",)
FULL_BATCHES = (
    "volume-full.engine-frozen",
    "engine-killed.volume-denied",
    "input-prepended.runner-killed",
    "runner-frozen.input-cut",
)
SPOT_NODES: Json = {
    "name": "spot",
    "count": 2,
    "product": "NVIDIA-A100-SXM4-80GB",
    "tier": "Spot",
    "cloud": "aws",
    "gpus": [["3g.40gb"]],
    "labels": {"scene": "batches"},
}
SPOT_POOL: Json = {
    "apiVersion": ACCELERATOR_POOLS.api_version,
    "kind": ACCELERATOR_POOLS.kind,
    "metadata": {"name": "spot"},
    "spec": {
        "nodeSelector": {"scene": "batches"},
        "tier": "Spot",
        "prices": [{"from": "2026-01-01", "perGPUHour": "0.80"}],
    },
}
_STEP_SECONDS = 0.5
# The first fault begins within this time.
_SPREAD_SECONDS = 1.0
# A fault that finds nothing to act on within this time is left out.
_REACH_SECONDS = 120.0
FleetT = TypeVar("FleetT")


def sequence_of_names(scene: str, faults: Mapping[str, Fault[FleetT]]) -> FaultSequence[FleetT]:
    first, second = (faults[name] for name in scene.split("."))
    return FaultSequence(seed=0, faults=(first, second))


async def play(
    sequence: FaultSequence[FleetT],
    fleet: FleetT,
    note: Callable[[Occurrence[FleetT]], None],
) -> None:
    """Let the faults begin and end, in a thread since they wait for what they do."""
    rng = random.Random(sequence.seed)  # noqa: S311 - no secret
    begin = asyncio.get_running_loop().time()
    planned = occurrences(sequence, rng, 0, _SPREAD_SECONDS, _STEP_SECONDS)
    while not all(occurrence.over for occurrence in planned):
        now = asyncio.get_running_loop().time() - begin
        for occurrence in planned:
            if occurrence.target is None and now > _REACH_SECONDS:
                occurrence.over = True  # the batch or the repartition was over before
            elif await asyncio.to_thread(occurrence.step, fleet, now, rng):
                note(occurrence)
        await asyncio.sleep(_STEP_SECONDS)
