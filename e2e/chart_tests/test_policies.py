"""What operator, users and nodes may write is limited, whatever RBAC lets them reach."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart_tests.release import OPERATOR, Release
from demo.cluster import NAMESPACE, Json
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import prepull_namespace
from tessera.resources.api_resources import DEPLOYMENTS, PODS, SERVICES
from world.testing import eventually

MANIFESTS = Path(__file__).parents[2] / "tests" / "golden"
AS_OPERATOR = ("--as", OPERATOR)
MANAGED = {"app.kubernetes.io/managed-by": "tessera"}
GATE = "tessera.dev/serving"
# Labels of the GPU Operator that start, pause and configure its own components.
OF_NVIDIA = (
    "nvidia.com/mig.config",
    "nvidia.com/mig.config.state",
    "nvidia.com/gpu.deploy.device-plugin",
    "nvidia.com/gpu.deploy.gpu-feature-discovery",
    "nvidia.com/gpu.deploy.mig-manager",
)
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
MORE_RIGHTS: Json = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "test-more-rights"},
    "rules": [
        {
            "apiGroups": [""],
            "resources": ["nodes", "nodes/status", "pods/status"],
            "verbs": ["get", "patch", "delete"],
        }
    ],
}
MORE_RIGHTS_BINDING: Json = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "test-more-rights"},
    "roleRef": {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "test-more-rights",
    },
    "subjects": [{"kind": "ServiceAccount", "name": "tessera-operator", "namespace": NAMESPACE}],
}


async def grant_more_rights(release: Release) -> None:
    for manifest in (MORE_RIGHTS, MORE_RIGHTS_BINDING):
        await release.cluster.api.apply_manifest(manifest)
    await release.wait_for_right("delete", "/nodes")


async def an_engine_pod(release: Release) -> tuple[str, str]:
    """Return the namespace and the name of a replica that serves."""
    namespace = await release.namespace()
    await release.apply(namespace, "chat", replicas=1)
    await release.wait_for_reason(namespace, "chat", "Ready", "CompletionSucceeded")
    (pod,) = (await release.cluster.api.get(PODS.path(namespace)))["items"]
    return namespace, str(pod["metadata"]["name"])


_engines: dict[int, tuple[str, str]] = {}


async def the_engine_pod(release: Release) -> tuple[str, str]:
    """Return a replica that serves, the same for all tests that write in dry runs only."""
    pid = release.cluster.world.pid
    if pid not in _engines:
        _engines[pid] = await an_engine_pod(release)
    return _engines[pid]


async def test_of_pods_only_the_gate_and_the_marks_of_those_that_leave_are_patched(
    release: Release,
) -> None:
    await release.install()
    namespace, name = await an_engine_pod(release)
    patch = ("patch", "pod", name, "-n", namespace, *AS_OPERATOR, "-p")
    cost = {"controller.kubernetes.io/pod-deletion-cost": "-7"}
    leaving = {"tessera.dev/leaving": "true"}
    marks = {"metadata": {"annotations": cost, "labels": leaving}}
    await release.kubectl(*patch, json.dumps(marks))
    for change, words in (
        (
            {"metadata": {"annotations": {"other": "x"}}},
            "only the annotation controller.kubernetes.io/pod-deletion-cost",
        ),
        (
            {"metadata": {"labels": {"tessera.dev/service": "stolen"}}},
            "only the label tessera.dev/leaving",
        ),
        ({"metadata": {"finalizers": ["tessera.dev/held"]}}, "not change owners or finalizers"),
        (
            {"spec": {"containers": [{"name": "engine", "image": "evil/image:1"}]}},
            "not change the spec of a pod",
        ),
    ):
        assert words in await release.expect_refusal(*patch, json.dumps(change))
    # kubectl reads a status before it patches it.
    await grant_more_rights(release)
    status = (*patch[:-1], "--subresource=status", "-p")
    gate = {"status": {"conditions": [{"type": GATE, "status": "True", "reason": "Serving"}]}}
    await release.kubectl(*status, json.dumps(gate))
    for kind in ("Ready", "PodScheduled"):
        change = {"status": {"conditions": [{"type": kind, "status": "False"}]}}
        message = await release.expect_refusal(*status, json.dumps(change))
        assert f"only the condition {GATE}" in message
    assert f"only the condition {GATE}" in await release.expect_refusal(
        *status, '{"status": {"phase": "Failed"}}'
    )
    # Everybody else is left alone.
    await release.kubectl("annotate", "pod", name, "-n", namespace, "other=x")
    await release.kubectl("delete", "namespace", namespace)


async def test_of_nodes_only_our_labels_and_taints_are_patched_even_with_the_right_to_patch(
    release: Release,
) -> None:
    await release.install()
    await release.scale(0)  # it would take the taint away itself
    labels = (await release.cluster.api.get("/api/v1/nodes/a100-0"))["metadata"]["labels"]
    for manifest in (MORE_RIGHTS_BINDING, MORE_RIGHTS):
        if await release.cluster.api.exists(path := await release.cluster.api.path_of(manifest)):
            await release.cluster.api.delete(path)
    await release.wait_for_right("delete", "/nodes", allowed=False)
    patch = ("patch", "node", "a100-0", *AS_OPERATOR, "-p")
    label_patch = json.dumps({"metadata": {"labels": {"tessera.dev/layout": "a"}}})
    assert "Forbidden" in await release.expect_refusal(*patch, label_patch)
    await grant_more_rights(release)
    taint = ("taint", "node", "a100-0", "tessera.dev/repartition:NoSchedule")
    await release.kubectl(*taint, *AS_OPERATOR)
    for fine in (
        {"metadata": {"labels": {"tessera.dev/layout": "b", **dict.fromkeys(OF_NVIDIA, "false")}}},
        {"metadata": {"labels": dict.fromkeys(OF_NVIDIA)}},
        {"metadata": {"annotations": {"tessera.dev/plan": "7"}}},
        {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": "true"}}},
        {"metadata": {"annotations": {"karpenter.sh/do-not-disrupt": None}}},
    ):
        await release.kubectl(*patch, json.dumps(fine))
    await release.kubectl(*taint[:-1], f"{taint[-1]}-", *AS_OPERATOR)
    for change, words in (
        ({"metadata": {"labels": {"team": "stolen"}}}, "labels"),
        ({"metadata": {"labels": {"nvidia.com/gpu.product": None}}}, "labels"),
        ({"metadata": {"labels": {"nvidia.com/gpu.deploy.driver": "false"}}}, "labels"),
        ({"metadata": {"annotations": {"other": "x"}}}, "annotations"),
        ({"spec": {"unschedulable": True}}, "spec"),
        ({"spec": {"taints": [{"key": "other", "effect": "NoExecute"}]}}, "taints"),
    ):
        message = await release.expect_refusal(*patch, json.dumps(change))
        assert "ValidatingAdmissionPolicy" in message
        assert words in message
    assert "not create or delete nodes" in await release.expect_refusal(
        "delete", "node", "a100-0", *AS_OPERATOR
    )
    # Without its labels the node has no device plugin, and the next test no GPUs.
    own = {label: labels.get(label) for label in (*OF_NVIDIA, "tessera.dev/layout")}
    await release.cluster.api.patch("/api/v1/nodes/a100-0", {"metadata": {"labels": own}})


EDITOR = ("--as", "evan")
PLATFORM = ("--as", "paula")
COMPONENT = "app.kubernetes.io/component"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1"


async def bind(release: Release, user: str, role: str, namespace: str | None = None) -> None:
    """Give a user the rights of a ClusterRole, in one namespace or everywhere."""
    scope = f"/namespaces/{namespace}/rolebindings" if namespace else "/clusterrolebindings"
    body: Json = {
        "metadata": {"name": f"test-{user.rpartition(':')[2]}-{namespace or 'everywhere'}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    if not await release.cluster.api.exists(f"{BINDINGS}{scope}/{body['metadata']['name']}"):
        await release.cluster.api.create(f"{BINDINGS}{scope}", body)
    await release.wait_for_right("get", "/pods:status", namespace, user)


def a_copy(body: Json, **changes: Any) -> Json:
    """Return an object of the server as somebody else would create it."""
    meta = {name: body["metadata"].get(name) for name in ("namespace", "labels", "ownerReferences")}
    clone = {
        **{name: copy.deepcopy(body[name]) for name in ("apiVersion", "kind", "spec")},
        "metadata": copy.deepcopy({"name": "copy", **meta}),
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = clone
        for parent in parents:
            place = place[int(parent) if parent.isdigit() else parent]
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return clone


class Trial:
    """Writes in dry runs, which the policies judge like others."""

    def __init__(self, release: Release, namespace: str, *identity: str) -> None:
        self._release, self._namespace, self._identity = release, namespace, identity

    def _command(self, *arguments: str) -> tuple[str, ...]:
        return (*arguments, "-n", self._namespace, "--dry-run=server", *self._identity)

    def _create(self, body: Json) -> tuple[str, ...]:
        path = self._release.cluster.world.folder / "trial.json"
        path.write_text(json.dumps(body))
        return self._command("create", "--validate=false", "-f", str(path))

    async def creates(self, body: Json) -> None:
        await self._release.kubectl(*self._create(body))

    async def may_not_create(self, body: Json, words: str) -> None:
        message = await self._release.expect_refusal(*self._create(body))
        assert words in message, message

    async def patches(self, what: str, change: Json, *options: str) -> None:
        await self._release.kubectl(
            *self._command("patch", what, "-p", json.dumps(change), *options)
        )

    async def may_not_patch(self, what: str, change: Json, words: str, *options: str) -> None:
        message = await self._release.expect_refusal(
            *self._command("patch", what, "-p", json.dumps(change), *options)
        )
        assert words in message, message


def a_pod(labels: Json, **meta: Any) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "decoy", "labels": labels, **meta},
        "spec": {"containers": [{"name": "main", "image": "decoy"}]},
    }


def objects_with_template(labels: Json) -> Iterator[Json]:
    template = {"metadata": {"labels": {"app": "x", **labels}}, "spec": a_pod({})["spec"]}
    selector = {"matchLabels": {"app": "x"}}
    for kind in ("Deployment", "ReplicaSet", "DaemonSet", "StatefulSet"):
        spec: Json = {"selector": selector, "template": template}
        if kind == "StatefulSet":
            spec["serviceName"] = "x"
        yield {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "decoy"}, "spec": spec}
    never = {**template, "spec": {**template["spec"], "restartPolicy": "Never"}}
    job = {"spec": {"template": never}}
    yield {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "decoy"}, **job}
    for job_template in (job, {"metadata": {"labels": labels}, "spec": {"template": never}}):
        yield {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": "decoy"},
            "spec": {"schedule": "@daily", "jobTemplate": job_template},
        }


async def test_no_user_takes_labels_or_owners_off_what_tessera_manages(release: Release) -> None:
    await release.install()
    namespace, name = await the_engine_pod(release)
    await bind(release, EDITOR[1], "edit", namespace)
    await bind(release, PLATFORM[1], "cluster-admin")
    (deployment,) = (await release.cluster.api.get(DEPLOYMENTS.path(namespace)))["items"]
    workload = f"deployment/{deployment['metadata']['name']}"
    replica_sets = f"/apis/apps/v1/namespaces/{namespace}/replicasets"
    (replica_set,) = (await release.cluster.api.get(replica_sets))["items"]
    editor, platform = Trial(release, namespace, *EDITOR), Trial(release, namespace, *PLATFORM)
    pod = f"pod/{name}"
    objects = (pod, workload, f"replicaset/{replica_set['metadata']['name']}", "service/chat")
    for what in objects:
        for label in (COMPONENT, "tessera.dev/service", "app.kubernetes.io/managed-by"):
            for value in (None, "other"):
                relabel: Json = {"metadata": {"labels": {label: value}}}
                await editor.may_not_patch(what, relabel, "Only Tessera sets the labels")
                await platform.patches(what, relabel)
        orphan: Json = {"metadata": {"ownerReferences": None}}
        await editor.may_not_patch(what, orphan, "set the owners")
        await editor.patches(what, {"metadata": {"labels": {"team": "a"}}})
    change: Json = {"spec": {"template": {"metadata": {"labels": {COMPONENT: None}}}}}
    await editor.may_not_patch(objects[2], change, "Only Tessera sets the labels")
    # The spec of the Deployment has a policy of its own, and either may answer first.
    await editor.may_not_patch(workload, change, "denied request")


async def test_no_user_and_no_node_makes_objects_that_pass_for_those_of_tessera(
    release: Release,
) -> None:
    await release.install()
    namespace, name = await the_engine_pod(release)
    await bind(release, EDITOR[1], "edit", namespace)
    pod = await release.cluster.api.get(PODS.path(namespace, name))
    service = await release.cluster.api.get(INFERENCE_SERVICES.path(namespace, "chat"))
    editor = Trial(release, namespace, *EDITOR)
    node = pod["spec"]["nodeName"]
    kubelet = Trial(release, namespace, "--as", f"system:node:{node}", "--as-group", "system:nodes")
    for labels in ({"tessera.dev/service": "chat"}, {"app.kubernetes.io/managed-by": "tessera"}):
        await editor.may_not_create(a_pod(labels), "Only Tessera sets the labels")
        for body in objects_with_template(labels):
            await editor.may_not_create(body, "Only Tessera sets the labels")
        mirror = a_pod(labels, annotations={"kubernetes.io/config.mirror": "x"})
        mirror["spec"]["nodeName"] = node
        await kubelet.may_not_create(mirror, "Only Tessera sets the labels")
    ports = a_copy(await release.cluster.api.get(SERVICES.path(namespace, "chat")))
    ports["spec"] = {"ports": [{"port": 80}], "selector": {"app": "x"}}
    await editor.may_not_create(ports, "Only Tessera sets the labels")
    owner = {
        "apiVersion": service["apiVersion"],
        "kind": service["kind"],
        "name": "chat",
        "uid": service["metadata"]["uid"],
    }
    await editor.may_not_create(a_pod({}, ownerReferences=[owner]), "set the owners")
    await release.cluster.api.apply_manifest(MORE_RIGHTS)
    await bind(release, f"system:node:{node}", "test-more-rights", namespace)
    change: Json = {"metadata": {"labels": {COMPONENT: None}}}
    await kubelet.may_not_patch(
        f"pod/{name}", change, "Only Tessera sets the labels", "--subresource=status"
    )
    await kubelet.patches(f"pod/{name}", {"status": {"message": "x"}}, "--subresource=status")
    # Other software may use the same words.
    helm = {COMPONENT: "engine", "app.kubernetes.io/managed-by": "Helm"}
    await editor.creates(a_pod(helm))
    for body in objects_with_template(helm):
        await editor.creates(body)


async def test_controllers_and_the_garbage_collector_are_not_hindered(release: Release) -> None:
    await release.install()
    namespace, name = await an_engine_pod(release)
    await bind(release, EDITOR[1], "edit", namespace)
    # With `--use-service-account-credentials` each controller has an account of its own.
    for user in (
        "system:kube-controller-manager",
        "system:serviceaccount:kube-system:generic-garbage-collector",
        "system:serviceaccount:kube-system:replicaset-controller",
    ):
        await bind(release, user, "edit", namespace)  # kubectl reads before it patches
        controller = Trial(release, namespace, "--as", user)
        await controller.patches(f"pod/{name}", {"metadata": {"ownerReferences": None}})
    (deployment,) = (await release.cluster.api.get(DEPLOYMENTS.path(namespace)))["items"]
    path = DEPLOYMENTS.path(namespace, deployment["metadata"]["name"])
    # As the platform team, since tenants restart engines by the service.
    await release.kubectl("rollout", "restart", "deployment", "-n", namespace)

    async def deployment_is_rolled_out() -> None:
        status = (await release.cluster.api.get(path)).get("status", {})
        assert status.get("observedGeneration", 0) > 1, status
        assert status.get("replicas") == 1, status

    await eventually(deployment_is_rolled_out)
    await release.kubectl(
        *("delete", "deployment", deployment["metadata"]["name"], "--cascade=orphan"),
        *("-n", namespace, *EDITOR),
    )

    replica_sets = f"/apis/apps/v1/namespaces/{namespace}/replicasets"

    async def successor_has_adopted() -> None:
        successors = (await release.cluster.api.get(DEPLOYMENTS.path(namespace)))["items"]
        uids = {body["metadata"]["uid"] for body in successors}
        assert len(uids - {deployment["metadata"]["uid"]}) == 1
        owners = {
            owner["uid"]
            for replica_set in (await release.cluster.api.get(replica_sets))["items"]
            for owner in replica_set["metadata"].get("ownerReferences", [{"uid": "none"}])
        }
        assert owners == uids

    await eventually(successor_has_adopted)
    await release.kubectl("delete", "namespace", namespace)


CONTAINER = "spec__template__spec__containers__0"
POD = "spec__template__spec"


async def test_the_operator_creates_no_workload_with_more_power_than_an_engine(
    release: Release,
) -> None:
    await release.install()
    namespace, _ = await the_engine_pod(release)
    operator = Trial(release, namespace, *AS_OPERATOR)
    (listed,) = (await release.cluster.api.get(DEPLOYMENTS.path(namespace)))["items"]
    path = DEPLOYMENTS.path(namespace, listed["metadata"]["name"])
    deployment = await release.cluster.api.get(path)
    await operator.creates(a_copy(deployment))
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    refused: list[tuple[str, Json]] = [
        ("an object of tessera.dev controls", {"metadata__ownerReferences": None}),
        ("only with the accounts", {f"{POD}__serviceAccountName": "default"}),
        ("only with the accounts", {f"{POD}__automountServiceAccountToken": None}),
        ("of a node", {f"{POD}__hostNetwork": True}),
        ("of a node", {f"{POD}__hostPID": True}),
        ("of a node", {f"{POD}__nodeName": "a100-0"}),
        ("of a node", {f"{POD}__priorityClassName": "system-node-critical"}),
        ("of a node", {f"{CONTAINER}__ports": [{"containerPort": 80, "hostPort": 80}]}),
        ("only restricted pods", {f"{POD}__securityContext": None}),
        ("only restricted pods", {f"{CONTAINER}__securityContext": None}),
        ("only restricted pods", {f"{CONTAINER}__securityContext": {"privileged": True}}),
        (
            "only restricted pods",
            {f"{CONTAINER}__securityContext__capabilities__add": ["SYS_ADMIN"]},
        ),
        (
            "only restricted pods",
            {f"{POD}__initContainers": [{"name": "init", "image": "x"}]},
        ),
        *(
            ("mount no Secret", {f"{POD}__volumes": [*volumes, {"name": "x", **source}]})
            for source in (
                {"hostPath": {"path": "/"}},
                {"secret": {"secretName": "x"}},
                {"projected": {"sources": [{"secret": {"name": "x"}}]}},
                {"nfs": {"server": "x", "path": "/"}},
            )
        ),
        ("mount no Secret", {f"{CONTAINER}__envFrom": [{"secretRef": {"name": "x"}}]}),
    ]
    for words, changes in refused:
        await operator.may_not_create(a_copy(deployment, **changes), words)
    job = a_copy(deployment, apiVersion="batch/v1", kind="Job")
    job["spec"] = {"template": job["spec"]["template"]}
    job["spec"]["template"]["spec"] |= {"restartPolicy": "Never", "readinessGates": []}
    await operator.creates(job)
    job["spec"]["template"]["spec"]["hostNetwork"] = True
    await operator.may_not_create(job, "of a node")
    prepull = Trial(release, prepull_namespace(NAMESPACE), *AS_OPERATOR)
    daemon_set = a_copy(deployment, kind="DaemonSet", metadata__namespace=None)
    for field in ("replicas", "strategy", "progressDeadlineSeconds"):
        daemon_set["spec"].pop(field, None)
    await prepull.may_not_create(daemon_set, "only with the accounts")
    for field in ("serviceAccountName", "serviceAccount"):
        daemon_set["spec"]["template"]["spec"].pop(field)
    await prepull.creates(daemon_set)


async def test_the_operator_may_create_everything_that_it_builds(release: Release) -> None:
    await release.install()
    namespace = await release.namespace()
    operator = Trial(release, namespace, *AS_OPERATOR)
    prepull = Trial(release, prepull_namespace(NAMESPACE), *AS_OPERATOR)
    created = 0
    for path in sorted(MANIFESTS.glob("*.yaml")):
        text = re.sub(r"(?m)^ *<[\w-]+>$", "", path.read_text())
        for body in filter(lambda body: "kind" in body, yaml.safe_load_all(text)):
            if body["kind"] in ("Deployment", "Job", "DaemonSet", "ReplicaSet"):
                del body["metadata"]["namespace"]
                is_own = body["kind"] in ("DaemonSet", "ReplicaSet")
                await (prepull if is_own else operator).creates(body)
                created += 1
    assert created >= 18
    await release.kubectl("delete", "namespace", namespace)


async def test_the_operator_binds_no_other_role_and_opens_no_service_to_the_outside(
    release: Release,
) -> None:
    await release.install()
    namespace = await release.namespace()
    operator = Trial(release, namespace, *AS_OPERATOR)
    binding: Json = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "tessera-batch"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": f"tessera-batch-runner-{NAMESPACE}",
        },
        "subjects": [{"kind": "ServiceAccount", "name": "tessera-batch", "namespace": namespace}],
    }
    await operator.creates(binding)
    # It has these rights itself, so that RBAC alone would let it pass them on.
    own = {**binding["roleRef"], "name": f"tessera-operator-{NAMESPACE}"}
    everybody = [{"kind": "Group", "name": "system:authenticated"}]
    for change in ({"roleRef": own}, {"subjects": everybody}):
        await operator.may_not_create(binding | change, "only the role of batch runners")
    await operator.may_not_create(
        binding | {"metadata": {"name": "other"}}, "only the names tessera-engine"
    )
    account: Json = {"apiVersion": "v1", "kind": "ServiceAccount"}
    await operator.creates(account | {"metadata": {"name": "tessera-batch"}})
    await operator.may_not_create(
        account | {"metadata": {"name": "other"}}, "only the names tessera-engine"
    )
    home = Trial(release, NAMESPACE, *AS_OPERATOR)
    config: Json = {"apiVersion": "v1", "kind": "ConfigMap"}
    await home.creates(config | {"metadata": {"name": "tessera-mig"}})
    await home.may_not_create(config | {"metadata": {"name": "other"}}, "only the names")
    ports: Json = {"ports": [{"port": 80}]}
    service: Json = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "chat"}}
    await operator.creates(service | {"spec": ports})
    for more in ({"type": "NodePort"}, {"externalIPs": ["192.0.2.7"]}):
        await operator.may_not_create(service | {"spec": ports | more}, "within the cluster")
    await release.kubectl("delete", "namespace", namespace)


async def test_the_operator_changes_and_deletes_nothing_that_it_does_not_manage(
    release: Release,
) -> None:
    await release.install()
    namespace, _ = await the_engine_pod(release)
    meta: Json = {"name": "stranger"}
    selector: Json = {"matchLabels": {"app": "x"}}
    manifests: dict[str, Json] = {
        "apps/v1/Deployment": next(objects_with_template({}))["spec"] | {"replicas": 0},
        "v1/Service": {"ports": [{"port": 80}], "selector": {"app": "x"}},
        "policy/v1/PodDisruptionBudget": {"maxUnavailable": 1, "selector": selector},
    }
    for name, spec in manifests.items():
        version, _, kind = name.rpartition("/")
        body = {"apiVersion": version, "kind": kind, "metadata": meta, "spec": spec}
        await release.cluster.api.apply_manifest(
            body | {"metadata": meta | {"namespace": namespace}}
        )
        where = (f"{kind.lower()}/stranger", "-n", namespace, *AS_OPERATOR, "--dry-run=server")
        for change in ({"spec": {"replicas": 1}}, {"metadata": {"labels": MANAGED}}):
            message = await release.expect_refusal("patch", *where, "-p", json.dumps(change))
            assert "only objects that it manages" in message
        assert "only objects that it manages" in await release.expect_refusal("delete", *where)
    for kind in ("deployment", "service"):
        (name,) = (
            await release.kubectl(
                *("get", kind, "-n", namespace, "-o", "name"),
                *("-l", "app.kubernetes.io/managed-by=tessera"),
            )
        ).split()
        where = (name, "-n", namespace, *AS_OPERATOR, "--dry-run=server")
        await release.kubectl("patch", *where, "-p", '{"metadata": {"annotations": {"a": "b"}}}')
        await release.kubectl("delete", *where)


async def test_of_its_admission_the_operator_patches_the_bundle_alone(release: Release) -> None:
    await release.install()
    name = f"tessera-operator-{NAMESPACE}"
    webhook: Json = {"name": "inferenceservices.tessera.dev"}

    def patch(**changes: Any) -> tuple[str, ...]:
        body = json.dumps({"webhooks": [webhook | changes]})
        kind = "validatingwebhookconfiguration"
        return ("patch", kind, name, *AS_OPERATOR, "--dry-run=server", "-p", body)

    await release.kubectl(*patch(clientConfig={"caBundle": ""}))
    secrets = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["*"],
        "resources": ["secrets"],
    }
    for changes in (
        {"rules": [secrets]},
        {"failurePolicy": "Fail"},
        {"matchConditions": [{"name": "never", "expression": "false"}]},
        {"clientConfig": {"service": {"path": "/other"}}},
        {"clientConfig": {"service": None, "url": "https://192.0.2.7/"}},
        {
            "name": "secrets.tessera.dev",
            "rules": [secrets],
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://192.0.2.7/"},
        },
        {"$patch": "delete"},
    ):
        message = await release.expect_refusal(*patch(**changes))
        assert "only the caBundle of its own admission" in message, changes


@pytest.mark.parametrize(
    "name",
    [
        *("pods", "nodes", "labels", "deployments", "scale"),
        *("workloads", "objects", "children", "admission"),
    ],
)
async def test_the_api_server_finds_nothing_wrong_with_the_policies(
    release: Release, name: str
) -> None:
    await release.install()
    path = f"{POLICIES}/tessera-operator-{NAMESPACE}-{name}"

    async def policy_is_checked() -> Json:
        status: Json = (await release.cluster.api.get(path)).get("status", {})
        assert status.get("observedGeneration"), status
        return status

    status = await eventually(policy_is_checked)
    assert status.get("typeChecking", {}).get("expressionWarnings", []) == []
