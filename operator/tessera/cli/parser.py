"""All commands and their options. Nothing heavy is imported, so that help and completion are quick.

A command's `module` has `run`: arguments in, `Told` out.
"""

import argparse

from tessera.cli.options import Commands, asks_prometheus, command, connects, formed, namespaced
from tessera.cli.parser_load import bench, size
from tessera.cli.parser_mig import mosaic, plan

COST_ROWS = ("service", "tenant", "pool")
COST_FORMS = ("table", "json", "csv")
SHELLS = ("bash", "zsh", "fish")


def parser(program: str = "tessera") -> argparse.ArgumentParser:
    """The whole command line."""
    made = argparse.ArgumentParser(
        prog=program, description="Looks at the inference fleets of a cluster."
    )
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    looks = (_doctor, _explain, _top, _update, _cost, plan, mosaic)
    for add in (*looks, size, bench, _snapshot, _completion):
        add(commands)
    return made


def _doctor(commands: Commands) -> None:
    made = command(
        commands,
        "doctor",
        "what is wrong in the cluster, and how to mend it",
        "Checks the cluster, the operator, the hardware, the metrics and the services. What may "
        "not be read is skipped. Exits with 1 when a problem was found; warnings do not count.",
    )
    connects(made)
    namespaced(made, "where the webhook is tried; nothing is created there")
    asks_prometheus(made)
    formed(made)


def _explain(commands: Commands) -> None:
    made = command(
        commands,
        "explain",
        "every decision about a service, and what would change it",
        "Tells why a service is as it is: hardware with its price and the alternatives, sizing, "
        "scaling, budget, drain, rollout, readiness. It reads the status and plans anew, as the "
        "operator does, without writing anything.",
    )
    made.add_argument("service", metavar="SERVICE", help="name of the InferenceService")
    connects(made)
    namespaced(made, "namespace of the service")
    asks_prometheus(made)
    formed(made)


def _top(commands: Commands) -> None:
    made = command(
        commands,
        "top",
        "services by what they cost, pools by what is free",
        "Shows the services, what costs most first, and the pools with their free devices. Queue, "
        "activity and measured tokens need Prometheus; expected tokens stand with a ~.",
    )
    connects(made)
    namespaced(made, "namespace of the services; without it all")
    made.add_argument(
        "-A", "--all-namespaces", action="store_true", help="all namespaces (the default)"
    )
    asks_prometheus(made)
    formed(made)


def _update(commands: Commands) -> None:
    made = command(
        commands,
        "update",
        "roll a service to what this version of Tessera would build",
        "Upgrades of Tessera leave running models alone. Where the condition UpdateAvailable is "
        "True this asks for the new form now; else it says so and does nothing.",
    )
    made.add_argument("service", metavar="SERVICE", help="name of the InferenceService")
    connects(made)
    namespaced(made, "namespace of the service")
    formed(made)


def _cost(commands: Commands) -> None:
    made = command(
        commands,
        "cost",
        "what the fleet cost",
        "Shows what the nodes of all pools cost, by what was done with them. The "
        "figures are differences of counters at single scrapes, so they are exact.",
    )
    made.add_argument(
        "--by", choices=COST_ROWS, default="service", help="rows (default: %(default)s)"
    )
    made.add_argument(
        "--since",
        default="24h",
        metavar="WHEN",
        help="30m, 24h, 7d, or a day or moment such as 2026-11-01 in UTC (default: %(default)s)",
    )
    asks_prometheus(made)
    formed(made, COST_FORMS)


def _snapshot(commands: Commands) -> None:
    deeds = commands.add_parser(
        "snapshot",
        help="save what is planned from, and plan it anew elsewhere",
        description="A snapshot file holds everything that the plan reads, without secrets. "
        "Planning it anew needs no cluster, so it is what a bug report carries.",
    ).add_subparsers(dest="deed", metavar="DEED", required=True)
    save = command(
        deeds,
        "save",
        "write a snapshot file",
        "Writes everything that the plan reads into one JSON file. Values of environment "
        "variables, arguments of containers and passwords in URLs are left out.",
        module="snapshot_save",
    )
    save.add_argument("file", metavar="FILE", help="compressed when it ends in .gz; - is stdout")
    connects(save)
    asks_prometheus(save)
    plan = command(
        deeds,
        "plan",
        "plan a snapshot file anew",
        "Prints what this version decides from a snapshot file, without any cluster.",
        module="snapshot_plan",
    )
    plan.add_argument("file", metavar="FILE", help="made by tessera snapshot save")
    plan.add_argument("--service", metavar="NAMESPACE/NAME", help="explain this service")
    formed(plan)


def _completion(commands: Commands) -> None:
    made = command(
        commands,
        "completion",
        "the completion script of a shell",
        "Prints a script, for example: source <(tessera completion bash). kubectl tessera is "
        "completed by kubectl itself, through kubectl_complete-tessera.",
    )
    made.add_argument("shell", choices=SHELLS, help="which shell")
