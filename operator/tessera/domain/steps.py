"""Steps of the cycle that run once per object, so that no object stops the cycle of the others."""

from collections.abc import Callable
from traceback import extract_tb
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_MAX_ERROR_LENGTH = 200


class Step(Generic[P, T]):
    """A step of the cycle for one object, which never raises.

    When `function` raises, `set_aside` gets the error before the same arguments and returns the
    result: the object goes on as it is and says why, and the others notice nothing.
    """

    __slots__ = ("function", "set_aside")

    def __init__(self, function: Callable[P, T], set_aside: Callable[..., T]) -> None:
        self.function = function
        self.set_aside = set_aside

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> T:
        try:
            return self.function(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - one bad object must not stop the fleet
            return self.set_aside(error, *arguments, **named)


def planner_error(error: Exception, resource: str, name: str, namespace: str = "") -> str:
    """Return the message of a PlannerError, with the command that prints the object."""
    place = f" -n {namespace}" if namespace else ""
    return (
        f"spec: planning raised {error_text(error)}; please report it with the output of kubectl "
        f"get {resource} {name}{place} -o yaml"
    )


def error_text(error: BaseException) -> str:
    """Return what was raised and where: `OverflowError (cannot convert ...) at seen.py:166`."""
    frames = extract_tb(error.__traceback__, limit=-1)
    place = f" at {frames[0].filename.rpartition('/')[2]}:{frames[0].lineno}" if frames else ""
    return f"{type(error).__name__} ({str(error)[:_MAX_ERROR_LENGTH]}){place}"
