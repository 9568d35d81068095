"""A pod's identity: bound tokens, and a kubeconfig for programs that look for one."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from world.api import SERVICE_ACCOUNTS, Api, Json
from world.keys import kubeconfig

MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# Share of a token's life after which a new one is fetched.
RENEWED_AT = 0.8


@dataclass(frozen=True, slots=True)
class Token:
    value: str
    renew_at: float


@dataclass(slots=True)
class Tokens:
    """Tokens of the pods of one world, kept until most of their life is over."""

    api: Api
    server: str
    authority: Path
    _known: dict[tuple[str, str], Token] = field(default_factory=dict)

    async def get(self, pod: Json, audience: str = "", seconds: int = 3600) -> str:
        key = pod["metadata"]["uid"], audience
        now = asyncio.get_running_loop().time()
        if key not in self._known or self._known[key].renew_at <= now:
            value = await self._request(pod, audience, seconds)
            self._known[key] = Token(value, now + RENEWED_AT * seconds)
        return self._known[key].value

    def forget(self, uid: str) -> None:
        self._known = {key: token for key, token in self._known.items() if key[0] != uid}

    def kubeconfig(self, path: Path, folder: Path) -> Path:
        """Made of the mounted folder; both forms of the token, as not all clients read files."""
        token, namespace = folder / "token", folder / "namespace"
        return kubeconfig(
            path,
            server=self.server,
            authority=self.authority,
            user={"token": token.read_text(), "tokenFile": str(token)},
            namespace=namespace.read_text() if namespace.exists() else "default",
        )

    async def _request(self, pod: Json, audience: str, seconds: int) -> str:
        meta, spec = pod["metadata"], pod["spec"]
        account = spec.get("serviceAccountName", "default")
        reference = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        token_spec: Json = {"expirationSeconds": seconds, "boundObjectRef": reference}
        if audience:
            token_spec["audiences"] = [audience]
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": token_spec,
        }
        path = SERVICE_ACCOUNTS.path(meta["namespace"], account, "token")
        return str((await self.api.create(path, body))["status"]["token"])
