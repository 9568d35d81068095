"""The number of random cases on which properties are tried, and to which they apply."""

import functools
from collections.abc import Callable
from typing import Any

from hypothesis import settings


def examples(short: int) -> int:
    """Return the number of cases: `short` in the short run, five times as many with `--full`."""
    return short * settings().max_examples // 100


def applies(least: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Fail a property that held in fewer random cases than `least`.

    Decorate above `given`. A case that the property skips by `hypothesis.assume` does not count:
    Hypothesis passes a property as soon as one case applies.
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
            assert cases >= least, f"it applied to {cases} random cases, {least} are wanted"

        return checked

    return decorate
