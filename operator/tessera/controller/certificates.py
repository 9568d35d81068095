"""The webhook certificate of this process.

Every process reads it from the Secret; the leader also issues and renews it there. A new
certificate is loaded into the live TLS context, so that neither the process nor its listening
socket restarts.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from tessera.adapters import certificates
from tessera.domain.serving_certificate import (
    CertificateAction,
    CertificatePolicy,
    CertificateSecret,
    KeyPair,
    next_action,
)
from tessera.ports import CertificateStore, Clock, ClusterError

log = logging.getLogger("tessera")


def certificate_files(folder: Path) -> tuple[Path, Path]:
    """Return the files of certificate and key: Python's TLS reads them from files only."""
    return folder / "tls.crt", folder / "tls.key"


def write_pair(files: tuple[Path, Path], pair: KeyPair) -> None:
    """Write certificate and key to their files."""
    for path, text in zip(files, (pair.certificate, pair.key), strict=True):
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")


def server_context(files: tuple[Path, Path]) -> ssl.SSLContext:
    """Return the TLS context of a server with this certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    return context


class CertificateRotator:
    """Keeps the TLS context in line with the Secret; a leader also keeps the Secret."""

    def __init__(
        self,
        store: CertificateStore,
        *,
        folder: Path,
        terms: CertificatePolicy,
        may_renew: Callable[[], bool],
        clock: Clock,
        on_loaded: Callable[[datetime], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._terms = terms
        self._may_renew = may_renew
        self._clock = clock
        self._on_loaded = on_loaded
        self._loaded: KeyPair | None = None
        self._trusted: tuple[tuple[str, ...], datetime] | None = None
        """The authorities that the API server trusts, and since when."""
        self._problem = ""
        self.files = certificate_files(folder)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ready = asyncio.Event()
        """Set once there is a certificate to serve with."""

    async def run(self, interval: timedelta) -> None:
        """Sync at every interval; a repeated error is logged once, and retried."""
        while True:
            try:
                await self.sync()
            except ClusterError as error:
                if str(error) != self._problem:
                    log.warning("webhook certificate: %s, retrying", error)
                self._problem = str(error)
            else:
                self._problem = ""
            await asyncio.sleep(interval.total_seconds())

    async def sync(self) -> None:
        """Load the certificate of the Secret.

        The leader first takes the next step of its renewal.
        """
        secret = await self._store.read()
        try:
            if self._may_renew():
                unexpired = certificates.unexpired(secret.authorities, self._clock())
                secret = await self._renew(replace(secret, authorities=unexpired))
            if self._may_renew():
                await self._publish_authorities(secret)
        finally:  # also after an error: the stored certificate may be trusted already
            if secret.serving is not None and secret.serving != self._loaded:
                self._load(secret.serving)

    async def _publish_authorities(self, secret: CertificateSecret) -> None:
        await self._store.trust(secret.ca_bundle)
        if self._trusted is None or self._trusted[0] != secret.authorities:
            self._trusted = secret.authorities, self._clock()

    async def _renew(self, secret: CertificateSecret) -> CertificateSecret:
        at = self._clock()
        is_trusted = self._trusted is not None and self._trusted[0] == secret.authorities
        step = next_action(
            self._usable_until(secret.serving, secret),
            self._usable_until(secret.pending, secret),
            at=at,
            trusted_for=at - self._trusted[1] if is_trusted and self._trusted else timedelta(),
            policy=self._terms,
        )
        if step is CertificateAction.KEEP:
            return secret
        renewed = self._take_step(step, secret, at)
        await self._store.write(renewed)
        log.info("webhook certificate: %s", step)
        return renewed

    def _take_step(
        self, step: CertificateAction, secret: CertificateSecret, at: datetime
    ) -> CertificateSecret:
        if step is CertificateAction.PROMOTE:
            return replace(secret, serving=secret.pending, pending=None)
        issued = certificates.issue(self._terms.host, at, self._terms.lifetime)
        authorities = (*secret.authorities, issued.authority)
        if step is CertificateAction.ISSUE:
            return replace(secret, serving=issued.pair, pending=None, authorities=authorities)
        return replace(secret, pending=issued.pair, authorities=authorities)

    def _usable_until(self, pair: KeyPair | None, secret: CertificateSecret) -> datetime | None:
        """Return when a pair expires; None when it is not valid for this service."""
        if pair is None or (expires := certificates.expiry(pair)) is None:
            return None
        return (
            expires
            if certificates.is_valid_for(pair, self._terms.host, secret.authorities)
            else None
        )

    def _load(self, pair: KeyPair) -> None:
        expires = certificates.expiry(pair)
        if expires is None:
            raise ClusterError("tls.crt and tls.key of the Secret do not match")
        try:
            write_pair(self.files, pair)
            self.context.load_cert_chain(*self.files)
        except OSError as error:  # TLS reports invalid files as an OSError too
            raise ClusterError(f"tls.crt and tls.key cannot be loaded: {error}") from error
        self._loaded = pair
        self._on_loaded(expires)
        log.info("webhook certificate loaded, expires %s", expires.isoformat())
        self.ready.set()
