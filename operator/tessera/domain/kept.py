"""Results kept by the identity of what they were made of: they save time and change nothing."""

from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Last(Generic[P, T]):
    """The last result of a pure function, as long as its arguments are the very same objects."""

    def __init__(self, function: Callable[P, T]) -> None:
        self._function = function
        self._arguments: tuple[object, ...] | None = None
        self._result: T

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> T:
        given = (*arguments, *named.values())
        known = self._arguments
        if known is None or any(a is not b for a, b in zip(given, known, strict=True)):
            self._result = self._function(*arguments, **named)
            self._arguments = given
        return self._result
