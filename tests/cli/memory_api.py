"""An API server for commands, over the objects of an in-memory cluster."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera.api.api_resource import ApiResource
from tessera.api.schema import crd
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.kinds.kinds import KINDS as RESOURCES
from tessera.domain.names import SERVING_GATE
from tessera.domain.observed.snapshot import ProbeResult, Ref
from tessera.ports import ClusterError
from tessera.resources.api_resources import CONFIG_MAPS, KINDS, POD_MONITORS, PODS
from tessera.resources.defaults import newest_version
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW
from tests.memory_cluster import MemoryCluster
from tests.memory_operator import VARIANT, MemoryOperator, add_pool_and_node, replica_of

Json = dict[str, Any]
SECRET = "do-not-tell-anybody"  # noqa: S105 - no output may contain it
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_LEASE = "/apis/coordination.k8s.io/v1/namespaces/tessera-system/leases/tessera-operator"
_POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
_OPERATOR = "/apis/apps/v1/namespaces/tessera-system/deployments/tessera-operator"
_MONITOR = POD_MONITORS.path("tessera-system", "tessera-operator")
DENIED = "--max-num-seqs; it is set by spec.slo"


@dataclass
class MemoryApi:
    """Answers requests of commands; `pages` are served besides the cluster's objects."""

    cluster: MemoryCluster
    pages: dict[str, Json] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    """Plurals that may not be listed in all namespaces, patched or created."""
    hidden: set[str] = field(default_factory=set)
    """Plurals that may not be listed anywhere."""
    refused: set[str] = field(default_factory=set)
    """Paths of objects that may not be read."""
    unknown: set[str] = field(default_factory=lambda: {POD_MONITORS.plural})
    """Plurals that the API server does not have."""
    problem: str = ""
    """Why the API server does not answer."""
    status: int = 0
    """The HTTP status of every response; 0 for the usual ones."""
    webhook: bool = True
    sent: list[tuple[str, str, Any]] = field(default_factory=list)

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        del content_type
        if self.problem:
            raise ClusterError(f"{method} {path}: the API server did not answer: {self.problem}")
        if self.status:
            return self.status, {"message": "so it is"}
        if method == "GET":
            return self._get(path, query or {})
        self.sent.append((method, path, body))
        if path.endswith("selfsubjectaccessreviews"):
            resource = (body or {})["spec"]["resourceAttributes"]["resource"]
            return 201, {"status": {"allowed": resource not in self.denied | self.hidden}}
        if INFERENCE_SERVICES.plural in self.denied | self.hidden:
            return 403, {"message": "forbidden"}
        if method == "POST":
            return (422, {"message": DENIED}) if self.webhook else (201, body)
        return 200, body

    def _get(self, path: str, query: Mapping[str, str]) -> tuple[int, Any]:
        if path in self.refused:
            return 403, {"message": "forbidden"}
        if path in self.pages:
            return 200, self.pages[path]
        for kind in KINDS:
            namespace = _namespace_of(kind, path)
            if namespace is None:
                continue
            if kind.plural in self.unknown:
                break
            if kind.plural in self.hidden or (kind.plural in self.denied and not namespace):
                return 403, {"message": "forbidden"}
            items = [body for body in self._all(kind) if namespace in ("", _namespace(body))]
            selector = query.get("labelSelector", "")
            return 200, {
                "items": [body for body in items if _has_label(body, selector)],
                "metadata": {},
            }
        page = next((body for body, object_path in self._objects() if object_path == path), None)
        return (200, page) if page is not None else (404, {"message": "not found"})

    def _all(self, kind: ApiResource) -> Iterator[Json]:
        cluster = self.cluster
        yield from (cluster.wire_body(key) for key in cluster.objects if key.plural == kind.plural)
        yield from (
            body
            for path, body in self.pages.items()
            if f"/{kind.plural}/" in path and path.startswith(kind.path(None).rpartition("/")[0])
        )

    def _objects(self) -> Iterator[tuple[Json, str]]:
        kinds = {kind.plural: kind for kind in (*KINDS, CONFIG_MAPS)}
        for key, body in self.cluster.objects.items():
            yield body, kinds[key.plural].path(key.namespace, key.name)


def _namespace_of(kind: ApiResource, path: str) -> str | None:
    """Empty for the path of all objects of a kind; None for any other path."""
    if path == kind.path(None):
        return ""
    head, tail = kind.path("*").split("*") if kind.namespaced else ("none", "none")
    if path.startswith(head) and path.endswith(tail):
        namespace = path.removeprefix(head).removesuffix(tail)
        return namespace if "/" not in namespace else None
    return None


def _namespace(body: Json) -> str:
    return str(body["metadata"].get("namespace", ""))


def _has_label(body: Json, selector: str) -> bool:
    name, _, value = selector.partition("=")
    return not selector or body["metadata"].get("labels", {}).get(name) == value


async def a_served_cluster(**spec: Any) -> tuple[MemoryOperator, MemoryApi]:
    """Return an operator and its API: an A100 in slices, a service with two probed replicas."""
    operator = MemoryOperator()
    # The commands replay a plan by the newest rules.
    operator.builder = newest_version()
    operator.restart()
    add_pool_and_node(operator)
    operator.serve(**spec)
    await operator.reconcile()
    for index in range(2):
        operator.cluster.put(PODS, a_pod_body(f"chat-{index}"))
    await operator.reconcile()
    operator.observations.answers.probe_results[Ref("team-a", "chat")] = ProbeResult(at=NOW)
    await operator.reconcile()
    return operator, MemoryApi(operator.cluster, pages=pages())


def a_pod_body(name: str, service: str = "chat") -> Json:
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-11-20T11:58:00Z"}
        for kind in ("PodScheduled", "ContainersReady", "Ready", SERVING_GATE)
    ]
    env = [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        {"name": "PASSWORD", "value": SECRET},
    ]
    container = {
        "name": "engine",
        "args": ["--api-key", SECRET],
        "env": env,
        "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}},
    }
    deployment = ObjectKey("deployments", "team-a", f"{service}-{VARIANT}")
    return {
        "metadata": {
            **replica_of(deployment, name, service)["metadata"],
            "creationTimestamp": "2026-11-20T11:57:00Z",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": SECRET},
        },
        "spec": {"nodeName": "a100-0", "containers": [container]},
        "status": {"phase": "Running", "podIP": "127.10.0.5", "conditions": conditions},
    }


def pages(version: str = "0.1.0") -> dict[str, Json]:
    """A cluster with the CRDs, a leading operator and its policies for Deployments."""
    crds = {f"{_CRDS}/{crd(kind)['metadata']['name']}": crd(kind) for kind in RESOURCES}
    labels = {"app.kubernetes.io/name": "tessera-operator", "app.kubernetes.io/version": version}
    env = [{"name": "TESSERA_PROMETHEUS_URL", "value": "http://prometheus.monitoring.svc:9090"}]
    operator = {
        "metadata": {"name": "tessera-operator", "namespace": "tessera-system", "labels": labels},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [{"env": env}]}}},
        "status": {"availableReplicas": 1},
    }
    lease = {"spec": {"holderIdentity": "operator-0", "renewTime": "2026-11-20T11:59:59.000000Z"}}
    version_page = {"major": "1", "minor": "36", "gitVersion": "v1.36.3"}
    policies: dict[str, Json] = {}
    for name in ("deployments", "scale"):
        policies[policy_path(name)] = {"spec": {"failurePolicy": "Fail"}}
        policies[binding_path(name)] = {"spec": {"validationActions": ["Deny"]}}
    monitor_labels = {"app.kubernetes.io/part-of": "tessera", **labels}
    monitor = {
        "metadata": {
            "name": "tessera-operator",
            "namespace": "tessera-system",
            "labels": monitor_labels,
        }
    }
    objects: dict[str, Json] = {_OPERATOR: operator, _LEASE: lease, _MONITOR: monitor}
    return {"/version": version_page, **objects, **policies, **crds}


def operator_of(api: MemoryApi) -> Json:
    return api.pages[_OPERATOR]


def lease_of(api: MemoryApi) -> Json:
    return api.pages[_LEASE]


def crd_path(name: str) -> str:
    return f"{_CRDS}/{name}.tessera.dev"


def policy_path(name: str) -> str:
    return f"{_POLICIES}/tessera-operator-tessera-system-{name}"


def binding_path(name: str) -> str:
    return policy_path(name).replace("policies/", "policybindings/")
