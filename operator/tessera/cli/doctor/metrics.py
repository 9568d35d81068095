"""Prometheus: can it be asked, and does it have what scaling reads?"""

from collections.abc import Iterator, Sequence

from tessera.adapters.prometheus import LIVENESS_METRIC
from tessera.adapters.prometheus_queries import SERVICE
from tessera.cli.doctor.finding import CheckContext, Finding, FindingState, SeriesCounter
from tessera.cli.doctor.operator import deployments
from tessera.cli.errors import CommandError
from tessera.ports import MetricsError
from tessera.resources.api_resources import INFERENCE_SERVICES, POD_MONITORS

_GPU_ACTIVITY = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
# What Prometheus makes of the engine's `pod` where the exporter's own labels win.
_RELABELED_ACTIVITY = f'{_GPU_ACTIVITY}{{exported_pod!=""}}'
_ENGINE_LIVENESS = f'{LIVENESS_METRIC}{{{SERVICE}!=""}}'
_URL_VARIABLE = "TESSERA_PROMETHEUS_URL"
_FORWARD_HINT = "kubectl -n monitoring port-forward svc/prometheus-operated 9090, then --prometheus"
_SET_URL = "helm upgrade --reuse-values --set prometheus.url=http://...; without it nothing scales"


async def pod_monitors(context: CheckContext) -> Sequence[Finding]:
    """Can the operator say what Prometheus shall scrape?"""
    if await context.reader.list_if_served(POD_MONITORS) is not None:
        return [Finding("pod monitors", FindingState.OK, "the cluster knows PodMonitors")]
    return [
        Finding(
            "pod monitors",
            FindingState.WARNING,
            "the cluster does not know PodMonitors",
            "install the Prometheus operator, or scrape the engines' port http yourself with the "
            "pod's labels; readings are missing otherwise",
        )
    ]


async def prometheus(context: CheckContext) -> Sequence[Finding]:
    """Does the Prometheus of the operator, or the one given, have the readings?"""
    url, configured_url = context.prometheus_url, await _configured_url(context)
    if configured_url == "":
        return [
            Finding("prometheus", FindingState.PROBLEM, "the operator was given none", _SET_URL)
        ]
    url = url or configured_url
    if not url:
        message = "it is not known where it is"
        return [Finding("prometheus", FindingState.SKIPPED, message, "--prometheus URL")]
    try:
        counts = await _series_counts(context.series_counter(url))
    except MetricsError as error:
        if context.prometheus_url is not None:
            fix = f"is the URL right? {_FORWARD_HINT} http://127.0.0.1:9090"
            return [Finding("prometheus", FindingState.PROBLEM, str(error), fix)]
        message = f"the operator's, {url}, cannot be reached from here"
        return [
            Finding(
                "prometheus",
                FindingState.SKIPPED,
                message,
                f"{_FORWARD_HINT} http://127.0.0.1:9090",
            )
        ]
    return [
        Finding("prometheus", FindingState.OK, f"{url} answers"),
        *_metric_findings(counts, await _ready_replicas(context)),
    ]


async def _configured_url(context: CheckContext) -> str | None:
    """The operator's URL; empty when it has none, None when that is not known."""
    try:
        operator_deployments = await deployments(context.reader)
    except CommandError:
        return None
    for deployment in operator_deployments:
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            env = {variable["name"]: variable.get("value") for variable in container.get("env", ())}
            return env.get(_URL_VARIABLE, "") or ""
    return None


async def _series_counts(series_counter: SeriesCounter) -> dict[str, int]:
    return dict(
        await series_counter.count_series((_GPU_ACTIVITY, _RELABELED_ACTIVITY, _ENGINE_LIVENESS))
    )


async def _ready_replicas(context: CheckContext) -> int:
    """Replicas that take requests, so that readings of them must be there."""
    try:
        bodies = await context.reader.list_objects(INFERENCE_SERVICES)
    except CommandError:
        return 0
    return sum(body.get("status", {}).get("readyReplicas", 0) for body in bodies)


def _metric_findings(counts: dict[str, int], ready_replicas: int) -> Iterator[Finding]:
    if counts[_RELABELED_ACTIVITY]:
        message = f"{_GPU_ACTIVITY} has the engines in exported_pod, where nobody looks for them"
        fix = "set honorLabels: true where Prometheus scrapes the DCGM exporter"
        yield Finding("dcgm metrics", FindingState.PROBLEM, message, fix)
    elif counts[_GPU_ACTIVITY]:
        yield Finding(
            "dcgm metrics", FindingState.OK, f"{counts[_GPU_ACTIVITY]} series of {_GPU_ACTIVITY}"
        )
    else:
        fix = (
            f"run dcgm-exporter with {_GPU_ACTIVITY} among its counters, and scrape it; without it "
            "nothing is removed"
        )
        yield Finding("dcgm metrics", FindingState.PROBLEM, f"no {_GPU_ACTIVITY}", fix)
    if counts[_ENGINE_LIVENESS]:
        yield Finding(
            "engine metrics", FindingState.OK, f"{counts[_ENGINE_LIVENESS]} engines are read"
        )
    elif ready_replicas:
        message = f"{ready_replicas} replicas take requests, and no engine is read"
        fix = (
            "does Prometheus select the PodMonitors tessera-engine? kubectl get podmonitors -A; "
            "see its podMonitorSelector and podMonitorNamespaceSelector"
        )
        yield Finding("engine metrics", FindingState.PROBLEM, message, fix)
    else:
        yield Finding(
            "engine metrics", FindingState.OK, "no replica takes requests, so none is read"
        )
