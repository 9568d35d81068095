"""Which words may come next: for the shells' completion and for kubectl's."""

import argparse
import sys
from collections.abc import Sequence

from tessera.cli.parser import parser

COMPLETE = "__complete"
"""`tessera __complete WORDS...` prints what the last word may become."""
_NO_FILES, _FILES = ":4", ":0"
"""What cobra's protocol ends with, which kubectl speaks to plugins."""


def main() -> None:
    """Entry point of `kubectl_complete-tessera`."""
    found = candidates(sys.argv[1:])
    sys.stdout.writelines(f"{word}\n" for word in found)
    sys.stdout.write(f"{_NO_FILES if found else _FILES}\n")


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of the words may become; nothing where a value is free."""
    *before, begun = words or ("",)
    place, wants = _walk(parser(), before)
    if wants is not None:
        found = list(map(str, wants.choices or ()))
    elif begun.startswith("-"):
        found = [option for action in place._actions for option in action.option_strings]
    else:
        found = _positional(place, before)
    return sorted(word for word in found if word.startswith(begun))


def _walk(
    place: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[argparse.ArgumentParser, argparse.Action | None]:
    """The command that the words lead to, and the option that still wants its value."""
    wants: argparse.Action | None = None
    for word in words:
        commands = _commands(place)
        if wants is not None:
            wants = None
        elif word in place._option_string_actions:
            action = place._option_string_actions[word]
            wants = action if action.nargs is None else None
        elif word in commands:
            place = commands[word]
    return place, wants


def _commands(place: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in place._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _positional(place: argparse.ArgumentParser, before: Sequence[str]) -> list[str]:
    """Commands, or the choices of an argument that has not come yet."""
    for action in place._actions:
        if not action.option_strings and action.choices:
            found = [str(choice) for choice in action.choices]
            return found if not set(found).intersection(before) else []
    return []
