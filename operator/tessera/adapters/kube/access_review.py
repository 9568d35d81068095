"""Asks the API server who holds a bearer token, and whether that user may read a path."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from tessera.adapters.kube.client import KubeCluster, raise_for_status


async def review_access(cluster: KubeCluster, token: str, path: str) -> HTTPStatus:
    """Return OK, UNAUTHORIZED for an unknown token, or FORBIDDEN; raises ClusterError."""
    status = await _review(cluster, "authentication", "TokenReview", {"token": token})
    if not status.get("authenticated"):
        return HTTPStatus.UNAUTHORIZED
    user = status["user"]
    spec = {
        "user": user.get("username", ""),
        "uid": user.get("uid", ""),
        "groups": user.get("groups", []),
        "extra": user.get("extra", {}),
        "nonResourceAttributes": {"path": path, "verb": "get"},
    }
    status = await _review(cluster, "authorization", "SubjectAccessReview", spec)
    return HTTPStatus.OK if status.get("allowed") else HTTPStatus.FORBIDDEN


async def token_user(cluster: KubeCluster, token: str, audience: str) -> str | None:
    """Return the user whose token it is; None unless it is valid for this very audience.

    Raises ClusterError.
    """
    spec = {"token": token, "audiences": [audience]}
    status = await _review(cluster, "authentication", "TokenReview", spec)
    # A server that knows no audiences answers without any.
    if not status.get("authenticated") or audience not in status.get("audiences", ()):
        return None
    return str(status["user"].get("username", ""))


async def _review(
    cluster: KubeCluster, group: str, kind: str, spec: Mapping[str, Any]
) -> Mapping[str, Any]:
    version = f"{group}.k8s.io/v1"
    status, body = await cluster.request(
        "POST",
        f"/apis/{version}/{kind.lower()}s",
        body={"apiVersion": version, "kind": kind, "spec": spec},
    )
    raise_for_status(status, body, f"create a {kind}")
    answer: Mapping[str, Any] = body.get("status", {})
    return answer
