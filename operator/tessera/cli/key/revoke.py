"""`tessera key revoke`: end a key now."""

from types import SimpleNamespace

from tessera.cli.cluster import Reader, cluster_command
from tessera.cli.key.key_secrets import KeySecrets
from tessera.cli.output import Output


async def revoke(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Remove the key from each Secret that has it."""
    stored = KeySecrets(reader, arguments.keys_namespace)
    key = await stored.key(arguments.tenant, arguments.name)
    for each in await stored.keys(arguments.tenant):
        if each.name == key.name:
            await stored.write(each.secret, {key.name: None})
    note = stored.unread_note(key.name)
    body = {"tenant": key.tenant, "name": key.name, "sha256": key.record.sha256}
    body |= {"warning": note.strip()} if note else {}
    text = f"key {key.name} of tenant {key.tenant} is revoked: gateways refuse it within 2 seconds"
    return Output.of(arguments.output, [f"{text}{note}"], lambda: body)


run = cluster_command(revoke)
