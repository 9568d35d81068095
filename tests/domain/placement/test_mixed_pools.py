"""Which devices of a pool with several kinds a service gets, with the gateway and without."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tessera.domain.hardware.pools import discover
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.placement import PlacementDecision, place
from tessera.domain.placement.sharing import may_share_service
from tests.builders import NOW, a_node, a_pool, a_spec

SMALL, LARGE = "a100-1g-10gb", "a100-2g-20gb"


def any_speed(_choices: Sequence[HardwareChoice]) -> None:
    """Allow every mix, as gateways do."""


def placed(taken: Mapping[str, int] | None = None, **given: Any) -> PlacementDecision:
    """Place a service in a pool of one 1g.10gb and three 2g.20gb, some of which others have."""
    node = a_node(slices={"1g.10gb": 1, "2g.20gb": 3})
    used = {("a100", f"nvidia.com/mig-{name}"): count for name, count in (taken or {}).items()}
    given = {"current": None, "min_replicas": 1, "may_share": any_speed, **given}
    views = discover([a_pool()], [node], NOW.date())
    return place(a_spec(), views, namespace="team-a", used_devices=used, **given)


def names(decision: PlacementDecision) -> list[str]:
    return [choice.variant for choice in decision.choices]


@pytest.mark.parametrize(
    ("floor", "expected"),
    [(1, [SMALL]), (2, [LARGE]), (3, [LARGE]), (4, [LARGE, SMALL]), (9, [LARGE, SMALL])],
)
def test_a_new_service_gets_the_cheapest_kind_that_runs_its_floor_and_others_beside_it(
    floor: int, expected: list[str]
) -> None:
    assert names(placed(min_replicas=floor)) == expected


@pytest.mark.parametrize(("floor", "expected"), [(1, SMALL), (3, LARGE), (4, LARGE)])
def test_without_the_gateway_a_new_service_gets_the_kind_that_runs_most_of_its_floor(
    floor: int, expected: str
) -> None:
    assert names(placed(min_replicas=floor, may_share=may_share_service)) == [expected]


def test_what_was_desired_last_needs_another_kind_as_the_floor_does() -> None:
    assert names(placed(current=SMALL, desired=1)) == [SMALL]
    assert names(placed(current=SMALL, desired=2)) == [SMALL, LARGE]


def test_what_runs_on_another_kind_stays_beside_a_first_one_with_room() -> None:
    running = placed(current=SMALL, running_variants={SMALL, LARGE})
    assert names(running) == [SMALL, LARGE]


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("taken", [{"1g.10gb": 1}, {"1g.10gb": 1, "2g.20gb": 3}, {}])
def test_without_the_gateway_a_service_leaves_a_kind_of_which_it_runs_nothing(
    taken: dict[str, int], bound: bool
) -> None:
    decision = placed(
        taken, current=SMALL, may_share=may_share_service, bound=bound, stuck=not bound
    )
    leaves = not bound and taken == {"1g.10gb": 1}
    assert names(decision) == [LARGE if leaves else SMALL]
