"""`tessera key rotate`: a new key beside the old one, which ends after a while."""

from datetime import datetime
from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.api.key_record import KeyRecord, former_name, line_of
from tessera.cli.cluster import Reader, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.key.create import check_name, digest_of, key_output, new_key
from tessera.cli.key.key_secrets import KeySecrets, parse_moment
from tessera.cli.output import Output


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Rotate the key."""
    return await rotate(reader, arguments, now())


async def rotate(reader: Reader, arguments: SimpleNamespace, at: datetime) -> Output:
    """Give the name and scope to a new key; the old one keeps its scope under another name."""
    end = parse_moment("--expire-old-in", arguments.expire_old_in, at)
    stored = KeySecrets(reader, arguments.keys_namespace)
    old = await stored.key(arguments.tenant, arguments.name)
    if (line := line_of(old.name, old.record.sha256)) != old.name:
        raise CommandError(
            f"key {old.name} is the former key of {line} and ends without a successor: rotate "
            f"{line}, or revoke {old.name}"
        )
    key = new_key()
    record = old.record.model_copy(
        update={"sha256": digest_of(key), "created": at.replace(microsecond=0)}
    )
    old_name = check_name(former_name(old.name, old.record.sha256))
    old_end = min(end, old.record.expires or end)
    keys = await stored.keys(arguments.tenant)
    for other in keys:
        # A copy would be valid again, without an end, once the Secret that counts is gone.
        if other.name == old.name and other.secret != old.secret:
            await stored.write(other.secret, {other.name: None})
    changes: dict[str, KeyRecord | None] = {
        other.name: None
        for other in keys
        if other.secret == old.secret and _is_former(other.name, old.name, other.record, at)
    }
    changes[old.name] = record
    changes[old_name] = old.record.model_copy(update={"expires": old_end})
    await stored.write(old.secret, changes)
    note = f"; the old key is {old_name} and ends at {old_end:%Y-%m-%dT%H:%MZ}"
    note += stored.unread_note(old.name)
    return key_output(arguments, old.name, record, key, note)


def _is_former(name: str, current: str, record: KeyRecord, at: datetime) -> bool:
    """Return whether it is a former key of this name that has ended."""
    is_former = name != current == line_of(name, record.sha256)
    return is_former and record.expires is not None and record.expires <= at
