"""An outside provider as the platform offers it to a tenant, and ways in which it fails."""

from collections.abc import Mapping, Sequence
from typing import Any

from demo.cluster import NAMESPACE, InstalledCluster, Ref
from demo.tenants import apply_spec
from scenarios.actions import ScenarioNamespace
from world.api import SECRETS
from world.provider import (
    Provider,
    Script,
    filtered,
    flood,
    hang_up,
    redirect,
    refuse,
    say_nothing,
    send_page,
    stall,
)

PROVIDER, MODEL = "acme", "grand-1"
# USD for a million tokens of input and of output, as the provider bills them.
COSTS = (50, 200)
TARGET: Mapping[str, Any] = {"name": "large", "provider": {"name": PROVIDER, "model": MODEL}}
# Before the first byte of an answer, each of which another target can answer.
FAILURES: Mapping[str, Script] = {
    "too many requests": refuse(429),
    "too many requests for a while": refuse(429, retry_after="3"),
    "an error": refuse(500),
    "overloaded": refuse(503),
    "refused": refuse(400, "no such parameter", "unsupported_parameter"),
    "no answer": say_nothing,
    "nothing after the head": stall,
    "closed": hang_up,
    "elsewhere": redirect,
    "a page": send_page,
    "a flood": flood,
    "filtered": filtered,
}
_KEYS_NAMESPACE = f"{NAMESPACE}-providers"


def provider_values(provider: Provider) -> Sequence[str]:
    """Return values of the chart by which gateways reach a provider on loopback."""
    return (
        "gateway.providers.enabled=true",
        "gateway.providers.allowedRanges[0]=127.0.0.0/8",
        "gateway.extraEnv[0].name=TESSERA_PROVIDERS_CA_FILE",
        f"gateway.extraEnv[0].value={provider.authority}",
    )


async def store_key(cluster: InstalledCluster, key: str) -> None:
    """Write the key of the provider into its Secret."""
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": PROVIDER, "namespace": _KEYS_NAMESPACE},
        "stringData": {"key": key},
    }
    await cluster.api.apply(SECRETS.path(_KEYS_NAMESPACE, PROVIDER), body, "kubectl")


async def offer_provider(namespace: ScenarioNamespace, provider: Provider) -> None:
    """Let the tenant of a namespace use a provider."""
    of_input, of_output = COSTS
    spec = {
        "baseUrl": provider.base_url,
        "protocols": ["OpenAIChat", "AnthropicMessages"],
        "secret": {"name": PROVIDER},
        "tenants": [namespace.name],
        # It runs in the process of its clients, which are many.
        "timeouts": {"connect": "5s", "firstByte": "3s", "gap": "3s"},
        "models": [
            {
                "name": MODEL,
                "maxContextTokens": 8192,
                "maxOutputTokens": 1024,
                "cost": {"input": str(of_input), "output": str(of_output)},
            }
        ],
    }
    assert provider.key is not None
    await store_key(namespace.cluster, provider.key)
    ref = Ref("", PROVIDER)
    await apply_spec(namespace.cluster, "ModelProvider", "modelproviders", ref, spec)
