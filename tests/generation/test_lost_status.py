"""An object is restored without its status, as by most backups: the end is as without that."""

import pytest

from tessera.api.schema import CustomResource
from tests.cases import full
from tests.generation.driven_fleet import DRIVEN_KINDS, DrivenTwins, report_node_layout, state
from tests.hostile.twin import HOSTILE
from world.object_comparison import differences

# Of running replicas the revision is read from their Deployment, where why it was chosen is not;
# and a plan that is made again begins with the layout that is there.
_MADE_AGAIN = (
    *("status/model/reason", "status/model/message", "status/mig/target/services/"),
    *("status/mig/target/gpusBefore", "status/mig/target/perHourBefore"),
    "status/mig/target/changes",
)
# A record of the spend is rounded to nano-units for each replica.
_ROUNDING_NANOS = 10


@pytest.mark.parametrize("restarted", [True, *full(False)], ids=["restarted", "running"])
@pytest.mark.parametrize(
    "kind", [*DRIVEN_KINDS, None], ids=lambda kind: kind.kind if kind else "all"
)
async def test_a_lost_status_is_written_again_and_nothing_else_changes(
    kind: CustomResource | None, restarted: bool
) -> None:
    twins = DrivenTwins(*([kind] if kind else DRIVEN_KINDS))
    await twins.run(cycles=14)
    for key in twins.keys:
        twins.edit(lambda body: body.pop("status"), key)
    if restarted:
        twins.restart()
    await twins.run(cycles=2)
    report_node_layout(twins.hostile, HOSTILE)
    await twins.run(cycles=10)

    different = differences(state(twins.peaceful), state(twins.hostile))
    assert not [line for line in different if not any(path in line for path in _MADE_AGAIN)]
    assert abs(twins.hostile.spent(HOSTILE) - twins.peaceful.spent(HOSTILE)) <= _ROUNDING_NANOS
    assert twins.hostile.spent("team-a") == twins.peaceful.spent("team-a")
