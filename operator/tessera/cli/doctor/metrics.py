"""Checks of Prometheus: reachable, and with the series that scaling reads."""

from collections.abc import Iterator, Mapping, Sequence

from tessera.adapters.prometheus.access import PrometheusAccess
from tessera.adapters.prometheus.metrics import (
    CONTRADICTED_ACTIVITY,
    ENGINES,
    REPEATED_ENGINES,
    REPEATED_GPUS,
)
from tessera.adapters.prometheus.rows import QueryRow, pod_ref
from tessera.api.text import counted, first_names
from tessera.cli.doctor.finding import (
    CheckContext,
    Finding,
    Findings,
    ok,
    problem,
    skipped,
    warning,
)
from tessera.cli.doctor.monitoring import prometheus_urls, scrape_option
from tessera.cli.errors import CommandError
from tessera.cli.fleet import PORT_FORWARD_HINT
from tessera.cli.installation import (
    operator_deployments,
    operator_variables,
    scraping_namespaces,
)
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.observed.snapshot import MIN_BUSY_ACTIVITY
from tessera.ports import MetricsError

_GPU_ACTIVITY = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
# Without honorLabels Prometheus renames the engine's label `pod` to `exported_pod`.
_RELABELED_ACTIVITY = f'{_GPU_ACTIVITY}{{exported_pod!=""}}'
_WITHOUT_ACTIVITY = (
    "with spec.scaling.policy QueueAndActivity the queue alone adds replicas; Capacity needs no "
    "activity"
)
_URL_VARIABLE, _JOB_VARIABLE = "TESSERA_PROMETHEUS_URL", "TESSERA_PROMETHEUS_JOB"
_SET_URL = "helm upgrade --reuse-values --set prometheus.url={}; nothing scales without it"


async def check_prometheus(context: CheckContext) -> Findings:
    """Check that the given Prometheus, or the operator's, has the readings."""
    configured_url, access = await _operator_settings(context)
    if configured_url == "":
        return await _unset_finding(context)
    url = context.prometheus_url or configured_url
    if not url:
        return skipped("prometheus", "URL unknown", "--prometheus URL")
    try:
        own_series = f"tessera_leader{{{access.own_target}}}"
        prometheus = context.series_counter(url)
        rows = await prometheus.query_union({"repeated": REPEATED_ENGINES})
        counts = await prometheus.count_series(
            (
                _GPU_ACTIVITY,
                _RELABELED_ACTIVITY,
                CONTRADICTED_ACTIVITY,
                REPEATED_GPUS,
                ENGINES,
                own_series,
            )
        )
    except MetricsError as error:
        if context.prometheus_url is not None:
            return problem("prometheus", str(error), f"check the URL, or {PORT_FORWARD_HINT}")
        message = f"{url} of the operator is not reachable from this machine"
        return skipped("prometheus", message, PORT_FORWARD_HINT)
    return [
        ok("prometheus", f"{url} responds"),
        *_gpu_findings(counts),
        _engine_finding(counts[ENGINES], rows["repeated"], await _ready_replicas(context)),
        _own_finding(own_series, counts[own_series]),
    ]


async def _unset_finding(context: CheckContext) -> Finding:
    """Say what to set, by the Services that look like a Prometheus."""
    message = "prometheus.url of the chart is not set"
    scraping = await scraping_namespaces(context.reader)
    urls = await prometheus_urls(context.reader, scraping)
    if not urls:
        return problem("prometheus", message, _SET_URL.format("http://..."))
    url, namespace = next(iter(urls.items()))
    message += f"; Services of this cluster that look like it: {first_names([*urls], 5)}"
    option = f" {scrape_option(namespace)}" if scraping and namespace not in scraping else ""
    return problem("prometheus", message, _SET_URL.format(url + option))


async def _operator_settings(context: CheckContext) -> tuple[str | None, PrometheusAccess]:
    """Return the operator's URL, empty when it has none and None when unknown, and its target."""
    try:
        deployments = await operator_deployments(context.reader)
    except CommandError:
        return None, PrometheusAccess()
    for namespace, variables in operator_variables(deployments):
        access = PrometheusAccess(namespace=namespace, job=variables.get(_JOB_VARIABLE) or "")
        return variables.get(_URL_VARIABLE) or "", access
    return None, PrometheusAccess()


async def _ready_replicas(context: CheckContext) -> int:
    """Count ready replicas, of which there must be readings."""
    try:
        bodies = await context.reader.list_objects(INFERENCE_SERVICES)
    except CommandError:
        return 0
    return sum(body.get("status", {}).get("readyReplicas", 0) for body in bodies)


def _own_finding(selector: str, count: int) -> Finding:
    if count:
        return ok("operator metrics", f"{counted(count, 'operator')} scraped")
    fix = (
        "see pod monitors above, and check that Prometheus may get /metrics "
        "(docs/tasks/install.md#prometheus), or set prometheus.job of the chart to the label job "
        "of its target: without it a new leader charges nothing for the time before its start"
    )
    return problem("operator metrics", f"no {selector}", fix)


def _gpu_findings(counts: Mapping[str, int]) -> Iterator[Finding]:
    if counts[_RELABELED_ACTIVITY]:
        message = f"{_GPU_ACTIVITY}: the label pod was renamed to exported_pod; {_WITHOUT_ACTIVITY}"
        fix = "set honorLabels: true where Prometheus scrapes the DCGM exporter, and nowhere else"
        yield warning("dcgm metrics", message, fix)
    elif busy := counts[CONTRADICTED_ACTIVITY]:
        message = (
            f"{_GPU_ACTIVITY} was below {MIN_BUSY_ACTIVITY:.0%} for 5 minutes while "
            f"{counted(busy, 'engine')} ran requests there, so it is no reading; "
            f"{_WITHOUT_ACTIVITY}"
        )
        fix = f"restart dcgm-exporter on their nodes; the query is count({CONTRADICTED_ACTIVITY})"
        yield warning("dcgm metrics", message, fix)
    elif repeated := counts[REPEATED_GPUS]:
        message = (
            f"{counted(repeated, 'GPU')} reported by more than one DCGM exporter, so the highest "
            "activity counts, and their energy does not"
        )
        fix = (
            "scrape one exporter of each node, or set prometheus.gpuJob of the chart to the label "
            f"job of those that count; the query is {REPEATED_GPUS}"
        )
        yield warning("dcgm metrics", message, fix)
    elif counts[_GPU_ACTIVITY]:
        yield ok("dcgm metrics", f"{counts[_GPU_ACTIVITY]} series of {_GPU_ACTIVITY}")
    else:
        message = f"no {_GPU_ACTIVITY}; {_WITHOUT_ACTIVITY}"
        fix = f"run dcgm-exporter with the counter {_GPU_ACTIVITY}, and scrape it"
        yield warning("dcgm metrics", message, fix)


def _engine_finding(engines: int, repeated: Sequence[QueryRow], ready_replicas: int) -> Finding:
    if repeated:
        pods = sorted(map(pod_ref, repeated))
        message = (
            f"{first_names(pods)}: scraped by more than one target, so the highest value counts"
        )
        fix = (
            "let the PodMonitors tessera-engine alone scrape engines, and one Prometheus answer; "
            f"the query is {REPEATED_ENGINES.text}"
        )
        return warning("engine metrics", message, fix)
    if engines:
        return ok("engine metrics", f"{counted(engines, 'engine')} scraped")
    if ready_replicas:
        message = f"no engine scraped, with {counted(ready_replicas, 'ready replica')}"
        fix = (
            "check that Prometheus selects the PodMonitors tessera-engine (podMonitorSelector, "
            "podMonitorNamespaceSelector): kubectl get podmonitors -A"
        )
        return problem("engine metrics", message, fix)
    return ok("engine metrics", "no ready replica to scrape")
