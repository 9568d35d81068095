"""The Deployments of engines are written by Tessera and by the platform team alone."""

import json
from dataclasses import dataclass

import pytest

from chart_tests.release import Release
from chart_tests.test_policies import (
    AS_OPERATOR,
    EDITOR,
    PLATFORM,
    Trial,
    an_engine_pod,
    bind,
    objects_with_template,
)
from demo.cluster import Json
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import DEPLOYMENTS, HORIZONTAL_POD_AUTOSCALERS, PODS
from world.testing import eventually

HPA_CONTROLLER = ("--as", "system:serviceaccount:kube-system:horizontal-pod-autoscaler")
DEPLOYMENT_CONTROLLER = ("--as", "system:serviceaccount:kube-system:deployment-controller")
RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
ROLLBACK = "deprecated.deployment.rollback.to"


@dataclass(frozen=True, slots=True)
class Engine:
    """The Deployment of a service with one replica, and one of somebody else beside it."""

    release: Release
    namespace: str
    deployment: str

    def scale(self, *options: str) -> tuple[str, ...]:
        """Return the arguments of kubectl scale, in a dry run."""
        target = ("scale", self.deployment, "-n", self.namespace, "--dry-run=server")
        return (*target, *options)

    async def replicas(self) -> int:
        name = self.deployment.partition("/")[2]
        body = await self.release.cluster.api.get(DEPLOYMENTS.path(self.namespace, name))
        return int(body["spec"]["replicas"])


_engines: dict[int, tuple[str, str]] = {}


@pytest.fixture
async def engine(release: Release) -> Engine:
    """Return an engine, the same for all tests: refused writes and dry runs change nothing."""
    await release.install()
    pid = release.cluster.world.pid
    if pid not in _engines:
        namespace, _ = await an_engine_pod(release)
        (deployment,) = (await release.cluster.api.get(DEPLOYMENTS.path(namespace)))["items"]
        name = deployment["metadata"]["name"]
        _engines[pid] = namespace, f"deployment/{name}"
        stranger = next(objects_with_template({}))
        stranger["spec"]["replicas"] = 0
        await release.cluster.api.apply_manifest(
            stranger | {"metadata": {"name": "stranger", "namespace": namespace}}
        )
        await bind(release, EDITOR[1], "edit", namespace)
        for user in (PLATFORM, HPA_CONTROLLER, DEPLOYMENT_CONTROLLER):
            await bind(release, user[1], "cluster-admin")
    return Engine(release, *_engines[pid])


# The rights of a controller do not matter: some clusters give kube-system those of an admin.
@pytest.mark.parametrize("user", [EDITOR, HPA_CONTROLLER, DEPLOYMENT_CONTROLLER])
async def test_no_tenant_and_no_controller_scales_an_engine(
    engine: Engine, user: tuple[str, str]
) -> None:
    trial = Trial(engine.release, engine.namespace, *user)
    words = (
        f"{engine.deployment.replace('d', 'D', 1)}: InferenceService/chat sets its replicas. "
        f"Instead of 3 here, set spec.replicas there (kubectl -n {engine.namespace} scale "
        "tsvc/chat --replicas=3), or spec.scaling.minReplicas and maxReplicas; for an autoscaler, "
        "set spec.scaling.mode External and the InferenceService as its target."
    )
    change: Json = {"spec": {"replicas": 3}}
    await trial.may_not_patch(engine.deployment, change, words)
    await trial.may_not_patch(engine.deployment, change, words, "--subresource=scale")
    # A precondition makes kubectl replace the Scale instead of patching it.
    for options in ((), ("--current-replicas=1",)):
        scale = engine.scale("--replicas=3", *options, *user)
        assert words in await engine.release.expect_refusal(*scale)
    # The API omits a zero.
    none = await engine.release.expect_refusal(*engine.scale("--replicas=0", *user))
    assert "Instead of 0 here" in none
    # The same number is no change.
    await engine.release.kubectl(*engine.scale("--replicas=1", *user))
    await trial.patches(engine.deployment, {"spec": {"replicas": 1}})


async def test_a_real_autoscaler_cannot_scale_an_engine_and_says_why(engine: Engine) -> None:
    """The controller of this world has the group system:masters, and raises to its minimum."""
    api, name = engine.release.cluster.api, engine.deployment.partition("/")[2]
    where = ("-n", engine.namespace, *EDITOR)
    await engine.release.kubectl("autoscale", engine.deployment, "--min=3", "--max=5", *where)

    async def autoscaler_says_why() -> None:
        path = HORIZONTAL_POD_AUTOSCALERS.path(engine.namespace, name)
        conditions = (await api.get(path)).get("status", {}).get("conditions", ())
        able = {each["type"]: each for each in conditions}.get("AbleToScale", {})
        assert (able.get("status"), able.get("reason")) == ("False", "FailedUpdateScale"), able
        assert "set spec.scaling.mode External" in able["message"]

    await eventually(autoscaler_says_why)
    assert await engine.replicas() == 1
    await engine.release.kubectl("delete", "hpa", name, *where)


@pytest.mark.parametrize("user", [EDITOR, HPA_CONTROLLER, DEPLOYMENT_CONTROLLER])
async def test_no_tenant_and_no_controller_changes_what_an_engine_runs(
    engine: Engine, user: tuple[str, str]
) -> None:
    trial = Trial(engine.release, engine.namespace, *user)
    words = (
        "InferenceService/chat sets its spec. Set spec.podTemplate (labels, annotations, env) or "
        "spec.engine (image, version, extraArgs) there."
    )
    containers = [{"name": "engine", "image": "evil/image:1"}]
    for spec in (
        {"template": {"spec": {"containers": containers}}},
        {"template": {"metadata": {"annotations": {"a": "b"}}}},
        {"paused": True},
        {"strategy": {"rollingUpdate": {"maxUnavailable": 1}}},
    ):
        await trial.may_not_patch(engine.deployment, {"spec": spec}, words)
    # The deployment controller would write an older template for whoever sets it.
    rollback: Json = {"metadata": {"annotations": {ROLLBACK: "1"}}}
    await trial.may_not_patch(engine.deployment, rollback, words)
    where = ("-n", engine.namespace, *user)
    image = ("set", "image", engine.deployment, "engine=evil/image:1", "--dry-run=server")
    assert words in await engine.release.expect_refusal(*image, *where)
    restart = await engine.release.expect_refusal("rollout", "restart", engine.deployment, *where)
    assert f"set {RESTARTED_AT} in spec.podTemplate.annotations there" in restart


async def test_the_operator_and_the_platform_team_write_engines(engine: Engine) -> None:
    annotations: Json = {"metadata": {"annotations": {RESTARTED_AT: "2026-01-01T00:00:00Z"}}}
    for user in (AS_OPERATOR, PLATFORM, ()):
        trial = Trial(engine.release, engine.namespace, *user)
        await trial.patches(engine.deployment, {"spec": {"replicas": 3}})
        await trial.patches(engine.deployment, {"spec": {"template": annotations}})
    # Without an operator this is the way out; the operator itself needs no right to it.
    for user in (PLATFORM, ()):
        await engine.release.kubectl(*engine.scale("--replicas=0", *user))


async def test_metadata_and_status_of_engines_are_written_as_before(engine: Engine) -> None:
    labels: Json = {"metadata": {"labels": {"team": "a"}, "annotations": {"a": "b"}}}
    for user in (EDITOR, HPA_CONTROLLER, DEPLOYMENT_CONTROLLER):
        await Trial(engine.release, engine.namespace, *user).patches(engine.deployment, labels)
    controller = Trial(engine.release, engine.namespace, *DEPLOYMENT_CONTROLLER)
    revision: Json = {"metadata": {"annotations": {"deployment.kubernetes.io/revision": "7"}}}
    await controller.patches(engine.deployment, revision)
    status: Json = {"status": {"availableReplicas": 0, "unavailableReplicas": 1}}
    await controller.patches(engine.deployment, status, "--subresource=status")
    collector: Json = {"metadata": {"ownerReferences": None, "finalizers": None}}
    await controller.patches(engine.deployment, collector)


async def test_deployments_of_others_are_scaled_and_changed_by_whoever_may(engine: Engine) -> None:
    for user in (EDITOR, HPA_CONTROLLER):
        trial = Trial(engine.release, engine.namespace, *user)
        for spec in ({"replicas": 2}, {"paused": True}, {"minReadySeconds": 5}):
            await trial.patches("deployment/stranger", {"spec": spec})
        await trial.patches("deployment/stranger", {"spec": {"replicas": 2}}, "--subresource=scale")
        scale = ("scale", "deployment/stranger", "--replicas=2", "--dry-run=server")
        await engine.release.kubectl(*scale, "-n", engine.namespace, *user)


async def test_a_restart_goes_by_the_service(engine: Engine) -> None:
    api = engine.release.cluster.api
    (before,) = (await api.get(PODS.path(engine.namespace)))["items"]
    annotations = {RESTARTED_AT: "2026-11-27T09:00:00Z"}
    change = {"spec": {"podTemplate": {"annotations": annotations}}}
    await api.patch(INFERENCE_SERVICES.path(engine.namespace, "chat"), change)

    async def replica_is_another() -> None:
        pods = (await api.get(PODS.path(engine.namespace)))["items"]
        assert before["metadata"]["name"] not in {pod["metadata"]["name"] for pod in pods}
        assert len(pods) == 1
        (pod,) = pods
        assert pod["metadata"].get("annotations", {}).items() >= annotations.items()
        statuses = {each["type"]: each["status"] for each in pod["status"]["conditions"]}
        assert statuses["Ready"] == "True", json.dumps(pod["status"])

    await eventually(replica_is_another)
