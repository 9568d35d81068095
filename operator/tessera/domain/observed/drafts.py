"""What engines drafted and accepted, by the temperature of requests."""

from dataclasses import dataclass, replace
from enum import StrEnum


class TemperatureClass(StrEnum):
    """The sampling temperature of a request; the lower, the more drafted tokens are accepted."""

    DEFAULT = "Default"
    """The client gave none: the model's files say it."""
    GREEDY = "Greedy"
    LOW = "Low"
    """At most 0.8: above, speculation gains little."""
    HIGH = "High"


HIGHEST_LOW_TEMPERATURE = 0.8
# For a step; `spec.engine.speculation.tokens` is no more.
_MAX_DRAFT_TOKENS = 8


def temperature_class(temperature: float) -> TemperatureClass:
    """Return the class of a temperature; DEFAULT of a negative one, which engines refuse."""
    if temperature < 0:
        return TemperatureClass.DEFAULT
    if temperature == 0:
        return TemperatureClass.GREEDY
    is_low = temperature <= HIGHEST_LOW_TEMPERATURE
    return TemperatureClass.LOW if is_low else TemperatureClass.HIGH


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCounts:
    """What engines drafted for requests of one temperature, by their own reports."""

    temperature: TemperatureClass = TemperatureClass.DEFAULT
    drafts: int
    """Steps that verified drafted tokens."""
    drafted_tokens: int
    accepted_tokens: int

    def at_most(self, output_tokens: int) -> "DraftCounts":
        """Return what is possible: a step yields a token, and its accepted drafts are more."""
        drafts = min(self.drafts, output_tokens)
        drafted = min(self.drafted_tokens, drafts * _MAX_DRAFT_TOKENS)
        accepted = min(self.accepted_tokens, drafted, output_tokens)
        return replace(self, drafts=drafts, drafted_tokens=drafted, accepted_tokens=accepted)
