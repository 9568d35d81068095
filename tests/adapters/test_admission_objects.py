"""The Secret and the CA bundle of admission, at a real API server."""

import base64
import itertools
from datetime import timedelta
from typing import Any

import pytest

from tessera.adapters import certificates
from tessera.adapters.kube.admission_objects import AdmissionObjects
from tessera.adapters.kube.client import KubeCluster
from tessera.domain.serving_certificate import CertificateSecret
from tessera.ports import ClusterError
from tests.builders import NOW

_numbers = itertools.count(1)
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"


def objects(cluster: KubeCluster, name: str) -> AdmissionObjects:
    return AdmissionObjects(cluster, namespace="default", secret=name, webhooks=name)


def a_name() -> str:
    return f"admission-{next(_numbers)}"


def a_pair() -> certificates.IssuedPair:
    return certificates.issue("tessera-webhook.default.svc", NOW, timedelta(days=1))


async def a_configuration(cluster: KubeCluster, name: str) -> None:
    """Apply two webhooks without a bundle for kinds that do not exist: no request is affected."""
    hooks = [
        {
            "name": f"{kind}.tessera.dev",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Ignore",
            "clientConfig": {"service": {"name": name, "namespace": "default"}},
            "rules": [
                {
                    "apiGroups": ["none.tessera.dev"],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE"],
                    "resources": [kind],
                }
            ],
        }
        for kind in ("ones", "others")
    ]
    body: dict[str, Any] = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": hooks,
    }
    query = {"fieldManager": "helm"}
    path = f"{CONFIGURATIONS}/{name}"
    status, answer = await cluster.request(
        "PATCH", path, query, body, "application/apply-patch+yaml"
    )
    assert status < 300, answer


async def test_nothing_is_stored_before_the_first_write(cluster: KubeCluster) -> None:
    assert await objects(cluster, a_name()).read() == CertificateSecret()


async def test_what_was_written_is_read_and_what_is_left_out_is_removed(
    cluster: KubeCluster,
) -> None:
    store, first, second = objects(cluster, a_name()), a_pair(), a_pair()
    both = (first.authority, second.authority)
    await store.write(CertificateSecret(serving=first.pair, pending=second.pair, authorities=both))
    secret = await store.read()
    assert (secret.serving, secret.pending, secret.authorities) == (first.pair, second.pair, both)
    await store.write(
        CertificateSecret(serving=second.pair, authorities=both, version=secret.version)
    )
    secret = await store.read()
    assert (secret.serving, secret.pending) == (second.pair, None)


async def test_of_two_writers_with_the_same_version_the_second_is_refused(
    cluster: KubeCluster,
) -> None:
    store, first, second = objects(cluster, a_name()), a_pair(), a_pair()
    await store.write(CertificateSecret(serving=first.pair, authorities=(first.authority,)))
    version = (await store.read()).version
    update = CertificateSecret(
        serving=second.pair, authorities=(second.authority,), version=version
    )
    await store.write(update)
    with pytest.raises(ClusterError, match="409"):
        await store.write(CertificateSecret(serving=first.pair, authorities=(), version=version))
    assert (await store.read()).serving == second.pair


async def test_every_webhook_gets_the_bundle_and_keeps_the_rest(cluster: KubeCluster) -> None:
    name, pair = a_name(), a_pair()
    store = objects(cluster, name)
    with pytest.raises(ClusterError, match="404"):
        await store.trust(pair.authority)
    await a_configuration(cluster, name)
    await store.trust(pair.authority)
    _, first = await cluster.request("GET", f"{CONFIGURATIONS}/{name}")
    bundle = base64.b64encode(pair.authority.encode()).decode()
    assert [webhook["clientConfig"]["caBundle"] for webhook in first["webhooks"]] == [
        bundle,
        bundle,
    ]
    assert first["webhooks"][0]["rules"][0]["resources"] == ["ones"]
    await store.trust(pair.authority)
    _, unchanged = await cluster.request("GET", f"{CONFIGURATIONS}/{name}")
    assert unchanged["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    # Helm applies its own fields again at every upgrade; the bundle stays.
    await a_configuration(cluster, name)
    _, upgraded = await cluster.request("GET", f"{CONFIGURATIONS}/{name}")
    assert upgraded["webhooks"] == first["webhooks"]
