"""What is told of one decision."""

from dataclasses import dataclass
from datetime import datetime

# Names and values as people read them, in the order in which they are shown.
Numbers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Hardware that could have been chosen."""

    name: str
    price: str
    """Of a replica and hour; empty where nothing is priced."""
    message: str
    """Why it was chosen, or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision about a service."""

    topic: str
    """`accepted`, `placed`, `sizing`, `speed`, `scaling`, `budget`, `drain`, `rollout`, `ready`, or
    the type of a further condition."""
    reason: str
    """The word that status has too, where it speaks of the topic."""
    message: str
    since: datetime | None = None
    """Since when it holds, as far as that is known."""
    numbers: Numbers = ()
    alternatives: tuple[Alternative, ...] = ()
    would_change: tuple[str, ...] = ()
    replayed: str = ""
    """What planning comes to now, where status says something else."""
