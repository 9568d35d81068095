"""The bill of the run: every GPU second has a tenant or is named unused."""

import json
from collections.abc import Iterable, Iterator

from demo.cluster import InstalledCluster, StepError, until
from demo.recorded import BillLine, by_tenant
from demo.signals import UNUSED, read_curves
from tessera.cli.text import table

_PATIENCE = 60.0


async def run(cluster: InstalledCluster, tenants: tuple[str, ...]) -> str:
    """Print the costs by tenant; each of these must have some."""
    notebook, url = cluster.notebook, cluster.world.prometheus_url
    command = ("cost", "--since", notebook.started)

    async def read_bill() -> tuple[BillLine, ...]:
        report = await cluster.tessera(*command, "--prometheus", url, "--output", "json")
        return bill_lines(json.loads(report)["rows"])

    notebook.bill = await until(
        read_bill,
        lambda lines: {line.tenant for line in lines} >= set(tenants),
        f"the bill has {', '.join(tenants)}",
        _PATIENCE,
    )
    # What the operator itself counts for a TenantBudget.
    counted = {curve.name for curve in (await read_curves(url, notebook.begun)).dollars}
    if missing := set(tenants) - counted:
        raise StepError(f"no cost is counted for TenantBudget {', '.join(sorted(missing))}")
    cluster.say("\n".join([f"tessera {' '.join(command)}, by tenant:", *bill_table(notebook.bill)]))
    total = sum(line.usd for line in notebook.bill)
    billed = sum(line.usd for line in notebook.bill if line.tenant)
    return (
        f"{total:.4f} USD in {notebook.seconds:.0f} s: {billed:.4f} are billed to "
        f"{len(tenants)} tenants, and {total - billed:.4f} are named unused, by pool."
    )


def bill_lines(rows: Iterable[dict[str, str]]) -> tuple[BillLine, ...]:
    """Return the rows of a report by service; the budget of a namespace has its name."""
    return tuple(
        BillLine(
            tenant="" if row["name"].startswith("(") else row["name"].partition("/")[0],
            service=row["name"],
            usd=float(row["total"]),
            share=float(row["share"]),
        )
        for row in rows
    )


def bill_table(lines: Iterable[BillLine]) -> Iterator[str]:
    """Yield a table with the sum of each tenant above what it is made of; unused parts are last."""
    rows = []
    for bill in sorted(by_tenant(lines), key=lambda bill: not bill.tenant):
        rows.append([bill.tenant or UNUSED, f"{bill.usd:.4f}", f"{bill.share:.1%}"])
        rows += [[f"  {line.service}", f"{line.usd:.4f}", ""] for line in bill.lines]
    yield from table(("TENANT, SERVICE", "USD", "SHARE"), rows, str.rjust)
