"""`tessera key revoke`: end a key now."""

import asyncio
import json
from types import SimpleNamespace

from tessera.cli.cluster import Reader, open_reader
from tessera.cli.key.key_secrets import KeySecrets, gateway_namespace
from tessera.cli.output import Output


def run(arguments: SimpleNamespace) -> Output:
    """Revoke the key."""
    return asyncio.run(_run(arguments))


async def _run(arguments: SimpleNamespace) -> Output:
    async with open_reader(arguments) as reader:
        return await revoke(reader, arguments)


async def revoke(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Remove the key from its Secret."""
    stored = KeySecrets(reader, gateway_namespace(arguments))
    key = await stored.key(arguments.tenant, arguments.name)
    await stored.write(key.secret, {key.name: None})
    if arguments.output == "json":
        fields = {"tenant": key.tenant, "name": key.name, "sha256": key.record.sha256}
        return Output(json.dumps(fields, indent=2) + "\n")
    return Output(
        f"key {key.name} of tenant {key.tenant} is revoked: gateways refuse it within 2 seconds\n"
    )
