"""Options of `tessera top`."""

import click

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    GATEWAY_OPTION,
    PROMETHEUS_OPTION,
    Command,
    argument,
    namespace_option,
    option,
    output_options,
)

TOP_VIEWS = ("services", "requests")

TOP = Command(
    "top",
    "services by cost, pools by free devices; requests that run at a gateway",
    "Shows the services, the most expensive first, and the pools with their free devices; with a "
    "Prometheus also what routes saved in the last hour beside their last target. "
    "Queue, activity and measured tokens need Prometheus; predicted tokens are marked with ~. "
    "WAITING counts requests at engines and at gateways; SLO-NOW is of the last five minutes, "
    "while SLO of `kubectl get tsvc` may be five minutes older. "
    "`tessera top requests` shows the requests that wait or run at one gateway pod, the oldest "
    "first and at most 500, with the tokens that their streams have so far, and never a prompt. "
    "It needs the same right as tessera usage.",
    argument("view", "what to show", type=click.Choice(TOP_VIEWS), default=TOP_VIEWS[0]),
    *CLUSTER_OPTIONS,
    namespace_option("namespace of the services (default: all)"),
    option("-A --all-namespaces", "all namespaces (the default)", is_flag=True),
    PROMETHEUS_OPTION,
    GATEWAY_OPTION,
    *output_options(),
)
