"""Options that several commands share."""

import argparse
from typing import TypeAlias

OUTPUT_FORMATS = ("text", "json")
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, summary: str, description: str, module: str = ""
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=description)
    parser.set_defaults(module=module or f"tessera.cli.{name}.command")
    return parser


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="the kubeconfig (default: $KUBECONFIG, then ~/.kube/config)",
    )
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig")


def add_namespace_option(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("-n", "--namespace", metavar="NAME", help=help_text)


def add_prometheus_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prometheus", metavar="URL", help="base URL (default: $TESSERA_PROMETHEUS_URL)"
    )


def add_output_options(
    parser: argparse.ArgumentParser, formats: tuple[str, ...] = OUTPUT_FORMATS
) -> None:
    parser.add_argument(
        *("-o", "--output"),
        choices=formats,
        default=formats[0],
        help="output format (default: %(default)s)",
    )
    parser.add_argument(
        "--json", dest="output", action="store_const", const="json", help="short for -o json"
    )
