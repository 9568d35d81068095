"""Options of `tessera key`."""

from tessera.cli.options import (
    CLUSTER_OPTIONS,
    INTEGER,
    Command,
    Group,
    argument,
    option,
    output_options,
)

_KEYS_NAMESPACE = option(
    "--keys-namespace",
    "namespace of the Secrets of keys, gateway.keysNamespace of the chart (default: that of the "
    "gateway, $TESSERA_NAMESPACE or tessera-system, with -keys)",
    metavar="NAME",
)

_KEY_OPTIONS = (_KEYS_NAMESPACE, *CLUSTER_OPTIONS, *output_options())

_TENANT = option("--tenant", "the tenant: name of its TenantBudget", required=True, metavar="NAME")

_KEY_ARGUMENT = argument("name", "name of the key")

KEY_CREATE = Command(
    "create",
    "create a key for a tenant and show it once",
    "Creates a key of 256 random bits. Only its SHA-256 is stored, in a Secret of the namespace "
    "of keys, so it cannot be shown again. Gateways know it within 2 seconds.",
    argument("name", "name of the key, unique within the tenant", required=False),
    _TENANT,
    option("--team", "team of the tenant, whose limits apply too", metavar="NAME"),
    option("--models", "only these models (default: all of the tenant)", metavar="NAME,..."),
    option(
        "--services",
        "only these InferenceServices, whatever else has their names",
        metavar="NAMESPACE/NAME,...",
    ),
    option("--expires", "end, such as 90d or 2026-12-31T00:00:00Z", metavar="WHEN"),
    option("--requests-per-minute", "limit of the key", **INTEGER),
    option("--tokens-per-minute", "limit of prompts and answers together", **INTEGER),
    option("--tokens-per-day", "limit of prompts and answers together", **INTEGER),
    option(
        "--budget",
        "what its requests may be charged in a calendar window, such as 20/Month, in the currency "
        "of the TenantBudget",
        metavar="AMOUNT/WINDOW",
    ),
    option(
        "--sheddable",
        "refuse its requests first where there is no room, and let all others go before them",
        is_flag=True,
    ),
    option(
        "--no-downgrade",
        "let the last target of a ModelRoute alone answer its requests",
        is_flag=True,
    ),
    option("--sha256", "store this SHA-256 of a key that exists instead", metavar="HEX"),
    *_KEY_OPTIONS,
    module="tessera.cli.key.create",
)

KEY_LIST = Command(
    "list",
    "the keys of tenants",
    "Lists names, scopes and the first digits of the SHA-256; the keys themselves are nowhere.",
    option("--tenant", "only this tenant", metavar="NAME"),
    *_KEY_OPTIONS,
    module="tessera.cli.key.list_keys",
)

KEY_ROTATE = Command(
    "rotate",
    "create a new key with the name and scope of an old one",
    "Creates a new key and shows it once. The old one stays valid for a while, under its name and "
    "the first digits of its SHA-256.",
    _KEY_ARGUMENT,
    _TENANT,
    option("--expire-old-in", "how long the old key stays valid", default="24h", metavar="SPAN"),
    *_KEY_OPTIONS,
    module="tessera.cli.key.rotate",
)

KEY_REVOKE = Command(
    "revoke",
    "end a key now",
    "Removes the key. Gateways refuse new requests with it within 2 seconds; running ones end.",
    _KEY_ARGUMENT,
    _TENANT,
    *_KEY_OPTIONS,
    module="tessera.cli.key.revoke",
)

KEY = Group(
    "key",
    short_help="keys of tenants for the gateway",
    help="Commands for the keys with which clients use the gateway.",
    commands=[KEY_CREATE, KEY_LIST, KEY_ROTATE, KEY_REVOKE],
)
