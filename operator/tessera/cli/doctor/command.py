"""`tessera doctor`: what is wrong in the cluster, and how to fix it."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

from tessera import __version__
from tessera.adapters.clock import now
from tessera.cli.cluster import Json, Reader, cluster_command
from tessera.cli.doctor.autoscalers import check_autoscalers
from tessera.cli.doctor.control import check_crds, check_kserve, check_kubernetes, check_permissions
from tessera.cli.doctor.finding import (
    Check,
    CheckContext,
    Finding,
    FindingState,
    problem,
    skipped,
)
from tessera.cli.doctor.hardware import check_gpu_nodes, check_pools
from tessera.cli.doctor.metrics import check_prometheus
from tessera.cli.doctor.mig import check_layouts
from tessera.cli.doctor.monitoring import check_monitors
from tessera.cli.doctor.names import check_names
from tessera.cli.doctor.operator import (
    check_gateway,
    check_operator,
    check_policies,
    check_webhook,
)
from tessera.cli.doctor.providers import check_provider_prices
from tessera.cli.doctor.services import check_budgets, check_pods, check_services, check_slos
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.fleet import open_prometheus, prometheus_url
from tessera.cli.output import Output

CHECKS: tuple[Check, ...] = (
    check_kubernetes,
    check_permissions,
    check_crds,
    check_kserve,
    check_operator,
    check_gateway,
    check_webhook,
    check_policies,
    check_pools,
    check_gpu_nodes,
    check_layouts,
    check_monitors,
    check_prometheus,
    check_budgets,
    check_names,
    check_provider_prices,
    check_services,
    check_slos,
    check_autoscalers,
    check_pods,
)


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Print all findings; the exit code is 1 when one of them is a problem."""
    context = CheckContext(
        reader=reader,
        at=now(),
        version=__version__,
        prometheus_url=prometheus_url(arguments),
        series_counter=open_prometheus,
    )
    findings = await run_checks(context)
    code = int(any(finding.state is FindingState.PROBLEM for finding in findings))
    return Output.of(
        arguments.output, report_lines(findings), partial(as_json, findings), exit_code=code
    )


async def run_checks(context: CheckContext) -> Sequence[Finding]:
    """Run every check, or none while the API server does not respond."""
    try:
        await context.reader.get("/version")
    except CommandError as error:
        return [problem("kubernetes", str(error))]
    findings_by_check = await asyncio.gather(*(_run_check(check, context) for check in CHECKS))
    return [finding for findings in findings_by_check for finding in findings]


async def _run_check(check: Check, context: CheckContext) -> Sequence[Finding]:
    """Run one check; a missing permission is no failure."""
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        findings = await check(context)
        return [findings] if isinstance(findings, Finding) else list(findings)
    except DeniedError as error:
        return [skipped(name, str(error))]
    except CommandError as error:
        return [problem(name, str(error))]


_STATE_LABELS = {
    FindingState.OK: "ok",
    FindingState.WARNING: "WARN",
    FindingState.PROBLEM: "FAIL",
    FindingState.SKIPPED: "skip",
}


def report_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield a line for each finding, and one with its fix."""
    width = min(32, max(len(finding.check) for finding in findings))
    for finding in findings:
        message = " ".join(finding.message.split())
        yield f"{_STATE_LABELS[finding.state].ljust(4)}  {finding.check.ljust(width)}  {message}"
        if finding.fix:
            yield f"{'':{width + 8}}-> {finding.fix}"
    counts = Counter(finding.state for finding in findings)
    yield ""
    yield (
        f"problems: {counts[FindingState.PROBLEM]}, warnings: {counts[FindingState.WARNING]}, "
        f"skipped: {counts[FindingState.SKIPPED]}, ok: {counts[FindingState.OK]}"
    )


def as_json(findings: Sequence[Finding]) -> Json:
    """Return the findings as JSON."""
    counts = Counter(finding.state for finding in findings)
    return {
        "findings": [asdict(finding) | {"fix": finding.fix or None} for finding in findings],
        "counts": {state.value: counts[state] for state in FindingState},
    }
