"""Who sends a request: the holder of a key, of a ServiceAccount's token, or of an OIDC token."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from tessera.adapters.clock import now as utc_now
from tessera.domain.gateway.access import key_identity
from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.identify.senders import credential_of
from tessera.gateway.identify.token_reviews import TokenSender
from tessera.gateway.identify.token_verifier import TokenVerdict
from tessera.gateway.refusals import RequestError

_MAX_VERDICTS = 10_000
# A token stays valid so long after its ServiceAccount or its tenant was deleted.
VERDICT_SECONDS = 60.0
_REFUSAL_SECONDS = 10.0
# A verdict of a token that is used so long after is renewed, and holds meanwhile.
_RENEWAL_SECONDS = 40.0
_RETRY_SECONDS = 2.0
_VERIFY_SECONDS = 6.0


class Authenticator:
    """Identifies senders.

    Keys are looked up in the directory. Tokens are verified, once a minute each.
    """

    def __init__(
        self,
        verify: Callable[[str, Directory, TokenSender], Awaitable[TokenVerdict]],
        *,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take `verify`, which gets a token with its sender."""
        self._verify_token = verify
        self._clock = clock
        self._verdicts = _VerdictCache(monotonic)
        self._verifying: dict[bytes, asyncio.Task[TokenVerdict]] = {}
        """By the hash of the token."""

    async def identify(
        self, headers: Mapping[bytes, bytes], directory: Directory, address: str
    ) -> Identity:
        """Return the sender.

        Raises RequestError with status 401, or 503 while tokens cannot be verified.
        """
        credential = credential_of(headers)
        if credential is None:
            raise RequestError(RequestReason.MISSING_KEY)
        digest = hashlib.sha256(credential).digest()
        # The digest of 256 random bits tells nothing of other digests, so finding it by a hash
        # table leaks nothing; the comparison itself takes constant time.
        key = directory.keys.get(digest.hex())
        if key is None and credential.count(b".") == 2:
            return await self._identify_token(credential, digest, directory, address)
        if key is not None and not hmac.compare_digest(key.digest, digest.hex()):
            key = None
        tenantless = directory.tenantless_keys.get(digest.hex()) if key is None else None
        identity = key_identity(key, self._clock())
        if isinstance(identity, RequestReason):
            if tenantless is not None:
                identity = RequestReason.UNKNOWN_TENANT
            known = key or tenantless or directory.revoked_keys.get(digest.hex())
            error = RequestError(identity)
            if known is not None:
                error.sender = Identity(tenant=known.tenant, team=known.team, key=known.line)
            raise error
        return identity

    async def _identify_token(
        self, token: bytes, digest: bytes, directory: Directory, address: str
    ) -> Identity:
        verdict = self._verdicts.get(digest)
        if verdict is None or self._verdicts.is_due(digest):
            verifying = self._verifying.get(digest)
            if verifying is None:
                sender = self._verdicts.known_identity(digest) or address
                verifying = asyncio.create_task(self._verify(token, digest, directory, sender))
                self._verifying[digest] = verifying
            if verdict is None:
                # A client that goes away cancels its own request, not the others with this token.
                await asyncio.wait((verifying,))
                verdict = verifying.result()
        if isinstance(verdict, RequestReason):
            raise RequestError(verdict)
        return verdict

    async def _verify(
        self, token: bytes, digest: bytes, directory: Directory, sender: TokenSender
    ) -> TokenVerdict:
        """Return the verdict for all requests with this token."""
        verdict: TokenVerdict = RequestReason.TOKENS_NOT_VERIFIED
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_VERIFY_SECONDS):
                    text = token.decode("latin-1")
                    verdict = await self._verify_token(text, directory, sender)
        finally:
            del self._verifying[digest]
        self._verdicts.put(digest, verdict)
        return verdict


@dataclass(slots=True)
class _Verdict:
    verdict: TokenVerdict
    until: float
    """Monotonic seconds until which it holds."""
    renew_at: float
    """From then on a request has it renewed."""


class _VerdictCache:
    """Verdicts by the hash of the token; neither refusals nor other tenants displace known ones."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._accepted: dict[bytes, _Verdict] = {}
        # The oldest of a tenant first.
        self._accepted_by_tenant: dict[str, dict[bytes, None]] = {}
        self._refused: dict[bytes, _Verdict] = {}

    def get(self, digest: bytes) -> TokenVerdict | None:
        """Return the verdict that holds now."""
        remembered = self._accepted.get(digest) or self._refused.get(digest)
        if remembered is None or self._monotonic() >= remembered.until:
            return None
        return remembered.verdict

    def known_identity(self, digest: bytes) -> Identity | None:
        """Return whose token it was the last time, if it was accepted then."""
        accepted = self._accepted.get(digest)
        verdict = accepted.verdict if accepted is not None else None
        return verdict if isinstance(verdict, Identity) else None

    def is_due(self, digest: bytes) -> bool:
        """Return whether the verdict is to be renewed now, once in a while."""
        accepted, now = self._accepted.get(digest), self._monotonic()
        if accepted is None or now < accepted.renew_at:
            return False
        accepted.renew_at = now + _RETRY_SECONDS
        return True

    def put(self, digest: bytes, verdict: TokenVerdict) -> None:
        if verdict is RequestReason.TOKENS_NOT_VERIFIED:
            return
        self._forget(digest)
        now = self._monotonic()
        renew_at = now + _RENEWAL_SECONDS
        if not isinstance(verdict, Identity):
            self._refused[digest] = _Verdict(verdict, now + _REFUSAL_SECONDS, renew_at)
            if len(self._refused) > _MAX_VERDICTS:
                del self._refused[next(iter(self._refused))]
            return
        self._accepted[digest] = _Verdict(verdict, now + VERDICT_SECONDS, renew_at)
        self._accepted_by_tenant.setdefault(verdict.tenant, {})[digest] = None
        if len(self._accepted) > _MAX_VERDICTS:
            most = max(self._accepted_by_tenant.values(), key=len)
            self._forget(next(iter(most)))

    def _forget(self, digest: bytes) -> None:
        self._refused.pop(digest, None)
        identity = self.known_identity(digest)
        if identity is not None:
            del self._accepted[digest], self._accepted_by_tenant[identity.tenant][digest]
            if not self._accepted_by_tenant[identity.tenant]:
                del self._accepted_by_tenant[identity.tenant]
