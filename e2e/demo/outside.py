"""An outside provider of a demo: gateways may ask it, and it has a bill of its own."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

from demo.cluster import CHART, NAMESPACE, InstalledCluster, Json, Ref
from demo.tenants import apply_spec
from world.provider import Provider

NAME, MODEL = "acme", "large-1"
# USD for a million tokens of input and of output, as the provider's bill says.
COST = (500, 2000)
_SECRETS = f"{NAMESPACE}-providers"
_LOOPBACK = "127.0.0.0/8"


@asynccontextmanager
async def outside_provider(cluster: InstalledCluster, tenant: str) -> AsyncIterator[Provider]:
    """Run a provider that a tenant may use, once gateways may ask any."""
    async with Provider(cluster.world.folder / "provider") as provider:
        values = {
            "providers": {"enabled": True, "allowedRanges": [_LOOPBACK]},
            "extraEnv": [{"name": "TESSERA_PROVIDERS_CA_FILE", "value": str(provider.authority)}],
        }
        await cluster.run(
            *("helm", "upgrade", "tessera", str(CHART), "--namespace", NAMESPACE),
            *("--reuse-values", "--set-json", f"gateway={json.dumps(values)}"),
        )
        cluster.say("helm upgrade --set gateway.providers.enabled=true")
        secret = ("secret", "generic", NAME, f"--from-literal=key={provider.key}")
        await cluster.run("kubectl", "-n", _SECRETS, "create", *secret)
        await apply_spec(
            cluster, "ModelProvider", "modelproviders", Ref("", NAME), _spec(provider, tenant)
        )
        yield provider


def _spec(provider: Provider, tenant: str) -> Json:
    first, last = map(str, COST)
    model: Json = {
        "name": MODEL,
        "maxContextTokens": 128_000,
        "maxOutputTokens": 4096,
        "cost": {"input": first, "output": last},
    }
    return {
        "baseUrl": provider.base_url,
        "protocols": ["OpenAIChat"],
        "secret": {"name": NAME},
        "tenants": [tenant],
        "models": [model],
    }


def billed(provider: Provider) -> Decimal:
    """Return what the provider's own bill says of all its answers, in USD."""
    counts = [call.usage for call in provider.calls if call.usage is not None]
    tokens = (sum(each) for each in zip(*counts, strict=True))
    nanos = sum(count * cost for count, cost in zip(tokens, COST, strict=True))
    return Decimal(nanos) / 10**6
