"""The keys of a tenant, as a Secret holds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.api.key_record import KeyRecord
from tessera.api.ref import Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantKeys:
    """One Secret with keys of a tenant; a tenant may have several."""

    secret: Ref
    tenant: str
    records: Mapping[str, KeyRecord] = field(default_factory=dict)
    """By the name of the key."""
    malformed: Mapping[str, str] = field(default_factory=dict)
    """Why a record cannot be read, by its name: these keys are not valid."""
