"""`tessera key revoke`: end a key now."""

from types import SimpleNamespace

from tessera.cli.cluster import Reader, cluster_command
from tessera.cli.key.key_secrets import KeySecrets, gateway_namespace
from tessera.cli.output import Output


async def revoke(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Remove the key from its Secret."""
    stored = KeySecrets(reader, gateway_namespace(arguments))
    key = await stored.key(arguments.tenant, arguments.name)
    await stored.write(key.secret, {key.name: None})
    if arguments.output == "json":
        fields = {"tenant": key.tenant, "name": key.name, "sha256": key.record.sha256}
        return Output.of_json(fields)
    return Output(
        f"key {key.name} of tenant {key.tenant} is revoked: gateways refuse it within 2 seconds\n"
    )


run = cluster_command(revoke)
