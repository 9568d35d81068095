"""The reference page of the command line, from its commands."""

import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import click

from tessera.cli.commands import COMMANDS_GROUP, root_command

_LAB = Path(__file__).resolve().parents[1] / "operator" / "tessera_lab" / "pyproject.toml"

_HEAD = """\
# Command line

`tessera`, or `kubectl tessera` where `kubectl-tessera` is on the `PATH`. The exit code is 0 when
the command did what was asked, 1 when it could not (the sentence says what to do) or when `doctor`
found a problem, 2 for wrong options, 3 when `plan` cannot serve a service and 130 after Ctrl-C. Of
the environment it reads `KUBECONFIG`, `TESSERA_PROMETHEUS_URL` and, for `bench`,
`TESSERA_API_KEY`."""


def page() -> str:
    """All commands with their arguments."""
    lines = [_HEAD]
    for context in _leaves(root_command(lab_commands())):
        command = context.command
        lines += ["", f"## {context.command_path}", "", str(command.help), ""]
        usage = [context.command_path, *command.collect_usage_pieces(context)]
        lines += [f"    {' '.join(usage)}"]
        records = [param.get_help_record(context) for param in command.params]
        if rows := [_row(*record) for record in records if record]:
            lines += ["", "| argument | meaning |", "| --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def lab_commands() -> list[EntryPoint]:
    """The lab's commands as the checkout has them, not as they were installed some time."""
    project = tomllib.loads(_LAB.read_text(encoding="utf-8"))["project"]
    commands = project["entry-points"][COMMANDS_GROUP]
    return [EntryPoint(name, module, COMMANDS_GROUP) for name, module in commands.items()]


def _leaves(command: click.Command, parent: click.Context | None = None) -> Iterator[click.Context]:
    """The commands that do something, in the order of the help."""
    context = command.make_context(command.name, [], parent, resilient_parsing=True)
    if not isinstance(command, click.Group):
        yield context
        return
    for name in command.list_commands(context):
        yield from _leaves(command.commands[name], context)


def _row(names: str, meaning: str) -> str:
    # A bar would end the cell.
    return f"| `{names.replace('|', ',')}` | {meaning.replace('  [', ' [')} |"
