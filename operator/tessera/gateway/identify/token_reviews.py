"""Has the API server review tokens of ServiceAccounts, a few at a time."""

from collections.abc import Awaitable, Callable, Set
from typing import TypeAlias

from tessera.adapters.oidc_tokens import unverified_issuer
from tessera.adapters.review_turns import ReviewTurns
from tessera.domain.gateway.directory import Identity
from tessera.gateway.http.connections import address_owner
from tessera.ports import ClusterError

# Reviews at a time. Known tokens were accepted before, and come back once a minute; the others are
# whatever strangers send.
_KNOWN_PLACES, _UNKNOWN_PLACES = 4, 2
# Of a tenant and of an address: more would wait until they are given up, and so would all others.
MAX_KNOWN_TOKENS, MAX_WAITING_TOKENS = 1024, 64

# The address that sent an unknown token, or who had a known one when it was accepted. A /64 of IPv6
# is one address, and all clients behind a proxy have its address.
TokenSender: TypeAlias = str | Identity


class ClusterIssuers:
    """Who issues the tokens of the cluster: the issuers of the gateway's own token."""

    def __init__(self, own_token: Callable[[], Awaitable[str | None]]) -> None:
        self._own_token = own_token
        self._last_own_token: str | None = None
        # A cluster that changes its issuer accepts the one before for a while.
        self._issuers: set[str] = set()

    async def known(self) -> Set[str]:
        """Return the issuers; none where the gateway has no token of a ServiceAccount."""
        token = await self._own_token()
        if token is not None and token != self._last_own_token:
            self._last_own_token = token
            if (own_issuer := unverified_issuer(token)) is not None:
                self._issuers.add(own_issuer)
        return self._issuers


class IssuedTokens:
    """Tokens at the ports inside the cluster: what it did not issue is reviewed by nobody."""

    def __init__(
        self,
        review: Callable[[str], Awaitable[str | None]],
        own_token: Callable[[], Awaitable[str | None]],
    ) -> None:
        """Take what TokenReviews takes."""
        self._review, self._cluster = review, ClusterIssuers(own_token)

    async def user(self, token: str) -> str | None:
        """Return the user whose token it is; None for a token that is not valid.

        Raises ClusterError. A gateway that has another credential itself has each one reviewed.
        """
        issuers = await self._cluster.known()
        if issuers and unverified_issuer(token) not in issuers:
            return None
        return await self._review(token)


class TokenReviews:
    """Tokens of the cluster's own issuer; known ones wait neither for strangers nor for many."""

    def __init__(
        self,
        review: Callable[[str], Awaitable[str | None]],
        own_token: Callable[[], Awaitable[str | None]],
    ) -> None:
        """Take `review`, which returns the user of a token.

        `own_token` returns one of the gateway's own ServiceAccount, which has the cluster's issuer.
        """
        self._review, self._cluster = review, ClusterIssuers(own_token)
        self._known = ReviewTurns(_KNOWN_PLACES, MAX_KNOWN_TOKENS)
        self._unknown = ReviewTurns(_UNKNOWN_PLACES, MAX_WAITING_TOKENS)

    async def user(self, token: str, issuer: str, sender: TokenSender) -> str | None:
        """Return the user whose token it is; None for a token that is not valid.

        Raises ClusterError while tokens cannot be reviewed, and ReviewsBusyError.
        """
        if not await self._is_of_cluster(issuer):
            return None
        if isinstance(sender, Identity):
            place = self._known.place(sender.tenant)
        else:
            place = self._unknown.place(address_owner(sender))
        async with place:
            return await self._review(token)

    async def _is_of_cluster(self, issuer: str) -> bool:
        issuers = await self._cluster.known()
        if not issuers:
            raise ClusterError(
                "the gateway does not run with the token of a ServiceAccount, which names the "
                "issuer that others must have"
            )
        return issuer in issuers
