"""The Secrets of keys, as commands read and write them."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus

from pydantic import ValidationError

from tessera.adapters.kube import object_parsing as wire
from tessera.api.key_record import KEYS_TYPE, TENANT_LABEL, KeyRecord
from tessera.api.ref import Ref
from tessera.cli.cluster import Json, Reader, check_status
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.text import parse_time
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.domain.names import keys_namespace
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.resources.api_resources import KEY_SECRETS
from tessera.settings import CommandSettings

_MAX_LABEL_LENGTH = 63
_DURATION = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key, with the Secret that has it."""

    tenant: str
    name: str
    record: KeyRecord
    secret: Ref


class KeySecrets:
    """The keys of all tenants."""

    def __init__(self, reader: Reader, namespace: str | None) -> None:
        """Take the namespace of keys.

        None is that of the settings, and in this version also that of the gateway, where keys were.
        """
        self._reader = reader
        gateway = CommandSettings().namespace
        self.namespace = namespace or keys_namespace(gateway)
        self._namespaces = (namespace,) if namespace else (self.namespace, gateway)
        self._versions: dict[Ref, str] = {}
        self._unread: dict[str, None] = {}

    async def keys(self, tenant: str | None = None) -> list[StoredKey]:
        """Return the keys of one tenant or of all, in the order of their names."""
        keys = [
            StoredKey(secret.tenant, name, record, secret.secret)
            for secret in await self.secrets(tenant)
            for name, record in secret.records.items()
        ]
        return sorted(keys, key=lambda key: (key.tenant, key.name, key.secret))

    async def secrets(self, tenant: str | None) -> list[TenantKeys]:
        """Return the Secrets of one tenant or of all."""
        secrets = []
        for body in [body for each in self._namespaces for body in await self._bodies(each)]:
            stored = wire.parse_object(KEY_SECRETS, body).plan_input
            if isinstance(stored, TenantKeys) and tenant in (None, stored.tenant):
                self._versions[stored.secret] = body["metadata"]["resourceVersion"]
                secrets.append(stored)
        return secrets

    async def _bodies(self, namespace: str) -> Sequence[Json]:
        try:
            return await self._reader.list_objects(KEY_SECRETS, namespace)
        except DeniedError:
            # Who manages keys needs no right to read the other Secrets of the gateway's namespace.
            if namespace == self.namespace:
                raise
            self._unread[namespace] = None
            return ()

    def unread_note(self, name: str) -> str:
        """Name the namespaces that may have a copy of a key and were not read; "" without any."""
        return "".join(
            f"\nwarning: you may not read Secrets in namespace {namespace}: if the keys were not "
            f"moved from there, a key {name} in them goes on as before (docs/tasks/upgrade.md)"
            for namespace in self._unread
        )

    async def key(self, tenant: str, name: str) -> StoredKey:
        """Return one key; CommandError when it does not exist."""
        keys = await self.keys(tenant)
        for stored in keys:
            if stored.name == name:
                return stored
        names = ", ".join(sorted({stored.name for stored in keys})) or "none"
        raise CommandError(f"key {name} of tenant {tenant} not found; its keys: {names}")

    async def check_tenant(self, tenant: str) -> None:
        """Raise CommandError unless the tenant exists and may have keys."""
        if len(tenant) > _MAX_LABEL_LENGTH:
            raise CommandError(
                f"--tenant {tenant}: a tenant with keys has a name of at most "
                f"{_MAX_LABEL_LENGTH} characters"
            )
        if await self._reader.get(TENANT_BUDGETS.path(None, tenant)) is None:
            raise CommandError(
                f"TenantBudget/{tenant} not found: a tenant is a TenantBudget. Create it as "
                "docs/tasks/set-a-budget.md says, or take one of kubectl get tenantbudgets"
            )

    async def add(self, tenant: str, name: str, record: KeyRecord) -> None:
        """Store a new key in the Secret of its tenant, which is created if needed."""
        secret = f"tessera-keys-{tenant}"
        for existing in self._versions:
            if existing.name == secret:
                await self.write(existing, {name: record})
                return
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": secret,
                "namespace": self.namespace,
                "labels": {TENANT_LABEL: tenant},
            },
            "type": KEYS_TYPE,
            "data": {name: _encode(record)},
        }
        status, answer = await self._reader.send(
            "POST", KEY_SECRETS.path(self.namespace), body=body
        )
        _check(status, answer, f"create secret {secret} in namespace {self.namespace}")

    async def write(self, secret: Ref, records: Mapping[str, KeyRecord | None]) -> None:
        """Change keys of a Secret that was read, all at once; None removes one."""
        data = {name: record and _encode(record) for name, record in records.items()}
        body = {"metadata": {"resourceVersion": self._versions[secret]}, "data": data}
        status, answer = await self._reader.patch(KEY_SECRETS.path(*secret), body)
        _check(status, answer, f"change secret {secret.name} in namespace {secret.namespace}")


def _check(status: int, answer: Mapping[str, object], operation: str) -> None:
    if status == HTTPStatus.CONFLICT:
        raise CommandError(f"{operation}: somebody else changed it just now; run the command again")
    check_status(status, answer, operation)


def _encode(record: KeyRecord) -> str:
    text = record.model_dump_json(by_alias=True, exclude_defaults=True)
    return base64.b64encode(text.encode()).decode()


def parse_moment(option: str, text: str, now: datetime) -> datetime:
    """Return the time that `30d` or `2026-12-31T00:00:00Z` stands for; CommandError otherwise."""
    if (duration := _DURATION.fullmatch(text)) is not None:
        return (now + int(duration[1]) * _UNITS[duration[2]]).replace(microsecond=0)
    forms = "use a span such as 24h or 90d, or a time such as 2026-12-31T00:00:00Z"
    moment = parse_time(option, text, forms)
    if moment <= now:
        raise CommandError(f"{option} {text}: that is in the past; use tessera key revoke")
    return moment


def describe_error(error: ValidationError, options: Mapping[str, str]) -> str:
    """Return what is wrong with a record, by the options that gave its fields."""
    return "; ".join(
        f"{options.get(str(fault['loc'][0]), fault['loc'][0])}: {fault['msg']}"
        for fault in error.errors()
    )
