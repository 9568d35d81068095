"""Completion candidates, for shells and for kubectl."""

import argparse
import sys
from collections.abc import Sequence

from tessera.cli.parser import build_parser

# `tessera __complete WORDS...` prints the candidates for the last word.
COMPLETE_COMMAND = "__complete"
# The last line of cobra's completion protocol, which kubectl speaks to plugins.
_DIRECTIVE_NO_FILES, _DIRECTIVE_DEFAULT = ":4", ":0"


def main() -> None:
    """Run `kubectl_complete-tessera`."""
    completions = candidates(sys.argv[1:])
    sys.stdout.writelines(f"{word}\n" for word in completions)
    sys.stdout.write(f"{_DIRECTIVE_NO_FILES if completions else _DIRECTIVE_DEFAULT}\n")


def candidates(words: Sequence[str]) -> list[str]:
    """Return candidates for the last word; none where any value is allowed."""
    *previous_words, prefix = words or ("",)
    command_parser, pending_option = _resolve_command(build_parser(), previous_words)
    if pending_option is not None:
        completions = list(map(str, pending_option.choices or ()))
    elif prefix.startswith("-"):
        completions = [
            option for action in command_parser._actions for option in action.option_strings
        ]
    else:
        completions = _positional_choices(command_parser, previous_words)
    return sorted(word for word in completions if word.startswith(prefix))


def _resolve_command(
    command_parser: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[argparse.ArgumentParser, argparse.Action | None]:
    """Return the command that the words select, and the option that lacks its value."""
    pending_option: argparse.Action | None = None
    for word in words:
        subcommands = _subcommands(command_parser)
        if pending_option is not None:
            pending_option = None
        elif word in command_parser._option_string_actions:
            action = command_parser._option_string_actions[word]
            pending_option = action if action.nargs is None else None
        elif word in subcommands:
            command_parser = subcommands[word]
    return command_parser, pending_option


def _subcommands(command_parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in command_parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _positional_choices(
    command_parser: argparse.ArgumentParser, previous_words: Sequence[str]
) -> list[str]:
    """Return commands, or the choices of a positional argument that is not given yet."""
    for action in command_parser._actions:
        if not action.option_strings and action.choices:
            choices = [str(choice) for choice in action.choices]
            return choices if not set(choices).intersection(previous_words) else []
    return []
