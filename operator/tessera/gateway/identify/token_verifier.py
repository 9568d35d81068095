"""Verifies tokens of ServiceAccounts and of OIDC issuers."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from tessera.adapters.oidc_tokens import (
    InvalidTokenError,
    IssuerError,
    OidcTokens,
    claims_audience,
    unverified_issuer,
)
from tessera.adapters.review_turns import ReviewsBusyError
from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.gateway.oidc import claims_identity, service_account_identity
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.quality.names import GATE_ACCOUNT, GATE_AUDIENCE
from tessera.gateway.identify.token_reviews import TokenReviews, TokenSender
from tessera.ports import ClusterError

log = logging.getLogger("tessera")


# Whose token it is, or why it is refused.
TokenVerdict: TypeAlias = Identity | RequestReason
_GATES = re.compile(rf"system:serviceaccount:([^:]+):{GATE_ACCOUNT}")


class TokenVerifier:
    """Asks the API server or the keys of an issuer whose token it is."""

    def __init__(
        self,
        reviews: TokenReviews | None,
        issuers: Mapping[str, OidcTokens],
        gates: TokenReviews | None = None,
    ) -> None:
        """Take the reviews of ServiceAccounts' tokens; None where these are not accepted.

        Tokens of `issuers`, which are named by their URLs, are verified without the API server.
        `gates` reviews those of Jobs of gates, which are for an audience of their own.
        """
        self._reviews = reviews
        self._issuers = issuers
        self._gates = gates
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
        if self._gates is not None and claims_audience(token, GATE_AUDIENCE):
            user = await self._gates.user(token, issuer, sender)
            return _gate_identity(user or "", directory)
        tokens = self._issuers.get(issuer)
        if tokens is not None:
            return claims_identity(tokens.issuer, await tokens.verify(token), directory)
        user = await self._reviews.user(token, issuer, sender) if self._reviews else None
        return (
            RequestReason.INVALID_TOKEN
            if user is None
            else service_account_identity(user, directory)
        )


def _gate_identity(user: str, directory: Directory) -> TokenVerdict:
    """Return the identity of Jobs of gates in a namespace; no other ServiceAccount has one."""
    account = _GATES.fullmatch(user)
    if account is None:
        return RequestReason.INVALID_TOKEN
    identity = service_account_identity(user, directory)
    return replace(identity, evaluates=account[1]) if isinstance(identity, Identity) else identity
