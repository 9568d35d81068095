"""What one node says of the time, and what the edits of one object keep in memory."""

from datetime import timedelta

import pytest

from tessera.adapters.kube.object_parsing import cached_spec
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tests.builders import SMALL
from tests.hostile.score import SCORE
from tests.hostile.twin import HOSTILE, Fleet, Twins

TENANT = "team-a"
# Nano-units of a 1g.10gb slice at 2 USD per GPU and hour in a cycle of 5 s, rounded up.
SLICE_CYCLE = 372_024


def _build(fleet: Fleet) -> None:
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    fleet.add_budget(TENANT, "100")
    fleet.serve("chat", TENANT, replicas=2)


def _end_pod(fleet: Fleet, ahead: timedelta) -> None:
    """Let the first replica end now, by a clock of its node that is this far ahead."""
    pod = fleet.cluster.objects[fleet.pods_of(TENANT, "chat")[0]]
    finished = f"{fleet.at + ahead:%Y-%m-%dT%H:%M:%SZ}"
    pod["status"]["phase"] = "Failed"
    pod["status"]["containerStatuses"] = [{"state": {"terminated": {"finishedAt": finished}}}]
    # The pod stays there until somebody deletes it, as one that was evicted does.
    pod["metadata"]["ownerReferences"] = []
    fleet.cluster.touch(fleet.pods_of(TENANT, "chat")[0])


@pytest.mark.parametrize("ahead", [timedelta(minutes=5), timedelta(hours=1), timedelta(days=40)])
async def test_a_pod_that_ended_by_a_clock_ahead_costs_what_it_ran(ahead: timedelta) -> None:
    twins = Twins(_build)
    await twins.run(cycles=12)
    _end_pod(twins.hostile, ahead)
    _end_pod(twins.peaceful, timedelta())
    await twins.run(cycles=20)
    spent = [fleet.spent(TENANT) for fleet in twins.both]
    assert spent[0] > 0
    SCORE.add(spent[0] != spent[1])
    assert spent[0] == spent[1]
    lines = [
        sum(nanos for line, nanos in fleet.bill.lines.items() if line.namespace == TENANT)
        for fleet in twins.both
    ]
    # The bill leaves out the part of a cycle in which nobody knows when the pod ended.
    assert 0 <= lines[1] - lines[0] <= SLICE_CYCLE


async def test_edits_of_one_large_object_are_not_kept() -> None:
    twins = Twins(_build)
    await twins.run(cycles=6)
    body = {"metadata": {"name": "large", "namespace": HOSTILE}}
    cached = cached_spec.cache_info().currsize
    for edit in range(40):
        env = [{"name": f"V{index}", "value": f"{edit}" * 1000} for index in range(30)]
        spec = {"model": {"uri": SMALL}, "replicas": 0, "podTemplate": {"env": env}}
        twins.hostile.cluster.put(INFERENCE_SERVICES, body | {"spec": spec})
        await twins.hostile.reconcile()
    assert cached_spec.cache_info().currsize == cached
    await twins.run(cycles=6)
    twins.assert_equal()
