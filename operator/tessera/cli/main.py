"""`tessera`, also as `kubectl tessera`: the commands for people at a terminal."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import click

from tessera.cli.commands import root_command
from tessera.cli.complete import COMPLETE_VARIABLE

# What shells expect of a program that Ctrl-C ended.
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None, output: TextIO | None = None) -> None:
    """Run a command; exit with its code, or with 2 and the usage for wrong options.

    What it prints goes to `output`, or else to the standard output.
    """
    if arguments is None:
        # Exit at once: a request in progress may take the cancellation for its own time-out and
        # continue.
        signal.signal(signal.SIGINT, lambda *_: os._exit(_EXIT_INTERRUPTED))
    program = "kubectl tessera" if Path(sys.argv[0]).name == "kubectl-tessera" else "tessera"
    try:
        exit_code = root_command().main(
            arguments,
            program,
            complete_var=COMPLETE_VARIABLE,
            standalone_mode=False,
            obj=output or sys.stdout,
        )
    except click.UsageError as error:
        error.show()
        exit_code = error.exit_code
    if exit_code:
        sys.exit(exit_code)


if __name__ == "__main__":
    main()
