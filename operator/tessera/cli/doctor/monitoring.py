"""Checks of what the cluster's Prometheus takes of Tessera, and where it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera.api.api_resource import ApiResource
from tessera.api.text import counted, first_names
from tessera.cli.cluster import Json, Reader
from tessera.cli.doctor.finding import CheckContext, Finding, Findings, ok, warning
from tessera.cli.errors import DeniedError
from tessera.cli.installation import OPERATOR, operator_deployments, scraping_namespaces
from tessera.domain.names import APP_NAME, PART_OF, TESSERA
from tessera.resources.api_resources import POD_MONITORS, SERVICES

_MONITORING = POD_MONITORS.group
_PROMETHEUSES = ApiResource(group=_MONITORING, kind="Prometheus", verbs=())
_NAMESPACES = ApiResource(kind="Namespace", namespaced=False, verbs=())
_OURS = f"{PART_OF}={TESSERA}"
_MONITORS = replace(POD_MONITORS, selector=_OURS)
_RULES = ApiResource(group=_MONITORING, kind="PrometheusRule", verbs=(), selector=_OURS)
_SERVICES = replace(SERVICES, selector=None)
# What installations of Prometheus without the recommended labels call its Service.
_SERVICE_NAMES = frozenset(
    ("prometheus", "prometheus-k8s", "prometheus-operated", "prometheus-server")
)
# The API of Prometheus, whose pods have ports of a reloader and of Thanos as well.
_PORT_NAMES = ("http-web", "web", "https-web", "https", "http")
_HELM = "helm upgrade --reuse-values"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selection:
    """What a Prometheus of the Prometheus operator takes of one kind of objects."""

    kind: ApiResource
    field: str
    """The name in its spec, without `Selector` and `NamespaceSelector`."""
    value: str
    """The value of the chart with labels of these objects."""


_SELECTIONS = (
    _Selection(kind=_MONITORS, field="podMonitor", value="prometheus.monitorLabels"),
    _Selection(kind=_RULES, field="rule", value="rules.labels"),
)


async def check_monitors(context: CheckContext) -> Findings:
    """Check that a Prometheus selects Tessera's PodMonitors and rules."""
    monitors = await context.reader.list_if_served(_MONITORS)
    if monitors is None:
        return warning(
            "pod monitors",
            "PodMonitors are not installed",
            "install the Prometheus operator, or scrape the engines' port http with the pod's "
            "labels by a configuration of your own",
        )
    installed = await operator_deployments(context.reader)
    if installed and not any(body["metadata"]["name"] == OPERATOR for body in monitors):
        return warning(
            "pod monitors",
            f"PodMonitor/{OPERATOR} not found",
            f"{_HELM}: the chart creates it in a cluster that has PodMonitors already",
        )
    prometheuses = await context.reader.list_if_served(_PROMETHEUSES)
    if not prometheuses:
        return ok("pod monitors", "PodMonitors are installed")
    namespaces = {
        body["metadata"]["name"]: body["metadata"].get("labels", {})
        for body in await context.reader.list_objects(_NAMESPACES)
    }
    findings = list(_namespace_findings(prometheuses, await scraping_namespaces(context.reader)))
    for selection in _SELECTIONS:
        objects = await context.reader.list_if_served(selection.kind) or ()
        missed = [
            list(_selection_findings(selection, prometheus, objects, namespaces))
            for prometheus in prometheuses
        ]
        # One that takes all is enough: others are there for other teams.
        if all(missed):
            findings += [finding for few in missed for finding in few]
    message = f"a Prometheus selects {counted(len(monitors), 'PodMonitor')} of Tessera"
    return findings or ok("pod monitors", message)


def _namespace_findings(prometheuses: Sequence[Json], scraping: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding where the network policies let no Prometheus of the cluster scrape."""
    homes = sorted({body["metadata"]["namespace"] for body in prometheuses})
    if scraping and not {*homes} & {*scraping}:
        message = f"Prometheus of namespace {first_names(homes)} may not scrape, but those of "
        message += f"{first_names(sorted(scraping))}, by prometheus.namespaces of the chart"
        yield warning("pod monitors", message, f"{_HELM} {scrape_option(homes[0])}")


def scrape_option(namespace: str) -> str:
    """Return the option of Helm by which pods of a namespace may scrape."""
    return f"--set 'prometheus.namespaces={{{namespace}}}'"


def _selection_findings(
    selection: _Selection,
    prometheus: Json,
    objects: Sequence[Json],
    namespaces: Mapping[str, Mapping[str, str]],
) -> Iterator[Finding]:
    """Yield what a Prometheus does not take of the objects, by labels and by namespaces."""
    spec, home = prometheus.get("spec", {}), prometheus["metadata"]["namespace"]
    name = f"Prometheus/{home}/{prometheus['metadata']['name']}"
    check = "pod monitors" if selection.kind is _MONITORS else "rules"
    labels_field, namespace_field = (
        f"{selection.field}Selector",
        f"{selection.field}NamespaceSelector",
    )
    selector = spec.get(labels_field)
    missed = [body for body in objects if not selects(selector, _labels(body))]
    if missed:
        message = f"{name} does not select {_named(selection, missed)}, by spec.{labels_field}"
        yield warning(check, message, _labels_fix(selection, selector, missed, labels_field))
    where = spec.get(namespace_field)
    outside = sorted(
        {
            namespace
            for body in objects
            if (namespace := body["metadata"]["namespace"]) != home or where is not None
            if not selects(where, namespaces.get(namespace, {}))
        }
    )
    if outside:
        message = f"{name} reads no {selection.kind.kind} of {first_names(outside, 5)}"
        labels = labels_to_add(where, namespaces.get(outside[0], {}))
        fix = f"set spec.{namespace_field}: {{}} of {name}"
        if labels:
            pairs = " ".join(f"{key}={value}" for key, value in labels.items())
            fix = f"kubectl label namespace {' '.join(outside[:5])} {pairs}, or {fix}"
        yield warning(check, f"{message}, by spec.{namespace_field}", fix)


def _named(selection: _Selection, bodies: Sequence[Json]) -> str:
    names = [f"{body['metadata']['namespace']}/{body['metadata']['name']}" for body in bodies]
    return f"{selection.kind.kind} {first_names(sorted(names), 3)}"


def _labels_fix(
    selection: _Selection, selector: Json | None, missed: Sequence[Json], field: str
) -> str:
    """Return what to set: labels by the chart, or the selector where no label makes it match."""
    labels = labels_to_add(selector, _labels(missed[0]))
    if not labels:
        return f"set spec.{field}: {{}} of the Prometheus, which selects all"
    escaped = {key.replace(".", r"\."): value for key, value in labels.items()}
    options = (f"--set-string '{selection.value}.{key}={value}'" for key, value in escaped.items())
    return f"{_HELM} {' '.join(options)}"


def _labels(body: Json) -> Mapping[str, str]:
    labels: Mapping[str, str] = body["metadata"].get("labels", {})
    return labels


def selects(selector: Json | None, labels: Mapping[str, str]) -> bool:
    """Return whether a selector takes an object with these labels; without one it takes none."""
    return selector is not None and labels_to_add(selector, labels) == {}


def labels_to_add(selector: Json | None, labels: Mapping[str, str]) -> Mapping[str, str] | None:
    """Return the labels with which a selector takes an object; None where none do."""
    if selector is None:
        return None
    wanted = dict(selector.get("matchLabels") or {})
    for rule in selector.get("matchExpressions") or ():
        key, values = rule["key"], list(rule.get("values") or ())
        match rule["operator"]:
            case "In" if labels.get(key) not in values and key not in wanted:
                wanted[key] = values[0]
            case "Exists" if key not in labels:
                wanted.setdefault(key, "true")
            case "NotIn" if labels.get(key) in values:
                return None
            case "DoesNotExist" if key in labels:
                return None
            case _:
                pass
    return {key: value for key, value in wanted.items() if labels.get(key) != value}


async def prometheus_urls(reader: Reader, scraping: Sequence[str] = ()) -> dict[str, str]:
    """Return URLs of what looks like a Prometheus, with namespaces; none where lists are denied.

    First come those of namespaces whose pods may scrape: a tenant may call a Service anything.
    """
    try:
        services = await reader.list_objects(_SERVICES)
        prometheuses = await reader.list_if_served(_PROMETHEUSES) or []
    except DeniedError:
        return {}
    prefixes = {
        body["metadata"]["namespace"]: body.get("spec", {}).get("routePrefix", "")
        for body in prometheuses
    }
    ports = [(service, port) for service in services if (port := _port_of(service)) is not None]
    # The governing Service of the Prometheus operator is of use where no other one is.
    named = {service["metadata"]["namespace"] for service, _ in ports if not _is_headless(service)}
    urls = {
        f"{_scheme(port)}://{meta['name']}.{meta['namespace']}.svc:{port['port']}"
        f"{prefixes.get(meta['namespace'], '').rstrip('/')}": meta["namespace"]
        for service, port in ports
        if (meta := service["metadata"])
        and not (_is_headless(service) and meta["namespace"] in named)
    }
    return dict(sorted(urls.items(), key=lambda pair: (pair[1] not in scraping, pair)))


def _port_of(service: Json) -> Json | None:
    """Return the port of the API of a Service of Prometheus; None for any other Service."""
    spec = service.get("spec", {})
    selected = spec.get("selector") or {}
    by_labels = "prometheus" in (selected.get(APP_NAME), selected.get("app"))
    if not by_labels and service["metadata"]["name"] not in _SERVICE_NAMES:
        return None
    ports = {port.get("name", "http"): port for port in spec.get("ports") or ()}
    return next((ports[name] for name in _PORT_NAMES if name in ports), None)


def _is_headless(service: Json) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def _scheme(port: Json) -> str:
    return "https" if str(port.get("name", "")).startswith("https") else "http"
