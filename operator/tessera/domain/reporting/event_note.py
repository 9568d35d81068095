"""An Event, as it is decided."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EventNote:
    """One Event, without its object and time."""

    action: str
    """What was decided on: a condition's type, or what changed, in one CamelCase word."""
    reason: str
    message: str
    is_warning: bool = False
