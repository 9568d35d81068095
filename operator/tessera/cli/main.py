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
    """Entry point; exits with 1 and a sentence when a command cannot do what was asked."""
    if arguments is None:
        # At once: a cancelled request may be under way in a place that takes the cancelling for its
        # own time-out, and goes on.
        signal.signal(signal.SIGINT, lambda *_: os._exit(_EXIT_INTERRUPTED))
    argv = sys.argv[1:] if arguments is None else list(arguments)
    program = "kubectl tessera" if Path(sys.argv[0]).name == "kubectl-tessera" else "tessera"
    if argv[:1] == [COMPLETE_COMMAND]:
        sys.stdout.writelines(f"{word}\n" for word in candidates(argv[1:]))
        return
    options = build_parser(program).parse_args(argv)
    command = " ".join(filter(None, (program, options.command, getattr(options, "deed", None))))
    _configure_logging(command)
    try:
        output: Output = importlib.import_module(options.module).run(options)
        _print(escape_controls(output.text))
    except CommandError as error:
        sys.exit(f"{command}: {escape_controls(str(error))}")
    except Exception as error:  # noqa: BLE001 - nobody at a terminal shall meet a traceback
        _exit_internal_error(command, error)
    if output.exit_code:
        sys.exit(output.exit_code)


def _configure_logging(command: str) -> None:
    """What adapters log stands on stderr as a sentence."""
    handler = logging.StreamHandler()
    handler.setFormatter(_MessageFormatter(f"{command}: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.ERROR)


class _MessageFormatter(logging.Formatter):
    """Log records without tracebacks."""

    @override
    def formatException(self, ei: object) -> str:
        del ei
        return ""


def _print(text: str) -> None:
    """A reader that leaves early, such as head, is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_internal_error(command: str, error: Exception) -> NoReturn:
    frames = traceback.extract_tb(error.__traceback__)
    location = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    sys.exit(
        f"{command}: a fault of Tessera: {type(error).__name__} at {location}: "
        f"{escape_controls(str(error))}. Please report it, best with the file that tessera "
        "snapshot save "
        "writes"
    )


if __name__ == "__main__":
    main()
