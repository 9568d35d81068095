"""`tessera cost`: the cost of the fleet by service, tenant or pool, and what was charged."""

import asyncio
from functools import partial
from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.adapters.prometheus.billing import COST
from tessera.adapters.prometheus.statements import read_statements
from tessera.cli.cost.charges import charge_query, charges_output, read_charges
from tessera.cli.cost.report import GROUPINGS, CostReport, output
from tessera.cli.errors import CommandError
from tessera.cli.fleet import PORT_FORWARD_HINT, open_prometheus, prometheus_url
from tessera.cli.gateway_port import read_gateway
from tessera.cli.output import Output
from tessera.cli.text import parse_month, parse_since
from tessera.domain.gateway.usage_record import CHARGE_COLUMNS, RecordDimension
from tessera.domain.usage.report import fields_of
from tessera.ports import MetricsError
from tessera.settings import CommandSettings


def run(arguments: SimpleNamespace) -> Output:
    """Return the report in the requested format."""
    end = now()
    if arguments.month:
        begin, end = parse_month(arguments.month, end)
    else:
        begin = parse_since(arguments.since, end)
    read = partial(
        read_charges,
        partial(read_gateway, arguments),
        begin=begin,
        end=end,
        is_month=bool(arguments.month),
    )
    group_by, by_charges = parse_grouping(arguments.by)
    if by_charges:
        return charges_output(read(by_charges), arguments.output)
    url = prometheus_url(arguments)
    if not url:
        raise CommandError(
            "no Prometheus URL: pass --prometheus URL or set TESSERA_PROMETHEUS_URL; from outside "
            f"the cluster: {PORT_FORWARD_HINT}"
        )
    metrics = open_prometheus(url)
    scrapes = metrics.energy if arguments.energy else None
    try:
        cost_statement, energy = asyncio.run(read_statements(metrics, begin, end, scrapes))
    except MetricsError as error:
        raise CommandError(
            f"{error}; check the URL, and from outside the cluster: {PORT_FORWARD_HINT}"
        ) from error
    if cost_statement is None:
        series = f"{COST}{{{CommandSettings().prometheus_access.own_target}}}"
        raise CommandError(
            f"{url} has no {series} since {begin:%Y-%m-%d %H:%M} UTC; set TESSERA_NAMESPACE to the "
            "operator's namespace, and check that it runs and is scraped: "
            "kubectl get podmonitors -A shows tessera-operator"
        )
    charges, paid = None, None
    query = charge_query(group_by)
    if query is not None and (arguments.gateway or CommandSettings().gateway_url):
        charges = read(query)
        paid = read((RecordDimension.TENANT,)) if group_by == "tenant" else None
    report = CostReport(
        requested_from=begin,
        now=end,
        group_by=group_by,
        statement=cost_statement,
        energy=energy,
        charges=charges,
        paid=paid,
    )
    return output(report, arguments.output)


def parse_grouping(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the grouping of cost, or the fields of charges alone; CommandError for neither."""
    names = fields_of(text)
    of_nodes = ",".join(sorted(names, reverse=True))
    if of_nodes in GROUPINGS:
        return of_nodes, ()
    if unknown := [name for name in names if name not in CHARGE_COLUMNS]:
        raise CommandError(
            f"--by {text}: there are no charges by {unknown[0] or 'an empty field'}; choose of "
            f"{', '.join(CHARGE_COLUMNS)}, or pool alone"
        )
    return "", names
