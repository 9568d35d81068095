"""Prometheus: can it be asked, and does it have what scaling reads?"""

from collections.abc import Iterator, Sequence

from tessera.adapters.prometheus import ALIVE
from tessera.adapters.prometheus_queries import SERVICE
from tessera.cli.checks.finding import Finding, Series, State, Ward
from tessera.cli.checks.operator import deployments
from tessera.cli.errors import CommandError
from tessera.ports import MetricsError
from tessera.resources.kinds import INFERENCE_SERVICES, POD_MONITORS

_ACTIVE = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
_RENAMED = f'{_ACTIVE}{{exported_pod!=""}}'
"""What Prometheus makes of the engine's `pod` where the exporter's own labels win."""
_ENGINES = f'{ALIVE}{{{SERVICE}!=""}}'
_URL = "TESSERA_PROMETHEUS_URL"
_FORWARD = "kubectl -n monitoring port-forward svc/prometheus-operated 9090, then --prometheus"
_GIVE = "helm upgrade --reuse-values --set prometheus.url=http://...; without it nothing scales"


async def pod_monitors(ward: Ward) -> Sequence[Finding]:
    """Can the operator say what Prometheus shall scrape?"""
    if await ward.reader.known(POD_MONITORS) is not None:
        return [Finding("pod monitors", State.OK, "the cluster knows PodMonitors")]
    return [
        Finding(
            "pod monitors",
            State.WARNING,
            "the cluster does not know PodMonitors",
            "install the Prometheus operator, or scrape the engines' port http yourself with the "
            "pod's labels; readings are missing otherwise",
        )
    ]


async def prometheus(ward: Ward) -> Sequence[Finding]:
    """Does the Prometheus of the operator, or the one given, have the readings?"""
    url, configured = ward.prometheus, await _configured(ward)
    if configured == "":
        return [Finding("prometheus", State.PROBLEM, "the operator was given none", _GIVE)]
    url = url or configured
    if not url:
        told = "it is not known where it is"
        return [Finding("prometheus", State.SKIPPED, told, "--prometheus URL")]
    try:
        counts = await _counts(ward.series(url))
    except MetricsError as error:
        if ward.prometheus is not None:
            mend = f"is the URL right? {_FORWARD} http://127.0.0.1:9090"
            return [Finding("prometheus", State.PROBLEM, str(error), mend)]
        told = f"the operator's, {url}, cannot be reached from here"
        return [Finding("prometheus", State.SKIPPED, told, f"{_FORWARD} http://127.0.0.1:9090")]
    return [
        Finding("prometheus", State.OK, f"{url} answers"),
        *_judged(counts, await _serving(ward)),
    ]


async def _configured(ward: Ward) -> str | None:
    """The operator's URL; empty when it has none, None when that is not known."""
    try:
        found = await deployments(ward.reader)
    except CommandError:
        return None
    for deployment in found:
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            env = {one["name"]: one.get("value") for one in container.get("env", ())}
            return env.get(_URL, "") or ""
    return None


async def _counts(series: Series) -> dict[str, int]:
    return dict(await series.present((_ACTIVE, _RENAMED, _ENGINES)))


async def _serving(ward: Ward) -> int:
    """Replicas that take requests, so that readings of them must be there."""
    try:
        bodies = await ward.reader.all(INFERENCE_SERVICES)
    except CommandError:
        return 0
    return sum(body.get("status", {}).get("readyReplicas", 0) for body in bodies)


def _judged(counts: dict[str, int], serving: int) -> Iterator[Finding]:
    if counts[_RENAMED]:
        told = f"{_ACTIVE} has the engines in exported_pod, where nobody looks for them"
        mend = "set honorLabels: true where Prometheus scrapes the DCGM exporter"
        yield Finding("dcgm metrics", State.PROBLEM, told, mend)
    elif counts[_ACTIVE]:
        yield Finding("dcgm metrics", State.OK, f"{counts[_ACTIVE]} series of {_ACTIVE}")
    else:
        mend = (
            f"run dcgm-exporter with {_ACTIVE} among its counters, and scrape it; without it "
            "nothing is removed"
        )
        yield Finding("dcgm metrics", State.PROBLEM, f"no {_ACTIVE}", mend)
    if counts[_ENGINES]:
        yield Finding("engine metrics", State.OK, f"{counts[_ENGINES]} engines are read")
    elif serving:
        told = f"{serving} replicas take requests, and no engine is read"
        mend = (
            "does Prometheus select the PodMonitors tessera-engine? kubectl get podmonitors -A; "
            "see its podMonitorSelector and podMonitorNamespaceSelector"
        )
        yield Finding("engine metrics", State.PROBLEM, told, mend)
    else:
        yield Finding("engine metrics", State.OK, "no replica takes requests, so none is read")
