"""The reference page of the command line, from its commands."""

from collections.abc import Iterator

import click

from tessera.cli.commands import root_command

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
    for context in _leaves(root_command()):
        command = context.command
        lines += ["", f"## {context.command_path}", "", str(command.help), ""]
        usage = [context.command_path, *command.collect_usage_pieces(context)]
        lines += [f"    {' '.join(usage)}"]
        records = [param.get_help_record(context) for param in command.params]
        if rows := [_row(*record) for record in records if record]:
            lines += ["", "| argument | meaning |", "| --- | --- |", *rows]
    return "\n".join(lines) + "\n"


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
