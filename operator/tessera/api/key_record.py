"""A key of the gateway as its Secret holds it: everything but the key itself."""

from typing import Annotated

from pydantic import AwareDatetime, Field, StringConstraints

from tessera.api.inference_service import ServedName
from tessera.api.meta import GROUP, Amount, Wire
from tessera.api.rate_limits import RateLimitsSpec, TeamName
from tessera.api.tenant_budget import WindowName

# Label of a Secret with keys: the tenant, which is the name of a TenantBudget.
TENANT_LABEL = f"{GROUP}/tenant"
KEYS_TYPE = f"{GROUP}/keys"
KEY_PREFIX = "tsk-"

# Name of a key within its tenant, which is also its name in the Secret.
KeyName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=63)
]
# An InferenceService, as namespace/name.
ServiceRef = Annotated[
    str,
    StringConstraints(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=127
    ),
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", max_length=64)]

_FORMER_DIGITS = 8


def former_name(name: str, sha256: str) -> str:
    """Return the name that a rotation gives to the key that had this name and digest."""
    return f"{name}.{sha256[:_FORMER_DIGITS]}"


def line_of(name: str, sha256: str) -> str:
    """Return the name that a key had before it was rotated: its own, if it was not."""
    return name.removesuffix(former_name("", sha256))


class KeyBudget(Wire):
    """What requests with a key may be charged."""

    amount: Annotated[Amount, Field(ge=0, le=10**15)]
    """Maximum in one window, in the currency of the tenant's budget."""

    window: WindowName
    """Calendar window, in the time zone of the tenant's budget."""


class KeyRecord(Wire):
    """Digest and scope of one key."""

    sha256: Sha256
    """SHA-256 of the key, in hexadecimal digits."""

    team: TeamName | None = None
    """Team of the tenant whose limits apply to the key."""

    models: Annotated[tuple[ServedName, ...], Field(max_length=64)] = ()
    """Models that the key may use, by names that clients send; empty allows all that its tenant may
    use."""

    services: Annotated[tuple[ServiceRef, ...], Field(max_length=64)] = ()
    """The only InferenceServices that the key may use, as namespace/name, by whichever of their
    names; empty allows all."""

    created: AwareDatetime | None = None
    """When it was created."""

    expires: AwareDatetime | None = None
    """When it ends; omitted, it is valid until it is revoked."""

    rate_limits: RateLimitsSpec = Field(default_factory=RateLimitsSpec)
    """Limits of the key, besides those of its team and tenant."""

    budget: KeyBudget | None = None
    """What requests with the key may be charged, besides the limits of its tenant."""

    sheddable: bool = False
    """Requests with the key are refused first where there is no room, and make no other wait."""

    allow_downgrade: bool = True
    """Of a ModelRoute, other targets than the last may answer requests with the key."""
