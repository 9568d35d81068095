"""The order in which decided work is written: works and the time in, the next work out."""

import math
from collections import Counter
from collections.abc import Iterable

import pytest

from tessera.domain.status.service import StatusUrgency
from tessera.reconcile.loop import Backlog
from tessera.reconcile.writing.defects import Defects
from tessera.reconcile.writing.write_order import (
    BURST_STATUS_DELAY_SECONDS,
    MANY,
    MAX_CONCURRENCY,
    SETTLING_DELAY_SECONDS,
    STATUS_DELAY_SECONDS,
    DoubleWorkError,
    Stage,
    Work,
    WorkKey,
    WriteOrder,
)
from tessera.resources.manifest import ObjectKey


def _key(name: str, stage: Stage = Stage.CHILDREN, namespace: str = "team-a") -> WorkKey:
    return WorkKey(ObjectKey("inferenceservices", namespace, name), stage)


async def _nothing() -> None:
    """Nobody runs it here."""


def _work(
    name: str,
    stage: Stage = Stage.CHILDREN,
    *after: WorkKey,
    urgency: StatusUrgency = StatusUrgency.USUAL,
) -> Work:
    namespace, _, name = name.rpartition("/")
    return Work(_key(name, stage, namespace or "team-a"), _nothing, after, urgency)


def _begin_all(order: WriteOrder, now: float = 0.0) -> list[Work]:
    """Return all work that begins while none ends."""
    begun = []
    while (work := order.next(now)) is not None:
        begun.append(work)
    return begun


def _write_all(order: WriteOrder, now: float = 0.0) -> list[str]:
    """Return the names and stages of all work that begins, one after the other."""
    written = []
    while (work := order.next(now)) is not None:
        order.end(work, now, is_finished=True)
        written.append(f"{work.key.owner.name} {work.key.stage.name}")
    return written


def _order(*works: Work, defects: Defects | None = None) -> WriteOrder:
    order = WriteOrder(defects or Defects())
    order.replace(works, 0.0)
    return order


def test_work_that_has_not_begun_is_replaced_by_that_of_a_newer_plan() -> None:
    order = _order(_work("a"), _work("b"))
    order.replace((newer := _work("b"), _work("c")), 1.0)
    assert next(work for work in _begin_all(order) if work.key.owner.name == "b") is newer
    assert order.next(math.inf) is None


def test_an_owner_in_progress_gets_no_newer_work_and_is_named() -> None:
    order = _order(_work("a"))
    (begun,) = _begin_all(order)
    works = _work("a"), _work("a", Stage.STATUS, begun.key), _work("b")
    assert order.replace(works, 1.0) == {begun.key.owner}
    assert _write_all(order, math.inf) == ["b CHILDREN"]


def test_children_come_before_statuses_and_both_after_what_they_need() -> None:
    first = _key("budget", Stage.FLEET)
    order = _order(
        _work("a", Stage.STATUS, _key("a")),
        _work("a", Stage.CHILDREN, first),
        _work("b", Stage.STATUS),
        _work("b"),
        _work("budget", Stage.FLEET),
    )
    assert _write_all(order, 0.0)[0] == "budget FLEET"
    assert [work.key.stage for work in _begin_all(order, STATUS_DELAY_SECONDS)] == [Stage.STATUS]


def test_what_needs_other_work_waits_until_that_has_ended() -> None:
    order = _order(
        _work("budget", Stage.FLEET),
        _work("a", Stage.CHILDREN, _key("budget", Stage.FLEET)),
        _work("b"),
    )
    budget, other = _begin_all(order)
    assert (budget.key.stage, other.key.owner.name) == (Stage.FLEET, "b")
    order.end(budget, 0.0, is_finished=True)
    assert [work.key.owner.name for work in _begin_all(order)] == ["a"]


def test_what_waits_longest_comes_first_and_namespaces_take_turns() -> None:
    order = _order(_work("old"))
    news = [_work(f"new-{index}") for index in range(3)]
    order.replace((*news, _work("old"), _work("team-b/other")), 1.0)
    names = [line.partition(" ")[0] for line in _write_all(order, 1.0)]
    assert names == ["old", "other", "new-0", "new-1", "new-2"]


def test_statuses_that_are_due_take_turns_whenever_they_became_due() -> None:
    order = _order(_work("a"))
    assert _write_all(order, 0.0) == ["a CHILDREN"]
    new = [_work(f"team-b/{index}", Stage.STATUS) for index in range(3)]
    order.replace((*new, _work("a", Stage.STATUS)), 0.5)
    assert [work.key.owner.name for work in _begin_all(order, math.inf)] == ["0", "a", "1", "2"]


def _many(stages: Iterable[Stage]) -> list[Work]:
    return [
        _work(f"{stage.name}-{index}", stage)
        for stage in stages
        for index in range(2 * MAX_CONCURRENCY)
    ]


@pytest.mark.parametrize(
    ("stages", "begun"),
    [
        (
            (Stage.CHILDREN, Stage.GATES, Stage.STATUS),
            {Stage.CHILDREN: 11, Stage.GATES: 4, Stage.STATUS: 1},
        ),
        ((Stage.CHILDREN,), {Stage.CHILDREN: MAX_CONCURRENCY}),
        ((Stage.STATUS,), {Stage.STATUS: 4}),
    ],
)
def test_each_stage_has_its_places(stages: tuple[Stage, ...], begun: dict[Stage, int]) -> None:
    assert Counter(work.key.stage for work in _begin_all(_order(*_many(stages)))) == begun


def test_an_earlier_stage_ends_before_a_later_one() -> None:
    order = _order(*_many((Stage.CHILDREN, Stage.GATES, Stage.STATUS)))
    stages, running = [], _begin_all(order)
    while running:
        work = running.pop(0)
        stages.append(work.key.stage)
        order.end(work, 0.0, is_finished=True)
        running += _begin_all(order)
    last = {stage: index for index, stage in enumerate(stages)}
    assert len(stages) == 6 * MAX_CONCURRENCY
    assert last[Stage.CHILDREN] < last[Stage.GATES] < last[Stage.STATUS]


def test_changes_in_quick_succession_are_one_status() -> None:
    status = _work("a", Stage.STATUS)
    order = _order(_work("a"), _work("a", Stage.STATUS, _key("a")))
    assert _write_all(order, 0.0) == ["a CHILDREN"]
    for now in (0.2, 0.4):
        order.replace((status,), now)
        assert _write_all(order, now) == []
    assert order.next_due == STATUS_DELAY_SECONDS
    assert _write_all(order, STATUS_DELAY_SECONDS) == ["a STATUS"]


def test_a_status_is_not_put_off_again_and_again() -> None:
    now, written = 0.0, list[str]()
    order = WriteOrder(Defects())
    while "a STATUS" not in written:
        order.replace((_work("a"), _work("a", Stage.STATUS, _key("a"))), now)
        written = _write_all(order, now)
        now += STATUS_DELAY_SECONDS / 2
    assert now == BURST_STATUS_DELAY_SECONDS + STATUS_DELAY_SECONDS / 2


def test_the_first_status_waits_while_it_only_says_that_a_start_goes_on() -> None:
    starting, failed = (
        _work("a", Stage.STATUS, urgency=StatusUrgency.SETTLING),
        _work("a", Stage.STATUS),
    )
    order = _order(starting, _work("b", Stage.STATUS))
    assert _write_all(order, 0.0) == ["b STATUS"]
    order.replace((starting,), 1.0)
    assert (_write_all(order, 1.0), order.next_due) == ([], SETTLING_DELAY_SECONDS)
    order.replace((failed,), 2.0)
    assert _write_all(order, 2.0) == ["a STATUS"]


def test_a_status_that_settles_waits_from_the_last_write() -> None:
    order = _order(_work("a"), _work("a", Stage.STATUS, _key("a"), urgency=StatusUrgency.SETTLING))
    assert _write_all(order, 3.0) == ["a CHILDREN"]
    assert order.next_due == 3.0 + SETTLING_DELAY_SECONDS


def test_a_status_that_may_be_over_soon_follows_the_last_write_at_once() -> None:
    order = _order(_work("a"), _work("a", Stage.STATUS, _key("a"), urgency=StatusUrgency.AT_ONCE))
    assert _write_all(order, 3.0) == ["a CHILDREN", "a STATUS"]


def test_statuses_wait_long_while_many_objects_are_left() -> None:
    many = [_work(str(index)) for index in range(MANY + 2)]
    order = _order(*many, _work("0", Stage.STATUS, _key("0")))
    assert order.backlog is Backlog.OBJECTS
    work = order.next(0.0)
    assert work is not None
    order.end(work, 0.0, is_finished=True)
    assert order.next_due == BURST_STATUS_DELAY_SECONDS
    _write_all(order, 0.0)
    assert (order.backlog, order.next_due) == (Backlog.NONE, BURST_STATUS_DELAY_SECONDS)


def test_unfinished_work_waits_since_it_was_decided_first() -> None:
    order = _order(_work("a"))
    (work,) = _begin_all(order)
    order.end(work, 0.5, is_finished=False)
    assert order.next(math.inf) is None
    order.replace((_work("b"), _work("a")), 1.0)
    assert _write_all(order, 1.0) == ["a CHILDREN", "b CHILDREN"]


def test_the_second_work_of_a_key_is_dropped_and_told() -> None:
    defects, first = Defects(), _work("a")
    order = _order(first, _work("a"), defects=defects)
    assert _begin_all(order) == [first]
    assert [type(defect) for defect in defects.take()] == [DoubleWorkError]


def test_an_error_while_ordering_work_costs_its_object_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defects = Defects()
    order = WriteOrder(defects)
    due = order._due

    def raise_for_bad(work: Work) -> float:
        if work.key.owner.name == "bad":
            raise KeyError("bad")
        return due(work)

    monkeypatch.setattr(order, "_due", raise_for_bad)
    bad = _work("bad", Stage.STATUS)
    order.replace((bad, _work("good", Stage.STATUS), _work("last", Stage.STATUS, bad.key)), 0.0)
    assert _write_all(order, 0.0) == ["good STATUS", "last STATUS"]
    assert [type(defect) for defect in defects.take()] == [KeyError]
    monkeypatch.undo()
    order.replace((bad,), 1.0)
    assert _write_all(order, 1.0) == ["bad STATUS"]
