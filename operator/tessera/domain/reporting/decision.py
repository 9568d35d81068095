"""The explanation of one decision about a service."""

from dataclasses import dataclass
from datetime import datetime

# Names and values for people, in the order in which they are shown.
Numbers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Hardware of the fleet beside or including the chosen one."""

    name: str
    price: str
    """Price of a replica for an hour; empty when there is none."""
    message: str
    """Why it is chosen or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision about a service with its reason, numbers and alternatives."""

    topic: str
    """`accepted`, `placed`, `variants`, `mix`, `precision`, `sizing`, `speed`, `speculation`,
    `slo`, `scaling`, `budget`, `drain`, `rollout`, `ready`, or the type of a further condition."""
    reason: str
    """The reason in the status, where the status has the topic."""
    message: str
    since: datetime | None = None
    """Time of the last transition; None when it is not known."""
    numbers: Numbers = ()
    alternatives: tuple[Alternative, ...] = ()
    would_change: tuple[str, ...] = ()
    """Changes of the spec, the fleet or the load that would change the decision."""
    replayed: str = ""
    """The decision of a plan made now, when it differs from the status."""
