"""The webhook's objects at the API server: the certificate Secret and the webhook configuration."""

import base64
import binascii
from typing import Any

from tessera.adapters import certificates
from tessera.adapters.kube.client import KubeCluster, raise_for_status, read_object
from tessera.domain.names import FIELD_MANAGER
from tessera.domain.serving_certificate import CertificateSecret, KeyPair

_APPLY_PATCH = "application/apply-patch+yaml"
_WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


class AdmissionObjects:
    """`CertificateStore` over the API server."""

    def __init__(self, cluster: KubeCluster, *, namespace: str, secret: str, webhooks: str) -> None:
        self._cluster = cluster
        self._meta = {"name": secret, "namespace": namespace}
        self._path = f"/api/v1/namespaces/{namespace}/secrets/{secret}"
        self._webhooks = webhooks

    async def read(self) -> CertificateSecret:
        body = await read_object(self._cluster, self._path, f"get the Secret {self._meta['name']}")
        if body is None:
            return CertificateSecret()
        data = body.get("data") or {}
        return CertificateSecret(
            serving=_pair(data, "tls"),
            pending=_pair(data, "next"),
            authorities=certificates.split_bundle(_decode(data, "ca.crt")),
            version=body["metadata"]["resourceVersion"],
        )

    async def write(self, secret: CertificateSecret) -> None:
        texts = {"ca.crt": secret.ca_bundle}
        for prefix, pair in (("tls", secret.serving), ("next", secret.pending)):
            if pair is not None:
                texts |= {f"{prefix}.crt": pair.certificate, f"{prefix}.key": pair.key}
        # With the resourceVersion that was read, so that a concurrent change is not overwritten.
        version = {} if secret.version is None else {"resourceVersion": secret.version}
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": self._meta | version,
            "data": {
                name: base64.b64encode(text.encode()).decode() for name, text in texts.items()
            },
        }
        await self._apply(self._path, body, f"the Secret {self._meta['name']}")

    async def trust(self, bundle: str) -> None:
        path = f"{_WEBHOOKS}/{self._webhooks}"
        description = f"the ValidatingWebhookConfiguration {self._webhooks}"
        status, body = await self._cluster.request("GET", path)
        raise_for_status(status, body, f"get {description}")
        wanted = base64.b64encode(bundle.encode()).decode()
        webhooks = body.get("webhooks", ())
        if all(webhook["clientConfig"].get("caBundle") == wanted for webhook in webhooks):
            return
        applied = {
            "apiVersion": body["apiVersion"],
            "kind": body["kind"],
            "metadata": {"name": self._webhooks},
            "webhooks": [
                {"name": webhook["name"], "clientConfig": {"caBundle": wanted}}
                for webhook in webhooks
            ],
        }
        await self._apply(path, applied, description)

    async def _apply(self, path: str, body: dict[str, Any], description: str) -> None:
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        status, response = await self._cluster.request("PATCH", path, query, body, _APPLY_PATCH)
        raise_for_status(status, response, f"apply {description}")


def _pair(data: dict[str, str], prefix: str) -> KeyPair | None:
    certificate, key = (_decode(data, f"{prefix}.{part}") for part in ("crt", "key"))
    return KeyPair(certificate, key) if certificate and key else None


def _decode(data: dict[str, str], name: str) -> str:
    """Return the text of a key; empty when it is missing or cannot be decoded."""
    try:
        return base64.b64decode(data.get(name, "")).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
