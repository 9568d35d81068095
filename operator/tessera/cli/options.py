"""Commands by the name of their module, and the options that several of them share."""

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TextIO

import click
from typing_extensions import override

from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera.cli.text import escape_controls

OUTPUT_FORMATS = ("text", "json")
# Shells complete the paths of files; the commands say themselves why one cannot be read.
FILE = {"metavar": "FILE", "type": click.Path(readable=False)}
INTEGER = {"metavar": "N", "type": int}
AMOUNT = {"metavar": "AMOUNT", "type": float}
# click keeps the help option of the first call, so each command has the settings of the root.
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
COST_FORMATS = ("table", "json", "csv")


class Command(click.Command):
    """Calls `run` of a module, which is imported then, so that help and completion are quick.

    `run` takes the parsed arguments and returns an `Output`.
    """

    def __init__(
        self, name: str, summary: str, description: str, *params: click.Parameter, module: str = ""
    ) -> None:
        super().__init__(
            name,
            short_help=summary,
            help=description,
            params=list(params),
            context_settings=CONTEXT_SETTINGS,
        )
        self.module = module or f"tessera.cli.{name}.command"

    def parse(self, words: Sequence[str]) -> SimpleNamespace:
        """Return the arguments that the words after the command stand for."""
        return SimpleNamespace(**self.make_context(self.name, list(words)).params)

    @override
    def invoke(self, ctx: click.Context) -> int:
        """Print the output and return the exit code; exit with 1 and one sentence on an error."""
        _configure_logging(ctx.command_path)
        try:
            run = importlib.import_module(self.module).run
            output: Output = run(SimpleNamespace(**ctx.params))
            _print(escape_controls(output.text), ctx.obj)
        except CommandError as error:
            sys.exit(f"{ctx.command_path}: {escape_controls(str(error))}")
        except Exception as error:  # noqa: BLE001 - a user never sees a traceback
            _exit_internal_error(ctx.command_path, error)
        return output.exit_code


class Group(click.Group):
    """Commands in the order in which they are given."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)


def argument(name: str, help_text: str, **settings: Any) -> click.Argument:
    return click.Argument([name], help=help_text, **settings)


def option(names: str, help_text: str, **settings: Any) -> click.Option:
    """Return an option with its names, which spaces separate, the name of its value last."""
    return click.Option(names.split(), help=help_text, **settings)


def namespace_option(help_text: str) -> click.Option:
    return option("-n --namespace", help_text, metavar="NAME")


def output_options(formats: Sequence[str] = OUTPUT_FORMATS) -> tuple[click.Option, click.Option]:
    return (
        option("-o --output", "output format", type=click.Choice(formats), default=formats[0]),
        option("--json output", "short for -o json", flag_value="json"),
    )


CLUSTER_OPTIONS = (
    option("--kubeconfig", "the kubeconfig (default: $KUBECONFIG, then ~/.kube/config)", **FILE),
    option("--context", "context of the kubeconfig", metavar="NAME"),
)
PROMETHEUS_OPTION = option(
    "--prometheus", "base URL (default: $TESSERA_PROMETHEUS_URL)", metavar="URL"
)
GATEWAY_OPTION = option(
    "--gateway",
    "base URL of a gateway's metrics port (default: $TESSERA_GATEWAY_URL)",
    metavar="URL",
)
POOL_ARGUMENT = argument("pool", "only this AcceleratorPool", required=False)
SINCE = option(
    "--since",
    "30m, 24h, 7d, or a day or moment such as 2026-11-01 in UTC",
    default="24h",
    metavar="WHEN",
)


def _configure_logging(command: str) -> None:
    """Print what adapters log as one sentence on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_MessageFormatter(f"{command}: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.ERROR)


class _MessageFormatter(logging.Formatter):
    """Formats log records without tracebacks, with control characters written out."""

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        return escape_controls(super().formatMessage(record))

    @override
    def formatException(self, ei: object) -> str:
        del ei
        return ""


def _print(text: str, stream: TextIO) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # A reader that stops early, such as head, is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _exit_internal_error(command: str, error: Exception) -> NoReturn:
    frames = traceback.extract_tb(error.__traceback__)
    location = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    sys.exit(
        f"{command}: internal error: {type(error).__name__} at {location}: "
        f"{escape_controls(str(error))}; please report it with the output of tessera snapshot save"
    )
