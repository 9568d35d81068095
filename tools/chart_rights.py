"""The rights of the chart's accounts, and what their pods hold, as Helm renders them."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel
from typing_extensions import override

from chart_values import Chart
from tessera.domain.batch.names import BATCH_ACCOUNT
from world.binaries import ensure

Json = dict[str, Any]

RELEASE = "tessera-system"
# Where a right applies, beside single namespaces.
PLACES = CLUSTER, POD, NODE, RUNNER_NAMESPACE = (
    "the cluster",
    "its pod",
    "its node",
    "its namespace",
)
# Beside all switches: what they need, and Secrets that pods hold.
_VALUES = (
    "gateway.tls.secretName=gateway-tls",
    "gateway.database.secretName=gateway-database",
    "gateway.ingress.host=models.example.org",
    "gateway.httpRoute.parentRefs[0].name=public",
    "prometheus.secretName=prometheus-access",
    # It only takes a right away.
    "webhook.certManager.enabled=false",
)
_APIS = "monitoring.coreos.com/v1/PodMonitor"
# What Kubernetes' own roles allow.
_BUILT_IN: Mapping[str, Sequence[Json]] = {
    "system:auth-delegator": [
        {"apiGroups": [group], "resources": [resource], "verbs": ["create"]}
        for group, resource in (
            ("authentication.k8s.io", "tokenreviews"),
            ("authorization.k8s.io", "subjectaccessreviews"),
        )
    ]
}
# A role that the operator binds in the namespaces of batches.
_RUNNER_ROLE = f"tessera-batch-runner-{RELEASE}"


class Right(NamedTuple):
    """Something that an account may do, or that its pods hold."""

    account: str
    where: str
    verbs: str
    resource: str

    @override
    def __str__(self) -> str:
        return f"{self.account} may {self.verbs} {self.resource} in {self.where}"


def render(chart: Path) -> list[Json]:
    """Return the objects of a chart with everything on."""
    values = yaml.safe_dump(_switched_on(Chart()))
    options = [option for value in _VALUES for option in ("--set", value)]
    helm = ensure(lambda line: print(line, file=sys.stderr), ("helm",)) / "helm"
    done = subprocess.run(
        [
            *(str(helm), "template", "tessera", str(chart), "--namespace", RELEASE),
            *("--api-versions", _APIS, "--values", "-", *options),
        ],
        input=values.encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return [body for body in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if body]


def render_with(chart: Path, files: Mapping[str, str]) -> list[Json]:
    """Return the objects of a chart some files of which are others, by their paths within it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "chart"
        shutil.copytree(chart, copy)
        for path, text in files.items():
            (copy / path).write_text(text, encoding="utf-8")
        return render(copy)


def _switched_on(values: BaseModel) -> Json:
    """Return values with each switch on that is off by default."""
    on: Json = {}
    for name, field in type(values).model_fields.items():
        value = getattr(values, name)
        if isinstance(value, BaseModel):
            on[str(field.alias)] = _switched_on(value)
        elif value is False:
            on[str(field.alias)] = True
    return on


def granted_rights(objects: Sequence[Json]) -> Iterator[Right]:
    """Yield each right of each account, by roles and by what pods hold."""
    roles = [body for body in objects if body["kind"] in ("Role", "ClusterRole")]
    rules: dict[tuple[str, str], Sequence[Json]] = {
        (_scope(body), body["metadata"]["name"]): body.get("rules") or () for body in roles
    }
    unbound = dict(rules)
    yield from _allowed(BATCH_ACCOUNT, RUNNER_NAMESPACE, unbound.pop((CLUSTER, _RUNNER_ROLE)))
    rules |= {(CLUSTER, name): built_in for name, built_in in _BUILT_IN.items()}
    for body in objects:
        if body["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            role = body["roleRef"]
            key = CLUSTER if role["kind"] == "ClusterRole" else _scope(body), role["name"]
            unbound.pop(key, None)
            for subject in body["subjects"]:
                if key in rules:
                    yield from _allowed(_account(subject), _scope(body), rules[key])
                else:
                    yield Right(_account(subject), _scope(body), "all of", f"role {role['name']}")
        for pod in _pods(body):
            yield from _pod_rights(pod)
    for body in roles:
        scope, name = _scope(body), body["metadata"]["name"]
        if "aggregationRule" in body:
            yield Right(f"who has the role {name}", scope, "all of", "roles with a label")
        if any("/aggregate-to-" in label for label in body["metadata"].get("labels", ())):
            unbound[scope, name] = rules[scope, name]
    # Others may bind it, or take its rules over by a label.
    for (scope, name), role_rules in unbound.items():
        yield from _allowed(f"who has the role {name}", scope, role_rules)


def _account(subject: Json) -> str:
    """Return the name of an account of the release, and of others also what they are."""
    name, namespace = subject["name"], subject.get("namespace", "")
    if (subject["kind"], namespace) == ("ServiceAccount", RELEASE):
        return str(name)
    return " ".join(filter(None, (subject["kind"], namespace, name)))


def _pods(body: Any) -> Iterator[Json]:
    """Yield each spec of a pod within an object."""
    if isinstance(body, dict):
        if isinstance(body.get("containers"), list):
            yield body
        for part in body.values():
            yield from _pods(part)


def _scope(body: Json) -> str:
    return str(body["metadata"].get("namespace", CLUSTER))


def _allowed(account: str, where: str, rules: Sequence[Json]) -> Iterator[Right]:
    for rule in rules:
        verbs = ", ".join(rule["verbs"])
        names = "".join(f" {name}" for name in rule.get("resourceNames", ()))
        for path in rule.get("nonResourceURLs", ()):
            yield Right(account, where, verbs, path)
        for group in rule.get("apiGroups", ()):
            for resource in rule["resources"]:
                kind = ".".join(filter(None, (resource, group)))
                yield Right(account, where, verbs, f"{kind}{names}")


def _pod_rights(pod: Json) -> Iterator[Right]:
    """Yield what a pod holds beside the rights of its account."""
    account = pod.get("serviceAccountName", "default")
    for name in filter(pod.get, ("hostNetwork", "hostPID", "hostIPC")):
        yield Right(account, NODE, "share", name)
    for volume in pod.get("volumes", ()):
        if "hostPath" in volume:
            yield Right(account, NODE, "mount", volume["hostPath"]["path"])
        for source in (volume, *volume.get("projected", {}).get("sources", ())):
            for name in _secret_of(source):
                yield Right(account, POD, "read", name)
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        security = container.get("securityContext", {})
        added = security.get("capabilities", {}).get("add", ())
        for power in (*filter(security.get, ("privileged",)), *added):
            yield Right(account, NODE, "run as", power)
        variables = (variable.get("valueFrom", {}) for variable in container.get("env", ()))
        for source in (*container.get("envFrom", ()), *variables):
            for name in _secret_of(source):
                yield Right(account, POD, "read", name)


def _secret_of(source: Json) -> Iterator[str]:
    """Yield the Secret or token that a volume or a variable is made from."""
    for kind in ("secret", "secretRef", "secretKeyRef"):
        if (secret := source.get(kind)) is not None:
            keys = [item["key"] for item in secret.get("items", (secret,)) if "key" in item]
            yield " ".join(("secret", secret.get("secretName") or secret["name"], *keys))
    if (token := source.get("serviceAccountToken")) is not None:
        yield f"token for {token['audience']}"
