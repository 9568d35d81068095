"""`tessera`, also as `kubectl tessera`: the commands for people at a terminal."""

import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

from tessera.cli.complete import COMPLETE_COMMAND, candidates
from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera.cli.parser import build_parser
from tessera.cli.text import escape_controls

# What shells expect of a program that Ctrl-C ended.
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with 1 and one sentence when it cannot do what was asked."""
    if arguments is None:
        # Exit at once: a request in progress may take the cancellation for its own time-out and
        # continue.
        signal.signal(signal.SIGINT, lambda *_: os._exit(_EXIT_INTERRUPTED))
    argv = sys.argv[1:] if arguments is None else list(arguments)
    program = "kubectl tessera" if Path(sys.argv[0]).name == "kubectl-tessera" else "tessera"
    if argv[:1] == [COMPLETE_COMMAND]:
        sys.stdout.writelines(f"{word}\n" for word in candidates(argv[1:]))
        return
    options = build_parser(program).parse_args(argv)
    command = " ".join(
        filter(None, (program, options.command, getattr(options, "subcommand", None)))
    )
    _configure_logging(command)
    try:
        output: Output = importlib.import_module(options.module).run(options)
        _print(escape_controls(output.text))
    except CommandError as error:
        sys.exit(f"{command}: {escape_controls(str(error))}")
    except Exception as error:  # noqa: BLE001 - a user never sees a traceback
        _exit_internal_error(command, error)
    if output.exit_code:
        sys.exit(output.exit_code)


def _configure_logging(command: str) -> None:
    """Print what adapters log as one sentence on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_MessageFormatter(f"{command}: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.ERROR)


class _MessageFormatter(logging.Formatter):
    """Formats log records without tracebacks."""

    @override
    def formatException(self, ei: object) -> str:
        del ei
        return ""


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # A reader that stops early, such as head, is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_internal_error(command: str, error: Exception) -> NoReturn:
    frames = traceback.extract_tb(error.__traceback__)
    location = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    sys.exit(
        f"{command}: internal error: {type(error).__name__} at {location}: "
        f"{escape_controls(str(error))}; please report it with the output of tessera snapshot save"
    )


if __name__ == "__main__":
    main()
