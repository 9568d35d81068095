"""What commands share of their options."""

import argparse
from typing import TypeAlias

FORMS = ("text", "json")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def command(
    commands: Commands, name: str, summary: str, description: str, module: str = ""
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=summary, description=description)
    made.set_defaults(module=f"tessera.cli.{module or name}")
    return made


def connects(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="the kubeconfig (default: $KUBECONFIG, then ~/.kube/config)",
    )
    made.add_argument("--context", metavar="NAME", help="context of the kubeconfig")


def namespaced(made: argparse.ArgumentParser, meaning: str) -> None:
    made.add_argument("-n", "--namespace", metavar="NAME", help=meaning)


def asks_prometheus(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--prometheus", metavar="URL", help="base URL (default: $TESSERA_PROMETHEUS_URL)"
    )


def formed(made: argparse.ArgumentParser, forms: tuple[str, ...] = FORMS) -> None:
    made.add_argument(
        *("-o", "--output"), choices=forms, default=forms[0], help="form (default: %(default)s)"
    )
    made.add_argument(
        "--json", dest="output", action="store_const", const="json", help="the same as -o json"
    )
