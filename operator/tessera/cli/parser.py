"""All commands and their options. Nothing heavy is imported, so that help and completion are quick.

A command's `module` has `run`: arguments in, `Told` out.
"""

import argparse
from typing import TypeAlias

COST_ROWS = ("service", "tenant", "pool")
COST_FORMS = ("table", "json", "csv")
FORMS = ("text", "json")
SHELLS = ("bash", "zsh", "fish")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parser(program: str = "tessera") -> argparse.ArgumentParser:
    """The whole command line."""
    made = argparse.ArgumentParser(
        prog=program, description="Looks at the inference fleets of a cluster."
    )
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_doctor, _explain, _top, _update, _cost, _snapshot, _completion):
        add(commands)
    return made


def _doctor(commands: Commands) -> None:
    made = _command(
        commands,
        "doctor",
        "what is wrong in the cluster, and how to mend it",
        "Checks the cluster, the operator, the hardware, the metrics and the services. What may "
        "not be read is skipped. Exits with 1 when a problem was found; warnings do not count.",
    )
    _connects(made)
    _namespaced(made, "where the webhook is tried; nothing is created there")
    _asks_prometheus(made)
    _formed(made)


def _explain(commands: Commands) -> None:
    made = _command(
        commands,
        "explain",
        "every decision about a service, and what would change it",
        "Tells why a service is as it is: hardware with its price and the alternatives, sizing, "
        "scaling, budget, drain, rollout, readiness. It reads the status and plans anew, as the "
        "operator does, without writing anything.",
    )
    made.add_argument("service", metavar="SERVICE", help="name of the InferenceService")
    _connects(made)
    _namespaced(made, "namespace of the service")
    _asks_prometheus(made)
    _formed(made)


def _top(commands: Commands) -> None:
    made = _command(
        commands,
        "top",
        "services by what they cost, pools by what is free",
        "Shows the services, what costs most first, and the pools with their free devices. Queue, "
        "activity and measured tokens need Prometheus; expected tokens stand with a ~.",
    )
    _connects(made)
    _namespaced(made, "namespace of the services; without it all")
    made.add_argument(
        "-A", "--all-namespaces", action="store_true", help="all namespaces (the default)"
    )
    _asks_prometheus(made)
    _formed(made)


def _update(commands: Commands) -> None:
    made = _command(
        commands,
        "update",
        "roll a service to what this version of Tessera would build",
        "Upgrades of Tessera leave running models alone. Where the condition UpdateAvailable is "
        "True this asks for the new form now; else it says so and does nothing.",
    )
    made.add_argument("service", metavar="SERVICE", help="name of the InferenceService")
    _connects(made)
    _namespaced(made, "namespace of the service")
    _formed(made)


def _cost(commands: Commands) -> None:
    made = _command(
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
    _asks_prometheus(made)
    _formed(made, COST_FORMS)


def _snapshot(commands: Commands) -> None:
    deeds = commands.add_parser(
        "snapshot",
        help="save what is planned from, and plan it anew elsewhere",
        description="A snapshot file holds everything that the plan reads, without secrets. "
        "Planning it anew needs no cluster, so it is what a bug report carries.",
    ).add_subparsers(dest="deed", metavar="DEED", required=True)
    save = _command(
        deeds,
        "save",
        "write a snapshot file",
        "Writes everything that the plan reads into one JSON file. Values of environment "
        "variables, arguments of containers and passwords in URLs are left out.",
        module="snapshot_save",
    )
    save.add_argument("file", metavar="FILE", help="compressed when it ends in .gz; - is stdout")
    _connects(save)
    _asks_prometheus(save)
    plan = _command(
        deeds,
        "plan",
        "plan a snapshot file anew",
        "Prints what this version decides from a snapshot file, without any cluster.",
        module="snapshot_plan",
    )
    plan.add_argument("file", metavar="FILE", help="made by tessera snapshot save")
    plan.add_argument("--service", metavar="NAMESPACE/NAME", help="explain this service")
    _formed(plan)


def _completion(commands: Commands) -> None:
    made = _command(
        commands,
        "completion",
        "the completion script of a shell",
        "Prints a script, for example: source <(tessera completion bash). kubectl tessera is "
        "completed by kubectl itself, through kubectl_complete-tessera.",
    )
    made.add_argument("shell", choices=SHELLS, help="which shell")


def _command(
    commands: Commands, name: str, summary: str, description: str, module: str = ""
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=summary, description=description)
    made.set_defaults(module=f"tessera.cli.{module or name}")
    return made


def _connects(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="the kubeconfig (default: $KUBECONFIG, then ~/.kube/config)",
    )
    made.add_argument("--context", metavar="NAME", help="context of the kubeconfig")


def _namespaced(made: argparse.ArgumentParser, meaning: str) -> None:
    made.add_argument("-n", "--namespace", metavar="NAME", help=meaning)


def _asks_prometheus(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--prometheus", metavar="URL", help="base URL (default: $TESSERA_PROMETHEUS_URL)"
    )


def _formed(made: argparse.ArgumentParser, forms: tuple[str, ...] = FORMS) -> None:
    made.add_argument(
        *("-o", "--output"), choices=forms, default=forms[0], help="form (default: %(default)s)"
    )
    made.add_argument(
        "--json", dest="output", action="store_const", const="json", help="the same as -o json"
    )
