"""The clocks of all nodes step by hours or days: only the times that kubelets write differ."""

from datetime import timedelta

import pytest

from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tests.cases import full
from tests.generation.driven_fleet import DrivenTwins, state
from tests.hostile.twin import HOSTILE
from world.object_comparison import differences


@pytest.mark.parametrize(
    "step",
    [timedelta(hours=-2), timedelta(days=3), *full(timedelta(hours=2), timedelta(days=-40))],
    ids=str,
)
async def test_a_step_of_the_clocks_of_nodes_changes_no_replica_and_no_charge(
    step: timedelta,
) -> None:
    twins = DrivenTwins(INFERENCE_SERVICES)
    await twins.run(cycles=14)
    twins.hostile.kubelet_ahead = step
    for replicas in (4, 1, 3):
        for fleet in twins.both:
            spec = fleet.cluster.objects[twins.key]["spec"]
            spec["scaling"] = {"minReplicas": replicas, "maxReplicas": replicas}
            fleet.cluster.touch(twins.key)
        await twins.run(cycles=12)
        assert not differences(state(twins.peaceful), state(twins.hostile))
    assert twins.hostile.replicas_of(HOSTILE) == replicas
    assert twins.hostile.spent(HOSTILE) == twins.peaceful.spent(HOSTILE) > 0
