"""Who else writes the replicas of a Deployment, and when the number is set back."""

from datetime import timedelta

import pytest

from tessera.domain.observed.snapshot import ForeignField, Workload
from tessera.domain.placement.cover import Need
from tessera.domain.rollout.replica_conflict import (
    CONFLICT_MEMORY,
    ContestedReplicas,
    ReplicaConflict,
    WrittenReplicas,
    leaves_enough,
    next_conflict,
)
from tests.builders import NOW, a_workload, at

HPA = ForeignField("kube-controller-manager", "spec.replicas")


def written(replicas: int, generation: int) -> Workload:
    return a_workload(replicas, generation=generation, foreign_fields=(HPA,))


def waits_of(writes: int, *, may_stand: bool = True, desired: int = 2) -> list[float]:
    """Return for how long each number of an autoscaler stands that writes 15 s after each."""
    conflict, now, waits = None, NOW, []
    for generation in range(writes):
        workload = written(4, generation)
        conflict = next_conflict(conflict, workload, desired, now, may_stand=may_stand)
        assert conflict is not None
        waits.append((conflict.correction_at - now).total_seconds())
        now = conflict.correction_at + timedelta(seconds=15)
    return waits


def test_the_first_numbers_are_set_back_at_once_and_later_ones_ever_later() -> None:
    assert waits_of(10) == [0, 0, 0, 60, 120, 240, 480, 600, 600, 600]


def test_a_number_that_may_not_stand_is_set_back_at_once_every_time() -> None:
    assert waits_of(10, may_stand=False) == [0] * 10


def a_conflict(**fields: int) -> ReplicaConflict:
    return ReplicaConflict(
        manager=HPA.manager,
        replicas=4,
        generation=7,
        writes=fields.get("writes", 4),
        correction_at=at(fields.get("seconds", 60)),
    )


@pytest.mark.parametrize("workload", [written(4, 7), a_workload(4, generation=7)])
def test_a_number_that_stands_is_no_new_one(workload: Workload) -> None:
    """Tessera applies it meanwhile, so that both own the field."""
    last = a_conflict()
    assert next_conflict(last, workload, 2, at(30), may_stand=True) is last
    assert (last.stands(at(59)), last.stands(at(60))) == (True, False)


def test_another_number_waits_no_longer_than_the_one_before() -> None:
    conflict = next_conflict(a_conflict(), written(5, 8), 2, at(30), may_stand=True)
    assert conflict is not None
    assert (conflict.replicas, conflict.writes, conflict.correction_at) == (5, 4, at(60))


@pytest.mark.parametrize(("replicas", "may_stand"), [(2, True), (4, False)])
def test_a_number_stops_standing_when_it_is_right_or_may_stand_no_more(
    replicas: int, may_stand: bool
) -> None:
    workload = written(replicas, 8)
    conflict = next_conflict(a_conflict(), workload, 2, at(30), may_stand=may_stand)
    assert conflict is not None
    assert conflict.stands(at(30)) is False


def test_a_conflict_is_over_when_nobody_wrote_for_two_minutes() -> None:
    last, quiet = a_conflict(), a_workload(2, generation=8)
    end = last.correction_at + CONFLICT_MEMORY
    before = end - timedelta(seconds=1)
    assert next_conflict(last, quiet, 2, before, may_stand=True) is last
    assert next_conflict(last, quiet, 2, end, may_stand=True) is None
    again = next_conflict(last, written(4, 9), 2, end, may_stand=True)
    assert again is not None
    assert again.writes == 1


def of_variants(*counts: tuple[int, int], spot: bool = False) -> list[WrittenReplicas]:
    """Decided and written replicas of variants that serve 10, 20, ... tokens per second each."""
    return [
        WrittenReplicas(10 * index, not spot, decided, written)
        for index, (decided, written) in enumerate(counts, start=1)
    ]


@pytest.mark.parametrize(
    ("need", "counts", "enough"),
    [
        (Need(60, 2), [(6, 6)], True),
        (Need(60, 2), [(6, 5)], False),
        (Need(10, 2), [(2, 1)], False),
        # Reserved replicas stay beside what is needed.
        (Need(10, 2), [(6, 2)], True),
        (Need(10, 2), [(6, 1)], False),
        # The floor and the load are those of all Deployments together.
        (Need(40, 3), [(2, 2), (2, 1)], True),
        (Need(50, 3), [(2, 2), (2, 1)], False),
        (Need(40, 4), [(2, 2), (2, 1)], False),
        (Need(40, 3), [(2, 1), (2, 1)], False),
        # More than was decided of a variant replaces none of another one.
        (Need(60, 2), [(2, 9), (2, 1)], False),
        # A budget grants less than is needed.
        (Need(60, 6), [(3, 6)], True),
        (Need(60, 6), [(3, 2)], False),
    ],
)
def test_fewer_replicas_stand_only_where_all_variants_have_what_is_needed(
    need: Need, counts: list[tuple[int, int]], *, enough: bool
) -> None:
    assert leaves_enough(need, of_variants(*counts)) is enough


def test_spot_replicas_replace_none_of_the_floor_on_other_nodes() -> None:
    variants = [*of_variants((2, 1)), *of_variants((2, 2), spot=True)]
    assert leaves_enough(Need(20, 2, 1), variants)
    assert not leaves_enough(Need(20, 2, 2), variants)


def test_the_message_names_manager_field_and_numbers_and_says_how_to_scale() -> None:
    workload = written(4, 7)
    waiting = ContestedReplicas(workload, 2, a_conflict()).verdict(at(30)).message
    assert waiting == (
        "Deployment/chat-a100-1g-10gb: kube-controller-manager set spec.replicas to 4, and "
        "Tessera, which decides this number, sets it back to 2 at 2026-11-20T12:01:00Z. Scale "
        "InferenceService/chat instead: kubectl -n team-a scale tsvc/chat --replicas=4, or for a "
        "HorizontalPodAutoscaler spec.scaling.mode External and this object as its scaleTargetRef."
    )
    contested = ContestedReplicas(workload, 2, a_conflict(writes=1))
    corrected = contested.verdict(at(60)).message
    assert "and Tessera, which decides this number, set it back to 2 (1 time). " in corrected
