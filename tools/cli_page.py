"""The reference page of the command line, from its parser."""

import argparse
from collections.abc import Iterator

from tessera.cli.parser import build_parser

_HELP = "-h"
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
    for command in _leaves(build_parser()):
        lines += ["", f"## {command.prog}", "", str(command.description), "", *_usage(command)]
        if rows := [row for action in command._actions if (row := _row(action))]:
            lines += ["", "| argument | meaning |", "| --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The commands that do something, in the order of the help."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for command in action.choices.values():
            yield from _leaves(command)


def _usage(command: argparse.ArgumentParser) -> Iterator[str]:
    words = [_value(action) for action in command._actions if not action.option_strings]
    yield "    " + " ".join([command.prog, *words, "[OPTIONS]"])


def _row(action: argparse.Action) -> str:
    if _HELP in action.option_strings:
        return ""
    value = _value(action)
    names = ", ".join(f"`{option}`" for option in action.option_strings)
    argument = f"{names} `{value}`".strip() if value else names
    meaning = str(action.help).replace("%(default)s", str(action.default)).replace("|", "\\|")
    return f"| {argument} | {meaning} |"


def _value(action: argparse.Action) -> str:
    """What stands for the value; empty for an option that takes none."""
    if action.nargs == 0:
        return ""
    if action.metavar:
        return str(action.metavar)
    return "{" + ",".join(map(str, action.choices or ())) + "}"
