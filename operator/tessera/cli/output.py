"""The output of a command."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Output:
    """The text for the terminal, and the exit code."""

    text: str
    exit_code: int = 0
