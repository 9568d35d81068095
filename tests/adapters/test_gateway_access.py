"""Keys and tokens of a gateway on a real API server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from tessera.adapters.clock import now
from tessera.adapters.kube.access_review import token_user
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import connect
from tessera.cli.cluster import Reader
from tessera.cli.key.arguments import KEY_CREATE, KEY_REVOKE, KEY_ROTATE
from tessera.cli.key.create import create
from tessera.cli.key.revoke import revoke
from tessera.cli.key.rotate import rotate
from tessera.domain.gateway.directory import Directory, Identity, OfferedProvider, TenantLimits
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, MODEL_PROVIDERS, TENANT_BUDGETS
from tessera.gateway.fleet.watching import FleetWatch, ProviderSecrets
from tessera.gateway.gateway import Gateway
from tessera.gateway.identify.token_reviews import TokenReviews
from tessera.gateway.identify.token_verifier import TokenVerifier
from tessera.gateway.outside.keys import ProviderKeys
from tessera.resources.api_resources import PROVIDER_SECRETS
from tests.builders import SMALL, a_provider_spec
from tests.gateway.test_gateway import Surroundings
from world import World
from world.testing import eventually

NAMESPACE, TENANT = "gateway-keys", "gateway-tenant"
FORMER_NAMESPACE = "gateway-former-keys"
PROVIDERS = "gateway-providers"
AUDIENCE = "tessera-gateway"


@asynccontextmanager
async def a_gateway(world: World, keys: ProviderKeys | None = None) -> AsyncIterator[Gateway]:
    connection = await connect(str(world.kubeconfig))
    fleet, own = KubeCluster(connection), KubeCluster(connection, (NAMESPACE, FORMER_NAMESPACE))
    outside = KubeCluster(connection, (PROVIDERS,))
    surroundings = Surroundings()
    watch = FleetWatch(
        *(fleet, own, surroundings.changed.set, lambda _: None, NAMESPACE),
        providers=None if keys is None else ProviderSecrets(outside, keys.update),
    )
    gateway = surroundings.gateway(watch.observations)
    tasks = [asyncio.create_task(run) for run in (watch.run(), gateway.run())]
    try:
        yield gateway
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for opened in (fleet, own, outside):
            await opened.close()


async def prepare(cluster: KubeCluster, namespace: str, tenant: str) -> None:
    """Create a tenant with limits, and a model that everybody may use."""
    await cluster.request("POST", "/api/v1/namespaces", body={"metadata": {"name": namespace}})
    for kind, meta, spec in (
        (
            TENANT_BUDGETS,
            {"name": tenant},
            {
                "owner": "a@example.org",
                "tenant": {"namespaces": [namespace]},
                "limits": [{"window": "Day", "amount": "1"}],
                "rateLimits": {"requests": {"perMinute": 60}},
                "teams": {"search": {"concurrentRequests": 2}},
            },
        ),
        (
            INFERENCE_SERVICES,
            {"name": "chat", "namespace": namespace},
            {"model": {"uri": SMALL}, "access": {"public": True, "aliases": ["default"]}},
        ),
    ):
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, "spec": spec}
        status, answer = await cluster.request("POST", kind.path(meta.get("namespace")), body=body)
        assert status == 201, answer


async def test_keys_reach_a_gateway_and_leave_it(
    cluster: KubeCluster, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await prepare(cluster, NAMESPACE, TENANT)
    options = ["--tenant", TENANT, "--keys-namespace", NAMESPACE]
    async with a_gateway(world) as gateway:

        async def all_is_known() -> None:
            assert gateway.directory is not None
            assert gateway.directory.tenants
            assert "default" in [name for each in gateway.directory.models for name in each.names]

        async def keys_are_known(*names: str) -> None:
            assert gateway.directory is not None
            # A key that was rotated has its digest in its name.
            keys = [key.name.partition(".")[0] for key in gateway.directory.keys.values()]
            assert sorted(keys) == sorted(names)

        await eventually(all_is_known)
        await create(Reader(cluster), KEY_CREATE.parse(["ci", *options]), now())
        await eventually(partial(keys_are_known, "ci"))
        await create(Reader(cluster), KEY_CREATE.parse(["app", *options]), now())
        await eventually(partial(keys_are_known, "app", "ci"))
        await rotate(Reader(cluster), KEY_ROTATE.parse(["app", *options]), now())
        await eventually(partial(keys_are_known, "app", "app", "ci"))
        await revoke(Reader(cluster), KEY_REVOKE.parse(["ci", *options]))
        await eventually(partial(keys_are_known, "app", "app"))

        former = ["--tenant", TENANT, "--keys-namespace", FORMER_NAMESPACE]
        await cluster.request(
            "POST", "/api/v1/namespaces", body={"metadata": {"name": FORMER_NAMESPACE}}
        )
        await create(Reader(cluster), KEY_CREATE.parse(["old", *former]), now())

        async def former_key_is_known_with_a_warning() -> None:
            await keys_are_known("app", "app", "old")
            warnings = [each.message for each in caplog.records if "keys outside" in each.msg]
            assert len(warnings) == 1
            secret = f"Secret/{FORMER_NAMESPACE}/tessera-keys-{TENANT}"
            assert f"{secret} has keys outside" in warnings[0]

        await eventually(former_key_is_known_with_a_warning)


async def test_keys_of_providers_reach_a_gateway_change_there_and_leave_it(
    cluster: KubeCluster, world: World
) -> None:
    await prepare(cluster, f"{NAMESPACE}-outside", f"{TENANT}-outside")
    for namespace in (PROVIDERS, "another-namespace"):
        await cluster.request("POST", "/api/v1/namespaces", body={"metadata": {"name": namespace}})
    body = {
        "apiVersion": MODEL_PROVIDERS.api_version,
        "kind": "ModelProvider",
        "metadata": {"name": "acme"},
        "spec": a_provider_spec(tenants=[f"{TENANT}-outside"]),
    }
    status, answer = await cluster.request("POST", MODEL_PROVIDERS.path(None), body=body)
    assert status == 201, answer
    keys, secret = ProviderKeys(), {"metadata": {"name": "acme"}, "type": "Opaque"}

    async def put(namespace: str, key: str, method: str = "POST") -> None:
        name = None if method == "POST" else "acme"
        path = PROVIDER_SECRETS.path(namespace, name)
        status, answer = await cluster.request(
            method, path, body=secret | {"stringData": {"key": key}}
        )
        assert status in (200, 201), answer

    async with a_gateway(world, keys) as gateway:

        def provider() -> OfferedProvider:
            assert gateway.directory is not None
            model = gateway.directory.outside.get(("acme", "Big"))
            assert model is not None
            assert model.outside is not None
            return model.outside.provider

        async def key_is(expected: str | None) -> None:
            assert keys.of(provider()) == expected

        await put("another-namespace", "of others")
        await put(PROVIDERS, "first")
        await eventually(partial(key_is, "first"))
        await put(PROVIDERS, "second", "PUT")
        await eventually(partial(key_is, "second"))
        await cluster.request("DELETE", PROVIDER_SECRETS.path(PROVIDERS, "acme"))
        await eventually(partial(key_is, None))


async def test_only_tokens_of_the_audience_have_a_user(cluster: KubeCluster) -> None:
    await cluster.request("POST", "/api/v1/namespaces", body={"metadata": {"name": NAMESPACE}})
    accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    await cluster.request("POST", accounts, body={"metadata": {"name": "ci"}})

    async def token(*audiences: str) -> str:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": list(audiences), "expirationSeconds": 600},
        }
        status, answer = await cluster.request("POST", f"{accounts}/ci/token", body=body)
        assert status == 201, answer
        return str(answer["status"]["token"])

    user = f"system:serviceaccount:{NAMESPACE}:ci"
    assert await token_user(cluster, await token(AUDIENCE), AUDIENCE) == user
    assert await token_user(cluster, await token("another"), AUDIENCE) is None
    assert await token_user(cluster, await token(), AUDIENCE) is None
    assert await token_user(cluster, "a.b.c", AUDIENCE) is None

    # The gateway knows the issuer by a token of its own, which is for the API server.
    reviews = TokenReviews(partial(token_user, cluster, audience=AUDIENCE), token)
    tenant = TenantLimits(name=TENANT, namespaces=(NAMESPACE,))
    for audience, verdict in (
        (AUDIENCE, Identity(tenant=TENANT, user=user)),
        ("another", RequestReason.INVALID_TOKEN),
    ):
        verifier = TokenVerifier(reviews, {})
        tenants = Directory(tenants={TENANT: tenant})
        assert await verifier.verify(await token(audience), tenants, "10.0.0.7") == verdict
