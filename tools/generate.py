"""Writes everything that is made from the types: CRDs, RBAC, the chart's values, reference pages.

`python tools/generate.py` writes, `python tools/generate.py --check` fails on a difference.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from pydantic import BaseModel

import bounds_page
import claims_pages
import converted_page
import engine_differences
import entries_page
import flags_page
import gateway_figures
import gateway_openapi
import home_page
import ladders_page
import paths_page
import takeovers
import waits_page
from alerts import GROUPS as ALERT_GROUPS
from alerts.alert import PAGE as ALERTS_PAGE
from chart_rights import render_with
from chart_values import REMOVED, Chart
from cli_page import page as cli_page
from enum_texts import member_texts
from tessera.api import (
    batch_reasons,
    budget_reasons,
    gate_reasons,
    pool_reasons,
    provider_reasons,
    reasons,
    route_reasons,
)
from tessera.api.api_resource import ApiResource
from tessera.api.meta import GROUP, VERSION
from tessera.api.schema import CustomResource as Resource
from tessera.api.schema import crd, structural
from tessera.batch_runner.progress import Progress, metrics_registry
from tessera.domain.kinds.kind import Process
from tessera.domain.kinds.kinds import KINDS as RESOURCES
from tessera.domain.kinds.kinds import USER_KINDS
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.resources.api_resources import (
    AUTOSCALING,
    CONFIG_MAPS,
    EVENTS,
    FOREIGN_AUTOSCALERS,
    KINDS,
    PARTITIONING,
    PRICED_LISTS,
    RECORDED_EVENTS,
    SPEND_RECORDS,
)
from tessera.telemetry.telemetry import Telemetry
from tessera_lab.cli.html_file import MARK

ROOT = Path(__file__).resolve().parent.parent
CHART = "charts/tessera"
NOTICE = "# Generated from the types by `make generate`; edits are lost.\n"


def generated() -> dict[str, str]:
    """Every generated file: path from the root -> content."""
    files = {f"crds/{resource.plural}.yaml": _crd(resource) for resource in RESOURCES}
    files |= {
        f"{CHART}/templates/crd-{resource.plural}.yaml": _kept_crd(resource)
        for resource in RESOURCES
    }
    files[f"{CHART}/templates/clusterrole.yaml"] = _cluster_role()
    files[f"{CHART}/values.yaml"] = _values()
    files[f"{CHART}/values.schema.json"] = _values_schema()
    files[f"{CHART}/templates/_values.tpl"] = _known_values()
    files |= {
        f"docs/reference/{resource.kind.lower()}.md": _page(resource) for resource in RESOURCES
    }
    files["docs/reference/reasons.md"] = _reasons()
    files[waits_page.PAGE] = waits_page.page()
    files["docs/reference/metrics.md"] = _metrics()
    files["docs/reference/values.md"] = _values_page()
    files["docs/reference/cli.md"] = cli_page()
    files["docs/reference/bounds.md"] = bounds_page.page()
    files[paths_page.PAGE] = paths_page.page()
    files[flags_page.PAGE] = flags_page.page()
    files[gateway_openapi.FILE] = gateway_openapi.text()
    chart = {
        name.removeprefix(f"{CHART}/"): text
        for name, text in files.items()
        if name.startswith(CHART)
    }
    objects = render_with(ROOT / CHART, chart)
    files[takeovers.PAGE] = takeovers.page(objects)
    files[entries_page.PAGE] = entries_page.page(objects, files["docs/reference/metrics.md"])
    files[f"{CHART}/rules/alerts.yaml"] = _alert_rules()
    files[ALERTS_PAGE] = _alerts_page()
    files |= claims_pages.pages()
    files[ladders_page.PAGE] = ladders_page.page()
    files[ladders_page.SHORT_PAGE] = _with_part(
        ladders_page.SHORT_PAGE, "ladder", ladders_page.short_table()
    )
    files[home_page.PAGE] = _with_parts(
        home_page.PAGE, {"savings": ladders_page.savings(), "figures": home_page.table()}
    )
    files[ladders_page.HISTORY_PAGE] = ladders_page.history_page()
    files[ladders_page.PICTURE] = ladders_page.picture()
    files[ladders_page.SAVINGS_PICTURE] = ladders_page.savings_picture()
    mark = MARK.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    files["docs/figures/mark.svg"] = f"{mark}\n"
    files[converted_page.PAGE] = _with_part(
        converted_page.PAGE, "converted", converted_page.table(ROOT)
    )
    files[gateway_figures.PAGE] = _with_part(
        gateway_figures.PAGE, "gateway", gateway_figures.table()
    )
    files["docs/reference/engine-differences.md"] = engine_differences.page(ROOT)
    return files


def _yaml(body: Any) -> str:
    return yaml.safe_dump(body, sort_keys=False, width=100)


def _crd(resource: Resource) -> str:
    return NOTICE + _yaml(crd(resource))


def _kept_crd(resource: Resource) -> str:
    """The chart's copy: uninstalling the chart keeps the CRDs, and with them all models."""
    body = crd(resource)
    body["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    return NOTICE + _yaml(body)


def _cluster_role() -> str:
    """Exactly the verbs on exactly the kinds that the operator's code names.

    With `watch.namespaces` what is namespaced is granted by a Role in each of them instead. What
    pre-pulls images is granted by the Role in their namespace in any case. What only cutting needs
    is granted with `mig.enabled`, and what only HorizontalPodAutoscalers need with `hpa.enabled`.
    """
    parts = [NOTICE]
    for name, kinds in _RULES:
        rules = [rule for kind in kinds for rule in _rules(kind)]
        parts.append(f'{{{{- define "tessera.{name}" }}}}\n{_yaml(rules)}{{{{- end }}}}\n')
    for name, values in _KIND_LISTS:
        parts.append(f'{{{{- define "tessera.{name}" }}}}\n{_yaml(values)}{{{{- end }}}}\n')
    return "".join(parts) + _ROLES


# The named rules of the chart, and the kinds in them.
_RULES: tuple[tuple[str, Sequence[ApiResource]], ...] = (
    ("clusterRules", [*(kind for kind in KINDS if not kind.namespaced), PRICED_LISTS]),
    (
        "namespaceRules",
        [
            *(kind for kind in KINDS if kind.namespaced and not kind.in_prepull_namespace),
            EVENTS,
            RECORDED_EVENTS,
            FOREIGN_AUTOSCALERS,
        ],
    ),
    ("clusterEventRules", [RECORDED_EVENTS]),
    ("homeRules", [SPEND_RECORDS]),
    (
        "prepullRules",
        [kind for kind in KINDS if kind.in_prepull_namespace],
    ),
    (
        "cuttingRules",
        [kind for kind in PARTITIONING if not kind.namespaced],
    ),
    (
        "cuttingNamespaceRules",
        [kind for kind in PARTITIONING if kind.namespaced],
    ),
    ("autoscalingRules", AUTOSCALING),
    ("managerRules", [CONFIG_MAPS]),
)
# Lists of the chart that follow from the rows of Tessera's own kinds.
_KIND_LISTS: tuple[tuple[str, Any], ...] = (
    ("reviews", {kind.plural: list(kind.reviewed_on) for kind in USER_KINDS}),
    *(
        (
            f"gateway{scope}Kinds",
            sorted(
                kind.plural
                for kind in USER_KINDS
                if Process.GATEWAY in kind.watched_by and kind.namespaced is namespaced
            ),
        )
        for scope, namespaced in (("Namespaced", True), ("Cluster", False))
    ),
)
_ROLES = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ include "tessera.clusterName" . }}
  labels:
    {{- include "tessera.labels" . | nindent 4 }}
rules:
{{- include "tessera.clusterRules" . }}
{{- if .Values.mig.enabled }}
{{- include "tessera.cuttingRules" . }}
{{- end }}
{{- if not .Values.watch.namespaces }}
{{- include "tessera.namespaceRules" . }}
{{- if .Values.mig.enabled }}
{{- include "tessera.cuttingNamespaceRules" . }}
{{- end }}
{{- if .Values.hpa.enabled }}
{{- include "tessera.autoscalingRules" . }}
{{- end }}
{{- end }}
{{- range .Values.watch.namespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ include "tessera.clusterName" $ }}
  namespace: {{ . }}
  labels:
    {{- include "tessera.labels" $ | nindent 4 }}
rules:
{{- include "tessera.namespaceRules" $ }}
{{- if $.Values.mig.enabled }}
{{- include "tessera.cuttingNamespaceRules" $ }}
{{- end }}
{{- if $.Values.hpa.enabled }}
{{- include "tessera.autoscalingRules" $ }}
{{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ include "tessera.clusterName" $ }}
  namespace: {{ . }}
  labels:
    {{- include "tessera.labels" $ | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ include "tessera.clusterName" $ }}
subjects:
- kind: ServiceAccount
  name: {{ include "tessera.serviceAccount" $ }}
  namespace: {{ $.Release.Namespace }}
{{- end }}
{{- if .Values.watch.namespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ include "tessera.clusterName" . }}-events
  namespace: default
  labels:
    {{- include "tessera.labels" . | nindent 4 }}
rules:
{{- include "tessera.clusterEventRules" . }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ include "tessera.clusterName" . }}-events
  namespace: default
  labels:
    {{- include "tessera.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ include "tessera.clusterName" . }}-events
subjects:
- kind: ServiceAccount
  name: {{ include "tessera.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}
"""
# Verbs of which a name can say nothing: a new object is named in its body.
_UNNAMED = ("list", "watch", "create")


def _rules(kind: ApiResource) -> Iterator[dict[str, list[str]]]:
    """Lists of their own in every rule: YAML would write shared ones as aliases."""

    def rule(resource: str, verbs: Iterable[str], **names: list[str]) -> dict[str, list[str]]:
        return {"apiGroups": [kind.group], "resources": [resource], **names, "verbs": list(verbs)}

    if not kind.resource_names:
        if kind.verbs:
            yield rule(kind.plural, kind.verbs)
    else:
        yield rule(kind.plural, [verb for verb in kind.verbs if verb in _UNNAMED])
        named = [verb for verb in kind.verbs if verb not in _UNNAMED]
        yield rule(kind.plural, named, resourceNames=list(kind.resource_names))
    for name, verbs in kind.subresources:
        yield rule(f"{kind.plural}/{name}", verbs)


def _with_part(path: str, name: str, content: str) -> str:
    return _with_parts(path, {name: content})


def _with_parts(path: str, parts: Mapping[str, str]) -> str:
    """Return the page with each content between the two marks of its generated part."""
    page = (ROOT / path).read_text(encoding="utf-8")
    for name, content in parts.items():
        begin, end = (page.index(mark) for mark in (f"<!-- {name}", f"<!-- end of {name}"))
        mark = f"<!-- {name}, generated by `make generate` -->\n\n"
        page = f"{page[:begin]}{mark}{content}\n{page[end:]}"
    return page


class _LiteralDumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_LiteralDumper.add_representer(str, _represent_text)


def _alert_rules() -> str:
    groups = [
        {"name": name, "rules": [alert.rule() for alert in alerts]}
        for name, alerts in ALERT_GROUPS.items()
    ]
    return NOTICE + yaml.dump(groups, Dumper=_LiteralDumper, sort_keys=False, width=10_000)


def _alerts_page() -> str:
    """Return the page with a section for each alert, which stand between two marks."""
    alerts = [alert for group in ALERT_GROUPS.values() for alert in group]
    return _with_part(ALERTS_PAGE, "alerts", "\n".join(alert.section() for alert in alerts))


def _values() -> str:
    return NOTICE + "\n".join(_value_lines(Chart(), 0)) + "\n"


def _value(model: BaseModel, name: str) -> Any:
    """Return a value of the chart: a part of it, or plain JSON."""
    value = getattr(model, name)
    return value if isinstance(value, BaseModel) else model.model_dump(mode="json")[name]


def _value_lines(model: BaseModel, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(model).model_fields.items():
        if field.exclude:
            continue
        value = _value(model, name)
        yield from (f"{indent}# {line}" for line in (field.description or "").splitlines())
        if isinstance(value, BaseModel):
            yield f"{indent}{field.alias}:"
            yield from _value_lines(value, depth + 1)
        else:
            text = yaml.safe_dump({field.alias: value}, default_flow_style=not value).strip()
            text = text.removeprefix("{").removesuffix("}") if not value else text
            yield from (f"{indent}{line}" for line in text.splitlines())


def _values_schema() -> str:
    """Return the schema, which leaves unknown values to the chart: it says more of them."""
    schema = Chart.model_json_schema(by_alias=True)
    parts = {type(part).__name__ for part in _parts(Chart())}
    for name, part in {"Chart": schema, **schema["$defs"]}.items():
        if name in parts:
            del part["additionalProperties"]
    head = {"$schema": "https://json-schema.org/draft-07/schema#"}
    return json.dumps({**head, **schema}, indent=2) + "\n"


def _parts(model: BaseModel) -> Iterator[BaseModel]:
    """Yield values and all of their parts."""
    yield model
    for name in type(model).model_fields:
        if isinstance(value := getattr(model, name), BaseModel):
            yield from _parts(value)


def _known_values() -> str:
    """Return what the chart compares values with: names, and sentences on those of before."""
    templates = {"knownValues": _names(Chart()), "removedValues": REMOVED}
    return NOTICE.replace("# ", "{{/* ").replace("\n", " */}}\n") + "".join(
        f'{{{{- define "tessera.{name}" -}}}}\n{_yaml(body)}{{{{- end -}}}}\n'
        for name, body in templates.items()
    )


def _names(model: BaseModel, *, optional: bool = False) -> dict[str, Any]:
    """Return the names of values as a tree; a part with a `?`, or within one, may be null."""
    names: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            may_be_null = optional or type(None) in get_args(field.annotation)
            mark = "?" if may_be_null else ""
            names[f"{field.alias}{mark}"] = _names(value, optional=may_be_null)
        else:
            names[str(field.alias)] = None
    return names


def _values_page() -> str:
    lines = ["# Values of the chart", "", *_table("value", "default", "meaning")]
    lines += _value_rows(Chart(), "")
    return "\n".join(lines) + "\n"


def _value_rows(model: BaseModel, prefix: str) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        if field.exclude:
            continue
        value, path = _value(model, name), f"{prefix}{field.alias}"
        if isinstance(value, BaseModel):
            yield from _value_rows(value, f"{path}.")
        else:
            description = " ".join((field.description or "").split())
            yield f"| `{path}` | `{json.dumps(value)}` | {description} |"


def _page(resource: Resource) -> str:
    scope = "namespace" if resource.namespaced else "cluster"
    schema = structural(resource.model)
    lines = [
        f"# {resource.kind}",
        "",
        schema["description"],
        "",
        f"`{GROUP}/{VERSION}`, scope: {scope}. The same texts: "
        f"`kubectl explain {resource.short_name}.spec`.",
    ]
    for part in schema["properties"]:
        lines += ["", f"## {part}", "", *_table("field", "type", "default", "range", "meaning")]
        lines += _rows(schema["properties"][part], "")
        if rules := list(_all_rules(schema["properties"][part])):
            lines += ["", "Rules:", "", *(f"- {rule}" for rule in rules)]
    return "\n".join(lines) + "\n"


def _rows(node: Mapping[str, Any], prefix: str) -> Iterator[str]:
    required = node.get("required", ())
    for name, child in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        default = "required" if name in required else _default_cell(child.get("default"))
        cells = (f"`{path}`", _type(child), default, _range(child), child.get("description", ""))
        yield f"| {' | '.join(cells)} |"
        yield from _rows(child, f"{path}.")
        if "items" in child:
            yield from _rows(child["items"], f"{path}[].")


def _type(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return " or ".join(f"`{value}`" for value in node["enum"])
    if node["type"] == "array":
        return f"list of {_type(node['items'])}"
    if "additionalProperties" in node:
        return f"map of {_type(node['additionalProperties'])}s"
    return str(node["type"])


def _range(node: Mapping[str, Any]) -> str:
    """Return what the API server accepts of a number, list, map, text or duration."""
    durations = (rule["message"] for rule in node.get("x-kubernetes-validations", ()))
    if node["type"] == "string" and (text := next(durations, "")):
        limits = text.removeprefix("must be ").removeprefix("a duration of ")
        return limits.partition(", written like ")[0]
    for suffix, unit in (("Items", " items"), ("Properties", " keys"), ("Length", " characters")):
        if (limit := node.get(f"max{suffix}")) is not None:
            return f"{limit:,}{unit}"
    limits = (node.get("minimum"), node.get("maximum"))
    return "" if None in limits or "enum" in node else "{:,} to {:,}".format(*limits)


def _default_cell(default: Any) -> str:
    return "" if default in (None, [], ()) else f"`{default}`"


def _all_rules(node: Mapping[str, Any]) -> Iterator[str]:
    if node["type"] != "string":
        yield from (rule["message"] for rule in node.get("x-kubernetes-validations", ()))
    children = [*node.get("properties", {}).values(), node.get("items")]
    for child in filter(None, children):
        yield from _all_rules(child)


def _table(*columns: str) -> list[str]:
    """The head of a table."""
    return [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]


# Reasons of no condition have no status.
_WITHOUT_STATUS = (
    reasons.ScalingReason,
    reasons.VariantReason,
    reasons.EventReason,
    reasons.EnergyKnown,
    budget_reasons.LimitAction,
)


def _reasons() -> str:
    titles = {
        reasons.Accepted: "InferenceService: condition Accepted",
        reasons.PlacementReason: "InferenceService: condition Placed",
        reasons.Progressing: "InferenceService: condition Progressing",
        reasons.Ready: "InferenceService: condition Ready",
        reasons.UpdateAvailable: "InferenceService: condition UpdateAvailable",
        reasons.SpeedAsPredicted: "InferenceService: condition SpeedAsPredicted",
        reasons.Speculating: "InferenceService: condition Speculating",
        reasons.SLOMet: "InferenceService: condition SLOMet",
        reasons.LoadBalanced: "InferenceService: condition LoadBalanced",
        reasons.EnergyKnown: "InferenceService: status.energy.source",
        reasons.RevisionReason: "InferenceService: status.model.reason",
        reasons.PrecisionReason: "InferenceService: status.precisions[].reason",
        reasons.ScalingReason: "InferenceService: status.scaling.reason",
        reasons.VariantReason: "InferenceService: status.variants[].reason",
        reasons.EventReason: "Events without a condition",
        pool_reasons.PoolAccepted: "AcceleratorPool: condition Accepted",
        pool_reasons.Discovered: "AcceleratorPool: condition Discovered",
        pool_reasons.NodesProvisioned: "AcceleratorPool: condition NodesProvisioned",
        pool_reasons.LayoutReady: "AcceleratorPool: condition LayoutReady",
        batch_reasons.BatchAccepted: "BatchInference: condition Accepted",
        batch_reasons.BatchRunning: "BatchInference: condition Running",
        batch_reasons.BatchComplete: "BatchInference: condition Complete",
        gate_reasons.GateAccepted: "QualityGate: condition Accepted",
        gate_reasons.GateOutcome: (
            "QualityGate: status.verdicts[].reason; InferenceService: status.rollouts[].reason"
        ),
        provider_reasons.ProviderAccepted: "ModelProvider: condition Accepted",
        route_reasons.RouteAccepted: "ModelRoute: condition Accepted",
        route_reasons.TargetState: "ModelRoute: status.targets[].reason",
        budget_reasons.BudgetAccepted: "TenantBudget: condition Accepted",
        budget_reasons.Enforcing: "TenantBudget: condition Enforcing",
        budget_reasons.LimitAction: "TenantBudget: status.limits[].actions, and Events",
        budget_reasons.WithinBudget: (
            "TenantBudget: condition WithinBudget; InferenceService: status.tenant.reason"
        ),
    }
    lines = [
        "# Reasons",
        "",
        "Conditions, labels of metrics, logs and "
        "[Events](../tasks/explain.md#the-history-of-an-object) use the same names.",
    ]
    for kind, title in titles.items():
        lines += ["", f"## {title}", "", str(kind.__doc__), ""]
        lines += _table("reason", "status", "meaning")
        meanings = member_texts(kind)
        for reason in kind:
            status = "" if kind in _WITHOUT_STATUS else str(reason.is_true)
            status = status if reason.is_known else "Unknown"
            lines.append(f"| `{reason}` | {status} | {meanings[reason.name]} |")
    return "\n".join(lines) + "\n"


_OPERATOR_PAGE = (
    "`/metrics` on port 8080: by TLS, for holders of a token who may `get` this path "
    "([Prometheus](../tasks/install.md#prometheus))."
)

_GATEWAY_PAGE = (
    "`/metrics` of each gateway pod, like that of the operator. 500 pairs of tenant and service "
    "have series of their own: those with requests at engines, the latest of each tenant, and the "
    "tenant with most makes room. All else of a tenant has the service `(other)`, and what names "
    "no model the empty one."
)


def _metrics() -> str:
    lines = [
        "# Metrics",
        "",
        "Names as queries use them; a histogram has the series `_bucket`, `_sum` and `_count`.",
        "",
    ]
    lines += ["## The operator", "", _OPERATOR_PAGE, ""]
    telemetry, gateway = Telemetry(), GatewayMetrics()
    lines += _metric_rows(telemetry.families(), telemetry.registry)
    lines += ["", "## The gateway", "", _GATEWAY_PAGE, ""]
    lines += _metric_rows(gateway.families(), gateway.registry)
    lines += ["", "## The batch runner", "", "`/metrics` on port 8001 of an attempt's pod.", ""]
    batch_registry = metrics_registry(Progress(attempt=1))
    lines += _metric_rows(batch_registry.collect(), batch_registry)
    return "\n".join(lines) + "\n"


def _metric_rows(families: Iterable[Metric], registry: CollectorRegistry) -> Iterator[str]:
    yield from _table("metric", "type", "labels", "meaning")
    for family in sorted(families, key=lambda family: family.name):
        # Before a sample there is, the metric or the family of a collector knows its labels.
        metric = registry._names_to_collectors.get(family.name)
        names = (
            getattr(metric, "_labelnames", None)
            or getattr(family, "_labelnames", None)
            or dict.fromkeys(
                name for sample in family.samples for name in sample.labels if name != "le"
            )
        )
        labels = ", ".join(f"`{name}`" for name in names)
        # The client adds the suffix of a counter itself.
        name = family.name + ("_total" if family.type == "counter" else "")
        yield f"| `{name}` | {family.type} | {labels} | {family.documentation} |"


def main() -> None:
    """Write, or with --check compare."""
    checking = "--check" in sys.argv[1:]
    different = []
    for name, content in generated().items():
        path = ROOT / name
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            different.append(name)
            if not checking:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
    if checking and different:
        sys.exit(f"not as generated: {', '.join(different)}; run `make generate`, look at the diff")
    print(f"{len(different)} files written" if not checking else "generated files are in place")


if __name__ == "__main__":
    main()
