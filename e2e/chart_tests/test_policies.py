"""The operator may change a few fields of pods and nodes, whatever RBAC lets it reach."""

import json

import pytest

from chart_tests.release import OPERATOR, Release
from demo.cluster import NAMESPACE, Json
from tessera.resources.api_resources import PODS
from world.testing import eventually

AS_OPERATOR = ("--as", OPERATOR)
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


async def an_engine_pod(release: Release) -> tuple[str, str]:
    """Return the namespace and the name of a replica that serves."""
    namespace = await release.namespace()
    await release.apply(namespace, "chat", replicas=1)
    await release.wait_for_reason(namespace, "chat", "Ready", "CompletionSucceeded")
    (pod,) = (await release.cluster.api.get(PODS.path(namespace)))["items"]
    return namespace, str(pod["metadata"]["name"])


async def test_of_pods_only_the_gate_and_the_deletion_cost_are_patched(release: Release) -> None:
    await release.install()
    namespace, name = await an_engine_pod(release)
    patch = ("patch", "pod", name, "-n", namespace, *AS_OPERATOR, "-p")
    cost = {"controller.kubernetes.io/pod-deletion-cost": "-7"}
    await release.kubectl(*patch, json.dumps({"metadata": {"annotations": cost}}))
    for change, words in (
        (
            {"metadata": {"annotations": {"other": "x"}}},
            "only the annotation controller.kubernetes.io/pod-deletion-cost",
        ),
        ({"metadata": {"labels": {"tessera.dev/service": "stolen"}}}, "not change labels"),
        (
            {"metadata": {"finalizers": ["tessera.dev/held"]}},
            "not change labels, owners or finalizers",
        ),
        (
            {"spec": {"containers": [{"name": "engine", "image": "evil/image:1"}]}},
            "not change the spec of a pod",
        ),
    ):
        assert words in await release.expect_refusal(*patch, json.dumps(change))
    # kubectl reads a status before it patches it.
    for manifest in (MORE_RIGHTS, MORE_RIGHTS_BINDING):
        await release.cluster.api.apply_manifest(manifest)
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
    patch = ("patch", "node", "a100-0", *AS_OPERATOR, "-p")
    label_patch = json.dumps({"metadata": {"labels": {"tessera.dev/layout": "a"}}})
    assert "Forbidden" in await release.expect_refusal(*patch, label_patch)
    for manifest in (MORE_RIGHTS, MORE_RIGHTS_BINDING):
        await release.cluster.api.apply_manifest(manifest)
    taint = ("taint", "node", "a100-0", "tessera.dev/repartition:NoSchedule")
    await release.kubectl(*taint, *AS_OPERATOR)
    for fine in (
        {"metadata": {"labels": {"tessera.dev/layout": "b", **dict.fromkeys(OF_NVIDIA, "false")}}},
        {"metadata": {"labels": dict.fromkeys(OF_NVIDIA)}},
        {"metadata": {"annotations": {"tessera.dev/plan": "7"}}},
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


@pytest.mark.parametrize("name", ["pods", "nodes"])
async def test_the_api_server_finds_nothing_wrong_with_the_policies(
    release: Release, name: str
) -> None:
    await release.install()
    path = f"{POLICIES}/tessera-operator-{NAMESPACE}-{name}"

    async def status() -> Json:
        policy_status: Json = (await release.cluster.api.get(path)).get("status", {})
        return policy_status

    policy_status = await eventually(
        status, lambda policy_status: policy_status.get("observedGeneration")
    )
    assert policy_status.get("typeChecking", {}).get("expressionWarnings", []) == []
