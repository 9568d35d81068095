"""When the certificate of admission is created, announced and used.

The API server must trust an authority before a webhook serves with it. So a new pair waits as
`pending` until its authority has been known for a while, and the old one serves meanwhile.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate to serve with, and its key, as PEM."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateSecret:
    """What the Secret of admission holds."""

    serving: KeyPair | None = None
    pending: KeyPair | None = None
    authorities: tuple[str, ...] = ()
    """Certificates of everybody who signed or will sign, as PEM: who calls trusts them all."""
    version: str | None = None
    """The Secret's resourceVersion; None while there is no Secret."""

    @property
    def ca_bundle(self) -> str:
        return "".join(self.authorities)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatePolicy:
    """What certificates are for, how long they live, and how new ones are brought in."""

    host: str
    """The DNS name under which admission is called."""
    lifetime: timedelta = timedelta(days=90)
    trust_delay: timedelta = timedelta(seconds=60)
    """An authority is known so long before a certificate of it is used."""


class CertificateAction(StrEnum):
    """What is to be done with the certificates."""

    KEEP = "Keep"
    ISSUE = "Issue"
    """Nothing can be served: a new pair serves at once."""
    PREPARE = "Prepare"
    """A new pair is made known, and waits."""
    PROMOTE = "Promote"
    """The pair that waited serves from now on."""


def next_action(
    serving: datetime | None,
    pending: datetime | None,
    *,
    at: datetime,
    trusted_for: timedelta,
    policy: CertificatePolicy,
) -> CertificateAction:
    """Return the next step by when the two usable pairs end, None for a pair that is unusable.

    `known_for` is how long all present authorities have been trusted by the API server.
    """
    if pending is not None and pending <= at:
        pending = None
    if serving is None or serving <= at:
        return CertificateAction.ISSUE if pending is None else CertificateAction.PROMOTE
    if pending is not None:
        return (
            CertificateAction.PROMOTE
            if trusted_for >= policy.trust_delay
            else CertificateAction.KEEP
        )
    # A certificate gets a successor when two thirds of its life are over.
    remaining = serving - at
    return (
        CertificateAction.KEEP
        if policy.lifetime / 3 < remaining <= policy.lifetime
        else CertificateAction.PREPARE
    )
