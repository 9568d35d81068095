"""What a command ends with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Told:
    """The text for the terminal, and the exit code."""

    text: str
    code: int = 0
