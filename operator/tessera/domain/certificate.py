"""When is the certificate of admission made, made known, and put to use?

Whoever calls admission must trust an authority before anybody serves with it. So a new pair waits
as `coming` until its authority has been known for a while, and the old one serves meanwhile.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate to serve with, and its key, as PEM."""

    certificate: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the Secret of admission holds."""

    serving: Pair | None = None
    coming: Pair | None = None
    authorities: tuple[str, ...] = ()
    """Certificates of everybody who signed or will sign, as PEM: who calls trusts them all."""
    version: str | None = None
    """The Secret's resourceVersion; None while there is no Secret."""

    @property
    def bundle(self) -> str:
        return "".join(self.authorities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What certificates are for, how long they live, and how new ones are brought in."""

    host: str
    """The DNS name under which admission is called."""
    life: timedelta = timedelta(days=90)
    settle: timedelta = timedelta(seconds=60)
    """An authority is known so long before a certificate of it is used."""

    @property
    def renew_before(self) -> timedelta:
        """So long before its end a certificate gets a successor: two thirds are over then."""
        return self.life / 3


class Step(StrEnum):
    """What is to be done with the certificates."""

    KEEP = "Keep"
    ISSUE = "Issue"
    """Nothing can be served: a new pair serves at once."""
    PREPARE = "Prepare"
    """A new pair is made known, and waits."""
    PROMOTE = "Promote"
    """The pair that waited serves from now on."""


def next_step(
    serving: datetime | None,
    coming: datetime | None,
    *,
    at: datetime,
    known_for: timedelta,
    terms: Terms,
) -> Step:
    """The next step, given when the two usable pairs end; None where there is no usable one.

    `known_for` is how long all authorities that are held have been trusted by whoever calls.
    """
    if coming is not None and coming <= at:
        coming = None
    if serving is None or serving <= at:
        return Step.ISSUE if coming is None else Step.PROMOTE
    if coming is not None:
        return Step.PROMOTE if known_for >= terms.settle else Step.KEEP
    left = serving - at
    return Step.KEEP if terms.renew_before < left <= terms.life else Step.PREPARE
