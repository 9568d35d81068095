"""Who the hostile tenant is: T writes our kinds in his namespace, E edits there, N is a node."""

import json
from dataclasses import dataclass
from typing import Any

from demo.cluster import InstalledCluster, Json, StepError

HOSTILE = "hostile"
T, E = "tessera-user", "editor"
_RBAC = "rbac.authorization.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Identity:
    """kubectl as somebody, in the hostile namespace."""

    cluster: InstalledCluster
    user: str
    groups: tuple[str, ...] = ()

    async def run(self, *arguments: str) -> str:
        groups = [option for group in self.groups for option in ("--as-group", group)]
        return await self.cluster.run(
            "kubectl", "--as", self.user, *groups, "-n", HOSTILE, *arguments
        )

    async def apply(self, body: Json) -> str:
        path = self.cluster.world.folder / f"{self.user.replace(':', '-')}.json"
        path.write_text(json.dumps(body))
        return await self.run("apply", "-f", str(path))

    async def serve(self, name: str, **spec: Any) -> str:
        return await self.apply(a_service(name, **spec))

    async def expect_refusal(self, *arguments: str) -> str:
        """Run what must be refused; return the words."""
        try:
            output = await self.run(*arguments)
        except StepError as error:
            return str(error)
        raise AssertionError(f"{self.user} may {' '.join(arguments)}: {output}")


def a_service(name: str, **spec: Any) -> Json:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": HOSTILE},
        "spec": {"model": {"uri": "hf://meta-llama/Llama-3.2-1B-Instruct"}, **spec},
    }


def rights() -> list[Json]:
    """Return the namespace, and what T and E may do there."""
    tenant_role: Json = {
        "apiVersion": _RBAC,
        "kind": "Role",
        "metadata": {"name": T, "namespace": HOSTILE},
        "rules": [
            {
                "apiGroups": ["tessera.dev"],
                "resources": [
                    "inferenceservices",
                    "inferenceservices/scale",
                    "batchinferences",
                ],
                "verbs": ["*"],
            }
        ],
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HOSTILE}},
        tenant_role,
        _binding("tenant", "Role", T, T),
        _binding("tenant-editor", "Role", T, E),
        _binding("editor", "ClusterRole", "edit", E),
    ]


def _binding(name: str, kind: str, role: str, user: str) -> Json:
    return {
        "apiVersion": _RBAC,
        "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": HOSTILE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
