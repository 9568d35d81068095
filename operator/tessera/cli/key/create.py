"""`tessera key create`: a key for a tenant, shown once."""

import hashlib
import secrets
from collections.abc import Mapping
from datetime import datetime
from types import SimpleNamespace

from pydantic import TypeAdapter, ValidationError

from tessera.adapters.clock import now
from tessera.adapters.kube.object_parsing import parse_object
from tessera.api.key_record import KEY_PREFIX, KeyName, KeyRecord
from tessera.api.rate_limits import RateLimitsSpec
from tessera.cli.cluster import Reader, cluster_command
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.key.key_secrets import KeySecrets, describe_error, parse_moment
from tessera.cli.output import Output
from tessera.domain.gateway.access import tenant_models
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.observed.snapshot import Budget, ObservedService
from tessera.resources.manifest import wire_format

_KEY_BYTES = 32
_NAME = TypeAdapter[str](KeyName)
_OPTIONS = {
    "sha256": "--sha256",
    "team": "--team",
    "models": "--models",
    "services": "--services",
    "budget": "--budget",
    "rateLimits": "--requests-per-minute, --tokens-per-minute, --tokens-per-day",
}


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Create the key."""
    return await create(reader, arguments, now())


def new_key() -> str:
    """Return a key of 256 random bits."""
    return f"{KEY_PREFIX}{secrets.token_urlsafe(_KEY_BYTES)}"


def digest_of(key: str) -> str:
    """Return what is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


async def create(reader: Reader, arguments: SimpleNamespace, at: datetime) -> Output:
    """Store the digest of a new key, or a given digest."""
    key = None if arguments.sha256 else new_key()
    digest = arguments.sha256 or digest_of(key or "")
    name = check_name(arguments.name or f"key-{digest[:6].lower()}")
    record = _record(arguments, digest, at)
    stored = KeySecrets(reader, arguments.keys_namespace)
    await stored.check_tenant(arguments.tenant)
    for other in await stored.keys():
        if other.record.sha256 == record.sha256:
            raise CommandError(
                f"--sha256: key {other.name} of tenant {other.tenant} has this digest; every key "
                "is its own"
            )
        if (other.tenant, other.name) == (arguments.tenant, name):
            raise CommandError(
                f"key {name} of tenant {arguments.tenant} exists: choose another name, or use "
                "tessera key rotate"
            )
    await stored.add(arguments.tenant, name, record)
    note = await _scope_note(reader, arguments.tenant, record)
    return key_output(arguments, name, record, key, note)


async def _scope_note(reader: Reader, tenant: str, record: KeyRecord) -> str:
    """Say what of a key's scope the tenant may not use now; nothing where that cannot be read."""
    if not record.models and not record.services:
        return ""
    try:
        parsed = [
            parse_object(kind, body).plan_input
            for kind in (INFERENCE_SERVICES, TENANT_BUDGETS)
            for body in await reader.list_objects(kind)
        ]
    except DeniedError:
        return ""
    observed = GatewayObservations(
        services=[each for each in parsed if isinstance(each, ObservedService)],
        budgets=[each for each in parsed if isinstance(each, Budget)],
    )
    directory = build_directory(observed, RateLimitsSpec())
    names = tenant_models(directory, tenant)
    usable = {*names, *(str(model.service) for model in names.values())}
    if not (unknown := [each for each in (*record.models, *record.services) if each not in usable]):
        return ""
    return (
        f"\nwarning: tenant {tenant} may use no model {', '.join(unknown)} now; its models: "
        f"{', '.join(sorted(names)) or 'none'}"
    )


def key_output(
    arguments: SimpleNamespace, name: str, record: KeyRecord, key: str | None, note: str = ""
) -> Output:
    """Return what is said of a new key; the key itself is said here and never again."""
    body = {"tenant": arguments.tenant, "name": name, **wire_format(record)}
    body |= {"key": key} if key else {}
    models = scope_text(record) or "all models of the tenant"
    expiry = f"until {record.expires:%Y-%m-%dT%H:%MZ}" if record.expires else "until it is revoked"
    flags = ", sheddable" if record.sheddable else ""
    flags += "" if record.allow_downgrade else ", no downgrade"
    budget = f", charges up to {budget_text(record)}" if record.budget is not None else ""
    lines = [
        f"key {name} of tenant {arguments.tenant}: for {models}, {expiry}{budget}{flags}{note}"
    ]
    lines += ["", key, "", "This is shown once: store it now."] if key else []
    return Output.of(arguments.output, lines, lambda: body)


def scope_text(record: KeyRecord) -> str:
    """Return the names and services that a key may use; empty for all."""
    names, services = ", ".join(record.models), ", ".join(record.services)
    return f"{names} of {services}" if names and services else names or services


def budget_text(record: KeyRecord) -> str:
    """Return the budget of a key as `--budget` takes it; empty for none."""
    budget = record.budget
    return f"{budget.amount:f}/{budget.window}" if budget is not None else ""


def check_name(name: str) -> str:
    """Return the name of a key; CommandError for one that cannot be."""
    try:
        return _NAME.validate_python(name)
    except ValidationError as error:
        raise CommandError(
            f"name {name}: use at most 63 lower-case letters, digits, dots and hyphens"
        ) from error


def _record(arguments: SimpleNamespace, digest: str, at: datetime) -> KeyRecord:
    tokens = {"perMinute": arguments.tokens_per_minute, "perDay": arguments.tokens_per_day}
    limits = {"requests": {"perMinute": arguments.requests_per_minute}, "totalTokens": tokens}
    expires = arguments.expires and parse_moment("--expires", arguments.expires, at)
    try:
        return KeyRecord.model_validate(
            {
                "sha256": digest.lower(),
                "team": arguments.team,
                "models": _listed(arguments.models),
                "services": _listed(arguments.services),
                "created": at.replace(microsecond=0),
                "expires": expires,
                "rateLimits": limits,
                "budget": _budget(arguments.budget),
                "sheddable": arguments.sheddable,
                "allowDowngrade": not arguments.no_downgrade,
            }
        )
    except ValidationError as error:
        raise CommandError(describe_error(error, _OPTIONS)) from error


def _budget(text: str | None) -> Mapping[str, str] | None:
    if text is None:
        return None
    amount, _, window = text.partition("/")
    return {"amount": amount, "window": window.capitalize()}


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
