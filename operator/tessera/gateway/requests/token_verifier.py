"""Verifies tokens of ServiceAccounts and of OIDC issuers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from tessera.adapters.oidc_tokens import (
    InvalidTokenError,
    IssuerError,
    OidcTokens,
    unverified_issuer,
)
from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.oidc import claims_identity, service_account_identity
from tessera.domain.gateway.reasons import RequestReason
from tessera.ports import ClusterError

log = logging.getLogger("tessera")

# A token stays valid so long after its ServiceAccount or its tenant was deleted.
VERDICT_SECONDS = 60.0
# Strangers can make a gateway review tokens, so the API server gets few at a time.
_MAX_REVIEWS = 4
_MAX_WAITING = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenVerdict:
    """Whose token it is, or why it is refused."""

    identity: Identity | None = None
    reason: RequestReason | None = None
    seconds: float = 0.0
    """How long the verdict may be remembered."""


class TokenVerifier:
    """Asks the API server or the keys of an issuer whose token it is."""

    def __init__(
        self,
        review: Callable[[str], Awaitable[str | None]] | None,
        issuers: Mapping[str, OidcTokens],
    ) -> None:
        """Take `review`, which returns the user of a token that an API server issued.

        Without it only tokens of `issuers` are accepted, which are named by their URLs.
        """
        self._review = review
        self._issuers = issuers
        self._reviews = asyncio.Semaphore(_MAX_REVIEWS)
        self._waiting = 0
        self._last_problem = ""

    async def verify(self, token: str, directory: Directory) -> TokenVerdict:
        """Return whose token it is, or why it is refused."""
        try:
            identity = await self._identify(token, directory)
        except InvalidTokenError:
            identity = RequestReason.INVALID_TOKEN
        except (ClusterError, IssuerError) as error:
            self._report(str(error))
            identity = RequestReason.TOKENS_NOT_VERIFIED
        if isinstance(identity, RequestReason):
            return TokenVerdict(reason=identity)
        self._last_problem = ""
        return TokenVerdict(identity=identity, seconds=VERDICT_SECONDS)

    async def _identify(self, token: str, directory: Directory) -> Identity | RequestReason:
        issuer = unverified_issuer(token)
        if issuer is None:
            return RequestReason.INVALID_TOKEN
        tokens = self._issuers.get(issuer)
        if tokens is not None:
            return claims_identity(tokens.issuer, await tokens.verify(token), directory)
        user = await self._reviewed(token)
        return (
            RequestReason.INVALID_TOKEN
            if user is None
            else service_account_identity(user, directory)
        )

    async def _reviewed(self, token: str) -> str | None:
        if self._review is None:
            return None
        if self._waiting >= _MAX_WAITING:
            raise ClusterError("too many tokens wait for a review")
        self._waiting += 1
        try:
            async with self._reviews:
                return await self._review(token)
        finally:
            self._waiting -= 1

    def _report(self, problem: str) -> None:
        if problem != self._last_problem:
            log.warning("tokens cannot be verified: %s", problem)
        self._last_problem = problem
