"""Verifies tokens of ServiceAccounts and of OIDC issuers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

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

# Strangers can make a gateway review tokens, so the API server gets few at a time.
_MAX_REVIEWS = 4
_MAX_WAITING = 64


# Whose token it is, or why it is refused.
TokenVerdict: TypeAlias = Identity | RequestReason


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
            verdict = await self._identify(token, directory)
        except InvalidTokenError:
            return RequestReason.INVALID_TOKEN
        except (ClusterError, IssuerError) as error:
            if str(error) != self._last_problem:
                self._last_problem = str(error)
                log.warning("tokens cannot be verified: %s", error)
            return RequestReason.TOKENS_NOT_VERIFIED
        if isinstance(verdict, Identity):
            self._last_problem = ""
        return verdict

    async def _identify(self, token: str, directory: Directory) -> TokenVerdict:
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
