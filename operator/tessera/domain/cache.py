"""Caches of pure functions by the identity of their arguments."""

from collections.abc import Callable, Collection, Hashable
from operator import is_
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class LastCallCache(Generic[P, T]):
    """Caches the last result of a pure function while its arguments are the same objects."""

    def __init__(self, function: Callable[P, T]) -> None:
        self._function = function
        self._arguments: tuple[object, ...] | None = None
        self._result: T

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> T:
        all_arguments = (*arguments, *named.values())
        known = self._arguments
        if known is None or any(a is not b for a, b in zip(all_arguments, known, strict=True)):
            self._result = self._function(*arguments, **named)
            self._arguments = all_arguments
        return self._result


class KeyedCache(Generic[K, P, T]):
    """Caches the last result per key; an equal new result stays the same object."""

    def __init__(self, function: Callable[P, T]) -> None:
        self._function = function
        self._known: dict[K, tuple[tuple[object, ...], T]] = {}

    def __call__(self, key: K, /, *arguments: P.args, **named: P.kwargs) -> T:
        all_arguments = (*arguments, *named.values())
        known = self._known.get(key)
        if known is not None and all(map(is_, all_arguments, known[0])):
            return known[1]
        result = self._function(*arguments, **named)
        if known is not None and known[1] == result:
            result = known[1]
        self._known[key] = (all_arguments, result)
        return result

    def retain(self, keys: Collection[K]) -> None:
        """Forget all other keys."""
        for key in self._known.keys() - keys:
            del self._known[key]


class StableTupleCache(Generic[T]):
    """Returns the last tuple while it holds the same objects."""

    def __init__(self) -> None:
        self._last: tuple[T, ...] = ()

    def __call__(self, values: tuple[T, ...]) -> tuple[T, ...]:
        last = self._last
        if len(values) != len(last) or not all(map(is_, values, last)):
            self._last = values
        return self._last
