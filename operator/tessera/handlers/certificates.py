"""The certificate that this process serves admission with.

Every process reads it from the Secret; the leader also makes and renews it there. New ones go into
the live TLS context, so neither the process nor its listening socket begins anew.
"""

import asyncio
import logging
import math
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import kopf

from tessera.adapters import certificates
from tessera.domain.certificate import (
    CertificateAction,
    CertificatePolicy,
    CertificateSecret,
    KeyPair,
    next_action,
)
from tessera.ports import CertificateStore, Clock, ClusterError

log = logging.getLogger("tessera")


class Certificates:
    """Keeps the TLS context as the Secret says; a leader also keeps the Secret."""

    def __init__(
        self,
        store: CertificateStore,
        *,
        folder: Path,
        terms: CertificatePolicy,
        renews: Callable[[], bool],
        clock: Clock,
        told: Callable[[datetime], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._terms = terms
        self._renews = renews
        self._clock = clock
        self._told = told
        self._loaded: KeyPair | None = None
        self._known: tuple[tuple[str, ...], datetime] | None = None
        """The authorities that callers trust, and since when."""
        self._problem = ""
        self.files = folder / "tls.crt", folder / "tls.key"
        """Certificate and key: Python's TLS reads them from files only."""
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ready = asyncio.Event()
        """Set once there is something to serve with."""

    async def keep(self, every: timedelta) -> None:
        """Look again and again; what goes wrong is said once, and tried anew."""
        while True:
            try:
                await self.look()
            except ClusterError as error:
                if str(error) != self._problem:
                    log.warning("the certificate of admission: %s", error)
                self._problem = str(error)
            else:
                self._problem = ""
            await asyncio.sleep(every.total_seconds())

    async def look(self) -> None:
        """Load what the Secret holds; as the leader, take the next step with it first."""
        held = await self._store.read()
        try:
            if self._renews():
                alive = certificates.alive(held.authorities, self._clock())
                held = await self._renewed(replace(held, authorities=alive))
            if self._renews():
                await self._made_known(held)
        finally:  # also when it could not be made known: what there is may be trusted already
            if held.serving is not None and held.serving != self._loaded:
                self._load(held.serving)

    async def _made_known(self, held: CertificateSecret) -> None:
        await self._store.trust(held.ca_bundle)
        if self._known is None or self._known[0] != held.authorities:
            self._known = held.authorities, self._clock()

    async def _renewed(self, held: CertificateSecret) -> CertificateSecret:
        at = self._clock()
        known = self._known is not None and self._known[0] == held.authorities
        step = next_action(
            self._end(held.serving, held),
            self._end(held.pending, held),
            at=at,
            trusted_for=at - self._known[1] if known and self._known else timedelta(),
            policy=self._terms,
        )
        if step is CertificateAction.KEEP:
            return held
        after = self._after(step, held, at)
        await self._store.write(after)
        log.info("the certificate of admission: %s", step)
        return after

    def _after(
        self, step: CertificateAction, held: CertificateSecret, at: datetime
    ) -> CertificateSecret:
        if step is CertificateAction.PROMOTE:
            return replace(held, serving=held.pending, pending=None)
        made = certificates.issue(self._terms.host, at, self._terms.lifetime)
        authorities = (*held.authorities, made.authority)
        if step is CertificateAction.ISSUE:
            return replace(held, serving=made.pair, pending=None, authorities=authorities)
        return replace(held, pending=made.pair, authorities=authorities)

    def _end(self, pair: KeyPair | None, held: CertificateSecret) -> datetime | None:
        """When a pair ends; None when it does not serve here."""
        if pair is None or (ends := certificates.end(pair)) is None:
            return None
        return ends if certificates.fits(pair, self._terms.host, held.authorities) else None

    def _load(self, pair: KeyPair) -> None:
        ends = certificates.end(pair)
        if ends is None:
            raise ClusterError("tls.crt and tls.key of the Secret are no pair")
        try:
            for path, text in zip(self.files, (pair.certificate, pair.key), strict=True):
                path.touch(mode=0o600)
                path.write_text(text, encoding="utf-8")
            self.context.load_cert_chain(*self.files)
        except OSError as error:  # TLS reports what it refuses as one too
            raise ClusterError(f"tls.crt and tls.key cannot be served: {error}") from error
        self._loaded = pair
        self._told(ends)
        log.info("admission serves with a certificate until %s", ends.isoformat())
        self.ready.set()


class AdmissionServer:
    """kopf's admission server, from the moment on at which there is a certificate."""

    def __init__(self, certificates: Certificates, host: str, port: int) -> None:
        self._certificates = certificates
        self._host = host
        self._port = port

    async def __call__(self, fn: kopf.WebhookFn) -> AsyncIterator[kopf.WebhookClientConfig]:
        await self._certificates.ready.wait()
        certificate, key = self._certificates.files
        server = kopf.WebhookServer(
            addr=self._host,
            port=self._port,
            context=self._certificates.context,
            certfile=certificate,
            pkeyfile=key,
            # kopf would close its socket on a change; the context is kept up to date instead.
            file_check_interval=math.inf,
        )
        async for config in server(fn):
            yield config
