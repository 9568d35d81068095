"""Verifies tokens of ServiceAccounts and of OIDC issuers."""

import logging
from collections.abc import Mapping
from typing import TypeAlias

from tessera.adapters.oidc_tokens import (
    InvalidTokenError,
    IssuerError,
    OidcTokens,
    unverified_issuer,
)
from tessera.adapters.review_turns import ReviewsBusyError
from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.oidc import claims_identity, service_account_identity
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.identify.token_reviews import TokenReviews, TokenSender
from tessera.ports import ClusterError

log = logging.getLogger("tessera")


# Whose token it is, or why it is refused.
TokenVerdict: TypeAlias = Identity | RequestReason


class TokenVerifier:
    """Asks the API server or the keys of an issuer whose token it is."""

    def __init__(self, reviews: TokenReviews | None, issuers: Mapping[str, OidcTokens]) -> None:
        """Take the reviews of ServiceAccounts' tokens; None where these are not accepted.

        Tokens of `issuers`, which are named by their URLs, are verified without the API server.
        """
        self._reviews = reviews
        self._issuers = issuers
        self._last_problem = ""

    async def verify(self, token: str, directory: Directory, sender: TokenSender) -> TokenVerdict:
        """Return whose token it is, or why it is refused."""
        try:
            verdict = await self._identify(token, directory, sender)
        except InvalidTokenError:
            return RequestReason.INVALID_TOKEN
        except ReviewsBusyError:
            # A client that sends many tokens must not fill the log.
            return RequestReason.TOKENS_NOT_VERIFIED
        except (ClusterError, IssuerError) as error:
            if str(error) != self._last_problem:
                self._last_problem = str(error)
                log.warning("tokens cannot be verified: %s", error)
            return RequestReason.TOKENS_NOT_VERIFIED
        if isinstance(verdict, Identity):
            self._last_problem = ""
        return verdict

    async def _identify(
        self, token: str, directory: Directory, sender: TokenSender
    ) -> TokenVerdict:
        issuer = unverified_issuer(token)
        if issuer is None:
            return RequestReason.INVALID_TOKEN
        tokens = self._issuers.get(issuer)
        if tokens is not None:
            return claims_identity(tokens.issuer, await tokens.verify(token), directory)
        user = await self._reviews.user(token, issuer, sender) if self._reviews else None
        return (
            RequestReason.INVALID_TOKEN
            if user is None
            else service_account_identity(user, directory)
        )
