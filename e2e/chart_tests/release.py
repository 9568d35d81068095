"""Installs, changes and queries one release of the chart."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.cluster import CHART, EXAMPLES, NAMESPACE, InstalledCluster, Json, StepError
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from world.api import SECRETS, ApiError
from world.testing import PATIENCE_SECONDS, eventually

OPERATOR = f"system:serviceaccount:{NAMESPACE}:tessera-operator"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/tessera-operator"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SELECTOR = "app.kubernetes.io/name=tessera-operator"
SECRET = f"/api/v1/namespaces/{NAMESPACE}/secrets/tessera-webhook"
WEBHOOKS = (
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/"
    f"tessera-operator-{NAMESPACE}"
)
SMALL = "hf://meta-llama/Llama-3.2-1B-Instruct"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Release:
    """One release of the chart on one world."""

    cluster: InstalledCluster

    async def install(self, **values: object) -> None:
        """Install or upgrade to exactly these values, and wait until every process is ready.

        The gateway runs where they enable it.
        A release of these values that nothing changed since is left as it is.
        """
        values_file = self._values_file
        prometheus = {"url": self.cluster.world.prometheus_url}
        defaults = {"prometheus": prometheus, "gateway": {"enabled": False}}
        text = json.dumps({**defaults, **values})
        if values_file.exists() and values_file.read_text() == text:
            await self.wait_until_rolled_out()
            return
        values_file.write_text(text)
        await self.cluster.run(
            *(
                "helm",
                "upgrade",
                "--install",
                "tessera",
                str(CHART),
                "--reset-values",
                "--force-conflicts",
            ),
            *("--namespace", NAMESPACE, "--create-namespace", "--values", str(values_file)),
        )
        await self.wait_until_rolled_out()
        await self.cluster.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))

    @property
    def _values_file(self) -> Path:
        return self.cluster.world.folder / "values.json"

    def forget_values(self) -> None:
        """Let the next installation run Helm, since something else changed the release."""
        self._values_file.unlink(missing_ok=True)

    async def create_secret(self, name: str, **data: str) -> None:
        """Create a Secret in the release's namespace, or leave the one of that name."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        await self.cluster.api.apply(f"/api/v1/namespaces/{NAMESPACE}", namespace, "kubectl")
        meta = {"name": name, "namespace": NAMESPACE}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data}
        await self.cluster.api.apply(SECRETS.path(NAMESPACE, name), secret, "kubectl")

    async def wait_until_rolled_out(self, within: float = PATIENCE_SECONDS) -> None:
        """Wait until the current spec of the operator runs, and no terminating process besides."""

        async def operator_is_rolled_out() -> None:
            pods = (await self.cluster.api.get(PODS, labelSelector=SELECTOR))["items"]
            deployment = await self.cluster.api.get(DEPLOYMENT)
            status, replicas = deployment.get("status", {}), deployment["spec"]["replicas"]
            assert status.get("observedGeneration") == deployment["metadata"]["generation"]
            assert len(pods) == replicas
            counts = ("replicas", "updatedReplicas", "availableReplicas")
            assert [status.get(name, 0) for name in counts] == [replicas] * 3, status

        await eventually(operator_is_rolled_out, within=within)

    async def set_env(self, **env: str) -> None:
        """Change the environment of the operator, as no value of the chart does."""
        self.forget_values()
        variables = [f"{name}={value}" for name, value in env.items()]
        await self.kubectl("set", "env", "deployment/tessera-operator", "-n", NAMESPACE, *variables)
        await self.wait_until_rolled_out()

    async def scale(self, replicas: int) -> None:
        """Change how many processes run."""
        self.forget_values()
        await self.cluster.api.patch(DEPLOYMENT, {"spec": {"replicas": replicas}})
        await self.wait_until_rolled_out()

    async def kubectl(self, *arguments: str) -> str:
        return await self.cluster.run("kubectl", *arguments)

    async def expect_refusal(self, *arguments: str) -> str:
        """Return what kubectl prints when the API server refuses; fail if it does not."""
        try:
            output = await self.cluster.run("kubectl", *arguments)
        except StepError as error:
            return str(error)
        raise AssertionError(f"kubectl {' '.join(arguments)} was not refused: {output}")

    async def namespace(self, name: str | None = None) -> str:
        """Create a namespace; return its name."""
        name = name or f"chart-{next(_numbers)}"
        await self.cluster.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    async def apply(self, namespace: str, name: str, **spec: Any) -> str:
        """Apply an InferenceService with kubectl; return its output, warnings included."""
        path = self.cluster.world.folder / f"{namespace}-{name}.json"
        path.write_text(json.dumps(a_service(namespace, name, **spec)))
        return await self.kubectl("apply", "-f", str(path))

    async def dry_run(self, **spec: Any) -> str:
        """Return how admission rejects a service in a dry run; empty when it admits it."""
        body = a_service("default", f"dry-{next(_numbers)}", **spec)
        try:
            await self.cluster.api.create(INFERENCE_SERVICES.path("default") + "?dryRun=All", body)
        except ApiError as error:
            return str(error)
        return ""

    async def is_allowed(
        self, verb: str, resource: str, namespace: str | None = None, user: str = OPERATOR
    ) -> bool:
        """Ask the API server itself for the rights of a user."""
        group, _, plural = resource.rpartition("/")
        plural, _, sub = plural.partition(":")
        attributes = {"verb": verb, "group": group, "resource": plural, "subresource": sub}
        body: Json = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": {
                "user": user,
                "resourceAttributes": attributes | ({"namespace": namespace} if namespace else {}),
            },
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool((await self.cluster.api.create(path, body))["status"]["allowed"])

    async def wait_for_right(
        self,
        verb: str,
        resource: str,
        namespace: str | None = None,
        user: str = OPERATOR,
        *,
        allowed: bool = True,
    ) -> None:
        """Wait until the API server has heard of a binding, or of its removal."""

        async def right_is_known() -> None:
            assert await self.is_allowed(verb, resource, namespace, user) == allowed

        await eventually(right_is_known)

    async def wait_for_reason(
        self, namespace: str, name: str, kind: str, reason: str, within: float = PATIENCE_SECONDS
    ) -> Json:
        """Wait for the reason of a condition, which is returned; the failure shows all of them."""

        async def reason_is_reported() -> Json:
            service = await self.cluster.api.get(INFERENCE_SERVICES.path(namespace, name))
            conditions: dict[str, Json] = {
                condition["type"]: condition
                for condition in service.get("status", {}).get("conditions", ())
            }
            assert conditions.get(kind, {}).get("reason") == reason, conditions
            return conditions[kind]

        return await eventually(reason_is_reported, within=within)


def a_service(namespace: str, name: str, **spec: Any) -> Json:
    return {
        "apiVersion": INFERENCE_SERVICES.api_version,
        "kind": INFERENCE_SERVICES.kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"uri": SMALL}, **spec},
    }
