"""Counts with their nouns, lists of names, words of others, and numbers in labels."""

import re
from collections.abc import Sequence

# Sums of money, and other numbers with decimals, in a text.
AMOUNT = re.compile(r"\d+\.\d+")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun in the right number: `1 GPU`, `2 GPUs`."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def first_names(names: Sequence[object], most: int = 3) -> str:
    """Return the first names and how many more there are: `a, b, c and 7 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def one_line(text: str, most: int) -> str:
    """Return words of others in one line of at most so many characters."""
    if not text.isprintable():
        text = " ".join(plain_text(text, len(text)).split())
    return plain_text(text, most)


def plain_text(text: str, most: int) -> str:
    """Return words of others for a log: in the same lines, without control characters.

    What a terminal would execute, and what turns the direction of writing, becomes a space; of
    more than `most` characters the first remain.
    """
    if not text.isprintable():
        text = "".join(each if each.isprintable() or each == "\n" else " " for each in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def parse_decimal(text: str, high: int = 10**18) -> int | None:
    """Return the number that a label holds; None if it holds none, or one above `high`."""
    # `isdecimal` alone accepts digits of other scripts, and `int` raises on thousands of digits.
    if not (text.isdecimal() and text.isascii() and len(text) <= len(str(high))):
        return None
    number = int(text)
    return number if number <= high else None


def differ_in_more_than_amounts(before: str, now: str) -> bool:
    """Return whether a text says something else, whatever its sums of money are."""
    return AMOUNT.sub("", before) != AMOUNT.sub("", now)
