"""`tessera`: the commands for people at a terminal."""

import argparse
import sys
from collections.abc import Sequence

from tessera.cli import cost
from tessera.cli.errors import CommandError

COMMANDS = (cost,)
"""Modules with `add(commands)`, which sets `run`: arguments in, text out, or a CommandError."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with 1 and a sentence when a command cannot do what was asked."""
    asked = parser().parse_args(arguments)
    try:
        sys.stdout.write(asked.run(asked))
    except CommandError as error:
        sys.exit(f"tessera {asked.command}: {error}")


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    made = argparse.ArgumentParser(
        prog="tessera", description="Looks at the inference fleets of a cluster."
    )
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return made


if __name__ == "__main__":
    main()
