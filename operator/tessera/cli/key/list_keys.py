"""`tessera key list`: the keys of tenants, without the keys themselves."""

from collections.abc import Sequence, Set
from datetime import datetime
from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.cli.cluster import Reader, cluster_command
from tessera.cli.errors import DeniedError
from tessera.cli.key.create import budget_text, scope_text
from tessera.cli.key.key_secrets import KeySecrets, StoredKey
from tessera.cli.output import Output
from tessera.cli.text import table
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.resources.manifest import wire_format

_HEADS = ("TENANT", "NAME", "TEAM", "MODELS", "BUDGET", "CREATED", "EXPIRES", "SHA256")


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """List the keys."""
    return await list_keys(reader, arguments, now())


async def list_keys(reader: Reader, arguments: SimpleNamespace, at: datetime) -> Output:
    """Return one row for each key, and a line for each record that is none."""
    stored = KeySecrets(reader, arguments.keys_namespace)
    keys = await stored.keys(arguments.tenant)
    secrets = await stored.secrets(arguments.tenant)
    missing = await _missing_tenants(reader, {secret.tenant for secret in secrets})
    unreadable = sorted(
        (secret.tenant, name, *secret.secret, fault)
        for secret in secrets
        for name, fault in secret.malformed.items()
    )
    fields = ("tenant", "name", "namespace", "secret", "fault")
    body = {
        "keys": [
            dict(zip(fields, (key.tenant, key.name, *key.secret), strict=False))
            | wire_format(key.record)
            for key in keys
        ],
        "unreadable": [dict(zip(fields, values, strict=True)) for values in unreadable],
    }
    lines = list(table(_HEADS, [_row(key, at) for key in keys])) if keys else []
    if not keys and not unreadable:
        lines = ["no keys; create one with tessera key create --tenant NAME"]
    lines += [
        f"record {name} of tenant {tenant} in Secret/{secret} is no key: {fault}"
        for tenant, name, _, secret, fault in unreadable
    ]
    lines += [
        f"warning: Secret/{secret.secret.name} is in namespace {secret.secret.namespace}, and the "
        f"next version of the gateway reads keys in {stored.namespace} alone: move it as "
        "docs/tasks/upgrade.md says"
        for secret in secrets
        if secret.secret.namespace != stored.namespace
    ]
    lines += [
        f"warning: tenant {tenant} does not exist, so its keys get 401: create "
        f"TenantBudget/{tenant}, or revoke them"
        for tenant in missing
    ]
    return Output.of(arguments.output, lines, lambda: body)


async def _missing_tenants(reader: Reader, tenants: Set[str]) -> Sequence[str]:
    """Return the tenants without a TenantBudget; none where these may not be read."""
    try:
        budgets = await reader.list_objects(TENANT_BUDGETS)
    except DeniedError:
        return ()
    return sorted(tenants - {body["metadata"]["name"] for body in budgets})


def _row(key: StoredKey, at: datetime) -> tuple[str, ...]:
    record = key.record
    expired = record.expires is not None and record.expires <= at
    return (
        key.tenant,
        key.name,
        record.team or "-",
        scope_text(record) or "all",
        budget_text(record) or "-",
        _day(record.created) or "-",
        "expired" if expired else _day(record.expires) or "never",
        record.sha256[:12],
    )


def _day(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%dT%H:%MZ}" if moment is not None else ""
