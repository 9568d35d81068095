"""All commands, in the order of the help.

Nothing heavy is imported, so that help and completion are quick.
"""

import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import click

from tessera import __version__
from tessera.cli.breakeven.arguments import BREAKEVEN
from tessera.cli.budget.arguments import BUDGET
from tessera.cli.charges.arguments import CHARGES
from tessera.cli.cost.arguments import COST
from tessera.cli.doctor.arguments import DOCTOR
from tessera.cli.explain.arguments import EXPLAIN
from tessera.cli.forecast.arguments import FORECAST
from tessera.cli.gate.arguments import GATE
from tessera.cli.key.arguments import KEY
from tessera.cli.mosaic.arguments import MOSAIC
from tessera.cli.options import (
    CLUSTER_OPTIONS,
    CONTEXT_SETTINGS,
    Command,
    Group,
    argument,
    output_options,
)
from tessera.cli.plan.arguments import PLAN
from tessera.cli.provider.arguments import PROVIDER
from tessera.cli.size.arguments import SIZE
from tessera.cli.snapshot.arguments import SNAPSHOT
from tessera.cli.top.arguments import TOP
from tessera.cli.update.arguments import UPDATE
from tessera.cli.usage.arguments import USAGE

SHELLS = ("bash", "zsh", "fish")

# Each entry point of this group is a command of another distribution.
COMMANDS_GROUP = "tessera.commands"


def root_command(installed: Iterable[EntryPoint] | None = None) -> click.Group:
    """Return the whole command line, with the commands of other distributions.

    These are the installed ones, unless they are given.
    """
    if installed is None:
        installed = entry_points(group=COMMANDS_GROUP)
    # Where a distribution is found twice, as installed and in a checkout, so are its commands.
    entries = {entry.name: entry for entry in installed}
    others = _MISSING_COMMANDS | {name: entries[name].load() for name in sorted(entries)}
    group = Group(
        "tessera",
        help="Inspect the inference fleets of a cluster.",
        commands=[*_BEFORE, *others.values(), *_AFTER],
        context_settings=CONTEXT_SETTINGS,
    )
    return click.version_option(__version__, message="%(prog)s %(version)s")(group)


# No package index has it.
_INSTALL_LAB = "pip install '.[cli]' ./operator/tessera_lab in a checkout"


def _missing_command(name: str, summary: str) -> click.Command:
    """Return a command that only says which package it is in."""
    sentence = f"tessera {name} needs the package tessera-lab: {_INSTALL_LAB}"
    return click.Command(
        name,
        short_help=f"{summary} (in the package tessera-lab)",
        help=f"Not installed: {_INSTALL_LAB}.",
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        callback=lambda arguments: sys.exit(sentence),  # noqa: ARG005 - every call ends so
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )


_MISSING_COMMANDS = {
    "bench": _missing_command("bench", "a load test of an OpenAI-compatible server"),
    "claims": _missing_command(
        "claims", "what is promised about the cost of inference, and what of it holds"
    ),
    "engine": _missing_command("engine", "what one engine does with a load, by its options"),
    "levers": _missing_command("levers", "what each lever is worth on a fleet, in dollars a month"),
    "mix": _missing_command("mix", "how many replicas to reserve for a load"),
    "simulate": _missing_command("simulate", "what a load would have cost under a scaling policy"),
}

COMPLETION = Command(
    "completion",
    "the completion script of a shell",
    "Prints a completion script, for example: source <(tessera completion bash). kubectl "
    "tessera is completed by kubectl itself, through kubectl_complete-tessera.",
    argument("shell", "which shell", type=click.Choice(SHELLS)),
    module="tessera.cli.complete",
)

VERSION = Command(
    "version",
    "the versions of this program, of the operator and of the gateways",
    "Says how they differ where that matters. Without a cluster, or without the right to list "
    "Deployments, the line says why. tessera --version asks no cluster.",
    *CLUSTER_OPTIONS,
    *output_options(),
    module="tessera.cli.version",
)

_BEFORE = (
    DOCTOR,
    EXPLAIN,
    TOP,
    UPDATE,
    BUDGET,
    KEY,
    COST,
    CHARGES,
    USAGE,
    PROVIDER,
    PLAN,
    MOSAIC,
    SIZE,
    BREAKEVEN,
    FORECAST,
    GATE,
)
_AFTER = (SNAPSHOT, COMPLETION, VERSION)
