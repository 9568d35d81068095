"""What is kept between two cycles: results of pure functions, by their inputs.

A decision is composed of pure functions. While an `Incremental` runs it, the marked ones among them
return the result of the last run again if their inputs are the same objects or equal ones, so that
a cycle costs what changed. Anywhere else they are plain functions: no decision reads its memory.
Prices of 2 and 2.00 are equal, yet printed differently; the edited object has another generation.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, ParamSpec, TypeAlias, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

# Until when a result holds that only its inputs change, and one that is computed in every cycle.
FOREVER = datetime.max.replace(tzinfo=UTC)
NEVER = datetime.min.replace(tzinfo=UTC)

_TABLE_SIZE = 8192


class Until(NamedTuple, Generic[T]):
    """A result, and until when it holds while its inputs stay."""

    result: T
    until: datetime = FOREVER
    memory: object = None
    """What the next run remembers of it: with any other memory it does not hold."""
    reads: Callable[..., object] | None = None
    """What it depends on beside its inputs and the time, as a function of its circumstances."""


@dataclass(slots=True)
class _Result:
    """The last result of a function for one object."""

    inputs: tuple[object, ...]
    value: Any
    parts: "_Results"
    """Results of the marked functions that it called."""
    since: datetime
    """When it was computed; after a clock was set back before that, it does not hold."""
    until: datetime
    memory: object
    reads: Callable[..., object] | None
    read: object
    """What `reads` returned for it."""

    def holds(self, circumstances: Any) -> bool:
        """Return whether neither the time, the memory nor what it read changes it."""
        return bool(
            self.since <= circumstances["at"] < self.until
            and circumstances.get("memory") == self.memory
            and (self.reads is None or self.reads(**circumstances) == self.read)
        )


_Results: TypeAlias = dict[object, _Result]


class _Run(NamedTuple):
    """Results for the calls of one function; those of objects that are gone are not carried on."""

    previous: _Results
    current: _Results
    shared: "_Run | None" = None
    """The results of the whole run, for what several objects ask; None in that run itself."""


_active: ContextVar[_Run | None] = ContextVar("active", default=None)


class Incremental:
    """Runs a decision again and again, and keeps the results of its parts from run to run."""

    def __init__(self) -> None:
        self._results: _Results = {}

    def run(self, decide: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Return what `decide` returns; what it calls is only computed for changed inputs."""
        run = _Run(self._results, {})
        decision = _call(run, decide, *arguments, **named)
        self._results = run.current
        return decision


def _call(run: _Run, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    token = _active.set(run)
    try:
        return function(*arguments, **named)
    finally:
        _active.reset(token)


def reused(
    function: Callable[P, T],
    *,
    per_object: bool = False,
    says_until: bool = False,
    is_shared: bool = False,
) -> Callable[P, T]:
    """Mark a pure function whose last result is worth keeping while its inputs stay the same.

    With `per_object` there is a result for each object, which the first argument names. Positional
    arguments are the inputs. A result that equals the last one is that very object, so what depends
    on it is reused too. For one that says until when it holds, see `reused_until`.
    """

    @functools.wraps(function)
    def call(*inputs: P.args, **circumstances: P.kwargs) -> Any:
        run = _active.get()
        if run is None:
            value: Any = function(*inputs, **circumstances)
            return value.result if says_until else value
        if is_shared:
            run = run.shared or run
        previous, current, shared = run
        key = (call, inputs[0]) if per_object else call
        last = (is_shared and current.get(key)) or previous.get(key)
        if (
            last is not None
            and last.inputs == inputs
            and (not says_until or last.holds(circumstances))
        ):
            last.inputs = inputs  # the same objects are equal at once in the next run
            current[key] = last
            return last.value
        inner = _Run(last.parts if last is not None else {}, {}, shared or run)
        value = _call(inner, function, *inputs, **circumstances)
        value, until, memory, reads = value if says_until else Until(value)
        if last is not None and last.value == value:
            value = last.value
        read = reads(**circumstances) if reads is not None else None
        since: Any = circumstances["at"] if says_until else NEVER
        current[key] = _Result(inputs, value, inner.current, since, until, memory, reads, read)
        return value

    return call


def reused_per_object(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function of which the result for each object is worth keeping: see `reused`."""
    return reused(function, per_object=True)


def reused_by_all(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function of a thing that many objects ask for, so that one call a run is enough.

    Its first argument names the thing, whose other inputs are the same for all of them.
    """
    return reused(function, per_object=True, is_shared=True)


def reused_until(function: Callable[P, Until[T]]) -> Callable[P, T]:
    """Mark a function of an object that says until when its result holds, and return the result.

    Named arguments are circumstances that may change in every cycle: `at`, by which it is known
    whether the result holds, `memory`, and what it says nothing of as long as it holds.
    """
    return cast(Callable[P, T], reused(function, per_object=True, says_until=True))


def constant(read: Callable[[], T]) -> Callable[[], T]:
    """Mark the reader of shipped data, which runs when the data is needed first."""
    return functools.cache(read)


class Installed(Generic[T]):
    """Data of an installation, which a process sets once before its first cycle.

    No decision writes it, and none sees it change: it stands for the inputs that are the same in
    all of them.
    """

    def __init__(self, shipped: Callable[[], T]) -> None:
        self._read = shipped

    def __call__(self) -> T:
        """Return what the process set, else what is shipped."""
        return self._read()

    def set(self, data: T) -> None:
        self._read = lambda: data


def tabulated(function: Callable[P, T], *, size: int = _TABLE_SIZE) -> Callable[P, T]:
    """Mark a step of a search over small hashable values, such as the slices of a GPU.

    A search asks for the same ones many times, also outside of cycles. The table keeps up to `size`
    results, fewer where they are large, since texts of tenants and nodes may fill it: all together
    fit into the operator's memory (`tools/tables.py`).
    """
    return cast(Callable[P, T], functools.lru_cache(size)(function))
