"""What an `Incremental` computes again, and what it keeps."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from typing_extensions import override

from tessera.domain.incremental import (
    FOREVER,
    Incremental,
    Until,
    reused,
    reused_per_object,
    reused_until,
)
from tests.builders import at

Calls = list[tuple[object, ...]]


def test_only_what_changed_is_computed_again() -> None:
    calls: Calls = []

    @reused_per_object
    def area(name: str, width: int, height: int) -> int:
        calls.append((name, width, height))
        return width * height

    def total(sizes: dict[str, int]) -> int:
        return sum(area(name, size, 2) for name, size in sizes.items())

    incremental = Incremental()
    assert incremental.run(total, {"a": 1, "b": 2}) == 6
    assert incremental.run(total, {"a": 1, "b": 3}) == 8
    assert calls == [("a", 1, 2), ("b", 2, 2), ("b", 3, 2)]


def test_a_plain_call_keeps_nothing() -> None:
    calls: Calls = []

    @reused
    def count(value: int) -> int:
        calls.append((value,))
        return value

    assert [count(1), count(1)] == [1, 1]
    assert calls == [(1,), (1,)]


def test_the_result_for_an_object_that_is_gone_is_dropped() -> None:
    calls: Calls = []

    @reused_per_object
    def describe(name: str) -> str:
        calls.append((name,))
        return name

    incremental = Incremental()
    for names in (("a", "b"), ("b",), ("a", "b")):
        incremental.run(lambda wanted: [describe(name) for name in wanted], names)
    assert calls == [("a",), ("b",), ("a",)]


def test_parts_outlive_cycles_in_which_their_caller_is_reused() -> None:
    calls: Calls = []

    @reused_per_object
    def part(name: str) -> str:
        calls.append((name,))
        return name

    @reused
    def whole(names: tuple[str, ...]) -> str:
        return "".join(part(name) for name in names)

    incremental = Incremental()
    for names in (("a",), ("a",), ("a", "b")):
        incremental.run(whole, names)
    assert calls == [("a",), ("b",)]


def test_what_equals_the_last_inputs_is_compared_once() -> None:
    comparisons: Calls = []

    class Size:
        @override
        def __eq__(self, other: object) -> bool:
            comparisons.append((self, other))
            return isinstance(other, Size)

        @override
        def __hash__(self) -> int:
            return 0

    incremental, describe = Incremental(), reused(lambda _: object())
    first, other = incremental.run(describe, Size()), Size()
    assert [incremental.run(describe, other) for _ in range(2)] == [first, first]
    assert len(comparisons) == 1


def test_a_result_stands_until_the_time_that_it_names() -> None:
    calls: Calls = []

    @reused_until
    def clock(name: str, *, at: datetime) -> Until[datetime]:
        calls.append((name, at))
        return Until(at, at + timedelta(seconds=10))

    incremental = Incremental()
    results = [incremental.run(clock, "a", at=at(second)) for second in (0, 5, 10, 15)]
    assert results == [at(0), at(0), at(10), at(10)]
    assert calls == [("a", at(0)), ("a", at(10))]


def test_a_result_stands_while_its_memory_comes_back() -> None:
    calls: Calls = []

    @reused_until
    def count(name: str, *, at: datetime, memory: int) -> Until[int]:
        calls.append((name, at, memory))
        return Until(memory + 1, FOREVER, memory=memory + 1)

    incremental = Incremental()
    for second, memory in enumerate((0, 1, 1, 0)):
        incremental.run(count, "a", at=at(second), memory=memory)
    assert [memory for *_, memory in calls] == [0, 0]


def test_what_raises_is_computed_again() -> None:
    outcomes: Iterator[int | Exception] = iter([ValueError("no"), 1])

    @reused
    def next_outcome() -> int:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def guarded() -> int | None:
        try:
            return next_outcome()
        except ValueError:
            return None

    incremental = Incremental()
    assert [incremental.run(guarded) for _ in range(3)] == [None, 1, 1]
