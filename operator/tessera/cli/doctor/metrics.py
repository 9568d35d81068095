"""Checks of Prometheus: reachable, and with the series that scaling reads."""

from collections.abc import Iterator, Sequence

from tessera.adapters.prometheus import LIVENESS_METRIC
from tessera.adapters.prometheus_queries import SERVICE
from tessera.api.text import counted
from tessera.cli.doctor.finding import CheckContext, Finding, FindingState, SeriesCounter
from tessera.cli.doctor.operator import operator_deployments
from tessera.cli.errors import CommandError
from tessera.ports import MetricsError
from tessera.resources.api_resources import INFERENCE_SERVICES, POD_MONITORS

_GPU_ACTIVITY = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
# Without honorLabels Prometheus renames the engine's label `pod` to `exported_pod`.
_RELABELED_ACTIVITY = f'{_GPU_ACTIVITY}{{exported_pod!=""}}'
_ENGINE_LIVENESS = f'{LIVENESS_METRIC}{{{SERVICE}!=""}}'
_URL_VARIABLE = "TESSERA_PROMETHEUS_URL"
_FORWARD_HINT = "kubectl -n monitoring port-forward svc/prometheus-operated 9090, then --prometheus"
_SET_URL = "helm upgrade --reuse-values --set prometheus.url=http://...; nothing scales without it"


async def check_pod_monitors(context: CheckContext) -> Sequence[Finding]:
    """Check that the cluster has PodMonitors, by which engines are scraped."""
    if await context.reader.list_if_served(POD_MONITORS) is not None:
        return [Finding("pod monitors", FindingState.OK, "PodMonitors are installed")]
    return [
        Finding(
            "pod monitors",
            FindingState.WARNING,
            "PodMonitors are not installed",
            "install the Prometheus operator, or scrape the engines' port http with the pod's "
            "labels "
            "by a configuration of your own",
        )
    ]


async def check_prometheus(context: CheckContext) -> Sequence[Finding]:
    """Check that the given Prometheus, or the operator's, has the readings."""
    url, configured_url = context.prometheus_url, await _configured_url(context)
    if configured_url == "":
        return [
            Finding(
                "prometheus",
                FindingState.PROBLEM,
                "prometheus.url of the chart is not set",
                _SET_URL,
            )
        ]
    url = url or configured_url
    if not url:
        message = "URL unknown"
        return [Finding("prometheus", FindingState.SKIPPED, message, "--prometheus URL")]
    try:
        counts = await _series_counts(context.series_counter(url))
    except MetricsError as error:
        if context.prometheus_url is not None:
            fix = f"check the URL, or {_FORWARD_HINT} http://127.0.0.1:9090"
            return [Finding("prometheus", FindingState.PROBLEM, str(error), fix)]
        message = f"{url} of the operator is not reachable from this machine"
        return [
            Finding(
                "prometheus",
                FindingState.SKIPPED,
                message,
                f"{_FORWARD_HINT} http://127.0.0.1:9090",
            )
        ]
    return [
        Finding("prometheus", FindingState.OK, f"{url} responds"),
        *_metric_findings(counts, await _ready_replicas(context)),
    ]


async def _configured_url(context: CheckContext) -> str | None:
    """Return the operator's URL; empty when it has none, None when unknown."""
    try:
        deployments = await operator_deployments(context.reader)
    except CommandError:
        return None
    for deployment in deployments:
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            env = {variable["name"]: variable.get("value") for variable in container.get("env", ())}
            return env.get(_URL_VARIABLE, "") or ""
    return None


async def _series_counts(series_counter: SeriesCounter) -> dict[str, int]:
    return dict(
        await series_counter.count_series((_GPU_ACTIVITY, _RELABELED_ACTIVITY, _ENGINE_LIVENESS))
    )


async def _ready_replicas(context: CheckContext) -> int:
    """Count ready replicas, of which there must be readings."""
    try:
        bodies = await context.reader.list_objects(INFERENCE_SERVICES)
    except CommandError:
        return 0
    return sum(body.get("status", {}).get("readyReplicas", 0) for body in bodies)


def _metric_findings(counts: dict[str, int], ready_replicas: int) -> Iterator[Finding]:
    if counts[_RELABELED_ACTIVITY]:
        message = f"{_GPU_ACTIVITY}: the label pod was renamed to exported_pod"
        fix = "set honorLabels: true where Prometheus scrapes the DCGM exporter, and nowhere else"
        yield Finding("dcgm metrics", FindingState.PROBLEM, message, fix)
    elif counts[_GPU_ACTIVITY]:
        yield Finding(
            "dcgm metrics", FindingState.OK, f"{counts[_GPU_ACTIVITY]} series of {_GPU_ACTIVITY}"
        )
    else:
        fix = (
            f"run dcgm-exporter with the counter {_GPU_ACTIVITY}, and scrape it: no replica is "
            "removed "
            "without it"
        )
        yield Finding("dcgm metrics", FindingState.PROBLEM, f"no {_GPU_ACTIVITY}", fix)
    if counts[_ENGINE_LIVENESS]:
        yield Finding(
            "engine metrics",
            FindingState.OK,
            f"{counted(counts[_ENGINE_LIVENESS], 'engine')} scraped",
        )
    elif ready_replicas:
        message = f"no engine scraped, with {counted(ready_replicas, 'ready replica')}"
        fix = (
            "check that Prometheus selects the PodMonitors tessera-engine (podMonitorSelector, "
            "podMonitorNamespaceSelector): kubectl get podmonitors -A"
        )
        yield Finding("engine metrics", FindingState.PROBLEM, message, fix)
    else:
        yield Finding("engine metrics", FindingState.OK, "no ready replica to scrape")
