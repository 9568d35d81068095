"""A client of a scripted provider, for tests."""

import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from tessera.adapters.clock import CLOCK, Clock
from tessera.api.model_provider import ProviderTimeouts
from tessera.domain.gateway.directory import OfferedProvider
from tessera.domain.observed.providers import ProviderSecret
from tessera.gateway.outside.client import OutsideClient, OutsideError
from tessera.gateway.outside.keys import ProviderKeys
from tests.gateway_builders import an_offered_provider
from world.provider import KEY, Provider

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
TENANT = "team-a"


def a_provider(base_url: str = "https://api.example.com/v1", **fields: Any) -> OfferedProvider:
    timeouts = ProviderTimeouts.model_validate(fields.pop("timeouts", {}))
    return an_offered_provider(base_url=base_url, timeouts=timeouts, **fields)


def provider_keys(key: str | None = KEY) -> ProviderKeys:
    keys = ProviderKeys()
    if key is not None:
        keys.update([ProviderSecret(name="acme", keys={"key": key})])
    return keys


@dataclass(slots=True)
class Asking:
    """A client, and the provider that it asks."""

    provider: Provider
    client: OutsideClient
    keys: ProviderKeys
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def offered(self) -> OfferedProvider:
        return a_provider(**{"base_url": self.provider.base_url, **self.fields})

    async def whole(
        self, path: str = CHAT, body: bytes = b'{"model": "m"}', tenant: str = TENANT
    ) -> bytes:
        async with self.client.ask(self.offered, path, body, tenant=tenant) as answer:
            return await answer.whole()

    async def error(self, body: bytes = b'{"model": "m"}') -> OutsideError:
        """Return the error of a request."""
        try:
            await self.whole(body=body)
        except OutsideError as error:
            return error
        raise AssertionError("it was answered")


@asynccontextmanager
async def asking(
    folder: Path,
    *,
    allowed_ranges: Collection[IPv4Network | IPv6Network] = LOOPBACK,
    clock: Clock = CLOCK,
    **fields: Any,
) -> AsyncIterator[Asking]:
    """Run a provider, and a client that trusts its certificate."""
    async with Provider(folder / "keys") as provider:
        tls = ssl.create_default_context(cafile=str(provider.authority))
        keys = provider_keys()
        client = OutsideClient(keys, allowed_ranges, clock, tls)
        try:
            yield Asking(provider, client, keys, fields)
        finally:
            await client.close()
