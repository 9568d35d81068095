"""Who else writes the replicas of a Deployment, and when the number is set back."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from tessera.api.service_status import ReplicaConflict
from tessera.domain.observed.snapshot import ForeignField, ListedAutoscalers, Workload
from tessera.domain.placement.cover import Need
from tessera.domain.rollout.replica_conflict import (
    CONFLICT_MEMORY,
    ContestedReplicas,
    WrittenReplicas,
    holds_rollout,
    leaves_enough,
    next_conflict,
    stands,
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
        deployment="chat-a100-1g-10gb",
        manager=HPA.manager,
        replicas=4,
        generation=7,
        writes=fields.get("writes", 4),
        correction_at=at(fields.get("seconds", 60)),
        since=NOW,
    )


@pytest.mark.parametrize("workload", [written(4, 7), a_workload(4, generation=7)])
def test_a_number_that_stands_is_no_new_one(workload: Workload) -> None:
    """Tessera applies it meanwhile, so that both own the field."""
    last = a_conflict()
    assert next_conflict(last, workload, 2, at(30), may_stand=True) is last
    assert (stands(last, at(59)), stands(last, at(60))) == (True, False)


def test_a_conflict_of_before_the_clock_was_set_back_ends_in_its_time() -> None:
    workload = a_workload(2, generation=7)
    last = a_conflict(seconds=3600)
    known = next_conflict(last, workload, 2, at(1), may_stand=True)
    assert known is not None
    assert known.correction_at == at(1)
    assert next_conflict(known, workload, 2, at(1) + CONFLICT_MEMORY, may_stand=True) is None


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
    assert not stands(conflict, at(30))


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
    contested = ContestedReplicas(workload=workload, desired=2, conflict=a_conflict())
    waiting = contested.verdict(at(30))
    assert waiting is not None
    assert waiting.message == (
        "Deployment/chat-a100-1g-10gb: kube-controller-manager set spec.replicas to 4, and "
        "Tessera, which decides this number, sets it back to 2 at 2026-11-20T12:01:00Z. Scale "
        "InferenceService/chat instead: kubectl -n team-a scale tsvc/chat --replicas=4, or for a "
        "HorizontalPodAutoscaler spec.scaling.mode External and this object as its scaleTargetRef."
    )
    corrected = replace(contested, conflict=a_conflict(writes=1)).verdict(at(60))
    assert corrected is not None
    assert "and Tessera, which decides this number, set it back to 2 (1 time). " in (
        corrected.message
    )


# An older template, of which replicas leave for those of a newer one

NONE_LISTED: dict[str, Any] = {"by_deployment": {}}
LISTED: dict[str, Any] = {"by_deployment": {"chat-a100-1g-10gb": "chat"}}


def next_of_older(
    last: ReplicaConflict | None, workload: Workload, now: datetime, **listed: Any
) -> ReplicaConflict:
    conflict = next_conflict(
        last,
        workload,
        2,
        now,
        may_stand=True,
        is_older=True,
        listed=ListedAutoscalers(at=now, **listed) if listed else None,
    )
    assert conflict is not None
    return conflict


def test_each_number_that_was_taken_and_set_again_doubles_the_silence() -> None:
    now, silences, last = NOW, [], None
    for generation in range(1, 8):
        since, last = now, next_of_older(last, written(2, generation), now, **NONE_LISTED)
        while not last.is_taken:
            now += timedelta(seconds=30)
            last = next_of_older(last, written(2, generation), now, **NONE_LISTED)
        silences.append((now - since) / timedelta(minutes=1))
        now += timedelta(minutes=1)
    assert silences == [2, 4, 8, 16, 32, 32, 32]


@pytest.mark.parametrize(
    ("listed", "stands"),
    [
        pytest.param({}, True, id="not listed yet"),
        pytest.param({"problem": "403 forbidden"}, True, id="refused"),
        pytest.param(LISTED, True, id="scaled"),
        pytest.param({"by_deployment": {"other": "chat"}}, False, id="others are scaled"),
    ],
)
def test_a_number_is_taken_back_only_where_no_autoscaler_is_listed(
    listed: dict[str, Any], *, stands: bool
) -> None:
    workload = written(2, 7)
    last, now = next_of_older(None, workload, NOW), at(3600)
    known = ListedAutoscalers(at=now, **listed) if listed else None
    assert holds_rollout(last, workload, known, now) is stands
    assert next_of_older(last, workload, now, **listed).is_taken is not stands


def test_a_list_from_before_the_last_write_says_nothing() -> None:
    workload = written(2, 7)
    last = next_of_older(None, workload, at(60))
    assert holds_rollout(last, workload, ListedAutoscalers(at=at(59)), at(3600))


def test_a_rollout_is_held_from_the_first_look_at_a_number_of_somebody_else() -> None:
    assert holds_rollout(None, written(2, 7), None, NOW)
    assert not holds_rollout(None, a_workload(2, generation=7), None, NOW)


def test_an_autoscaler_that_comes_after_the_number_was_taken_back_holds_the_rollout_again() -> None:
    workload = written(2, 7)
    last = next_of_older(None, workload, NOW)
    last = next_of_older(last, workload, at(120), **NONE_LISTED)
    assert last.is_taken
    assert ContestedReplicas(workload=workload, desired=1, conflict=last).verdict(at(120)) is None
    assert not next_of_older(last, workload, at(150), **LISTED).is_taken


def test_a_conflict_lasts_as_long_as_its_autoscaler() -> None:
    last, quiet, later = a_conflict(), a_workload(2, generation=8), at(3600)
    for is_older in (True, False):
        listed = ListedAutoscalers(at=later, **LISTED)
        known = next_conflict(
            last, quiet, 2, later, may_stand=True, is_older=is_older, listed=listed
        )
        assert known is last
    assert next_conflict(last, quiet, 2, later, may_stand=True) is None


@pytest.mark.parametrize(
    ("listed", "text"),
    [
        (
            LISTED,
            "HorizontalPodAutoscaler/chat scales it, and kube-controller-manager set spec.replicas "
            "to 2 last; the newest template waits until HorizontalPodAutoscaler/chat is gone or "
            "scales something else. Delete it (or the ScaledObject that owns it): kubectl -n "
            "team-a delete hpa chat, or set spec.scaling.mode of InferenceService/chat to External "
            "and name that object in its scaleTargetRef.",
        ),
        (
            {"problem": "403 forbidden"},
            "kube-controller-manager set spec.replicas to 2 last; the newest template waits until "
            "the HorizontalPodAutoscalers of namespace team-a are listed. Listing them failed: 403 "
            "forbidden. Grant the operator the verb list on horizontalpodautoscalers of API group "
            "autoscaling, as its chart does.",
        ),
        (
            NONE_LISTED,
            "kube-controller-manager set spec.replicas to 2 last; the newest template waits until "
            "2026-11-20T12:02:00Z, and goes on then unless somebody writes spec.replicas. Scale "
            "InferenceService/chat instead: kubectl -n team-a scale tsvc/chat --replicas=2, or for "
            "a HorizontalPodAutoscaler spec.scaling.mode External and this object as its "
            "scaleTargetRef.",
        ),
    ],
)
def test_the_message_says_what_a_rollout_waits_for_and_whose_act_ends_it(
    listed: dict[str, Any], text: str
) -> None:
    workload = written(2, 7)
    contested = ContestedReplicas(
        workload=workload,
        desired=2,
        conflict=next_of_older(None, workload, NOW),
        is_older=True,
        listed=ListedAutoscalers(at=NOW, **listed),
    )
    verdict = contested.verdict(at(30))
    assert verdict is not None
    assert verdict.message == f"Deployment/chat-a100-1g-10gb: {text}"
