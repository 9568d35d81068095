"""Counts with their nouns."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun in the right number: `1 GPU`, `2 GPUs`."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
