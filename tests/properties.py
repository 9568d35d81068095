"""The number of random cases on which properties are tried, and to which they apply."""

import functools
from collections.abc import Callable
from typing import Any

from hypothesis import settings


def examples(short: int) -> int:
    """Return the number of cases where a property has `short` beside 100 of others.

    On a push it is a quarter of that, with `--full` five times as many.
    """
    return max(5, short * settings().max_examples // 100)


def applies(least: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Fail a property that held in fewer random cases than `least`.

    `least` is of those that it has beside 100 of others. Decorate above `given`. A case that the
    property skips by `hypothesis.assume` does not count: Hypothesis passes a property as soon as
    one case applies.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        inner: Callable[..., None] = test.hypothesis.inner_test  # type: ignore[attr-defined] # set by `given`
        cases = 0

        @functools.wraps(inner)
        def counted(*arguments: Any, **named: Any) -> None:
            nonlocal cases
            inner(*arguments, **named)
            cases += 1

        test.hypothesis.inner_test = counted  # type: ignore[attr-defined]

        @functools.wraps(test)
        def checked(*arguments: Any, **named: Any) -> None:
            nonlocal cases
            cases = 0
            test(*arguments, **named)
            wanted = least * settings().max_examples // 100
            assert cases >= wanted, f"it applied to {cases} random cases, {wanted} are wanted"

        return checked

    return decorate
