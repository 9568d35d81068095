"""Two faults during a batch: every row once, or nothing published."""

import asyncio

import pytest

from demo.cluster import InstalledCluster
from faults import scenes
from faults.batch_faults import BY_NAME, BatchFleet
from scenarios.batches import RowCounts, create_shared_claim
from tests.fault_sequences.language import Occurrence

pytestmark = pytest.mark.world
_ROWS, _TOKENS = 200, 60


@pytest.mark.parametrize(
    "scene",
    [
        *scenes.SHORT_BATCHES,
        *(pytest.param(name, marks=pytest.mark.full) for name in scenes.FULL_BATCHES),
    ],
)
async def test_a_batch_with_two_faults_publishes_every_row_once_or_nothing(
    cluster: InstalledCluster, scene: str
) -> None:
    name = scene.replace(".", "-")
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    namespace = await create_shared_claim(cluster, name)
    batch = await namespace.submit("night", rows=_ROWS, tokens=_TOKENS)
    fleet = BatchFleet(batch, asyncio.get_running_loop())
    sequence, log = scenes.sequence_of_names(scene, BY_NAME), list[str]()

    def note(occurrence: Occurrence[BatchFleet]) -> None:
        log.append(occurrence.describe())

    await scenes.play(sequence, fleet, note)
    status = await batch.wait_until_finished()

    permitted = {"completed", *(state for fault in sequence.faults for state in fault.permits)}
    shown = "\n".join([f"{status['state']} {status.get('message')}", *log])
    assert status["state"] in permitted, shown
    if status["state"] == "completed":
        assert batch.count_rows() == RowCounts(lost=0, duplicates=0, wrong=()), shown
    else:
        assert not (namespace.claim_folder / "night.jsonl").exists(), shown
