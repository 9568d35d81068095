"""Has the API server review tokens of ServiceAccounts, a few at a time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from tessera.adapters.oidc_tokens import unverified_issuer
from tessera.domain.gateway.directory import Identity
from tessera.gateway.http.connections import address_owner
from tessera.ports import ClusterError

# Reviews at a time. Known tokens were accepted before, and come back once a minute; the others are
# whatever strangers send.
_KNOWN_PLACES, _UNKNOWN_PLACES = 4, 2
# Of a tenant and of an address: more would wait until they are given up, and so would all others.
MAX_KNOWN_TOKENS, MAX_WAITING_TOKENS = 1024, 64
# Of all senders: while a review takes 10 ms, the last one has its turn before it is given up.
MAX_WAITING_OF_ALL = 1024

# The address that sent an unknown token, or who had a known one when it was accepted.
TokenSender: TypeAlias = str | Identity


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
        self._review = review
        self._own_token = own_token
        self._last_own_token: str | None = None
        # A cluster that changes its issuer accepts the one before for a while.
        self._issuers: set[str] = set()
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
        token = await self._own_token()
        if token is not None and token != self._last_own_token:
            self._last_own_token = token
            if (own_issuer := unverified_issuer(token)) is not None:
                self._issuers.add(own_issuer)
        if not self._issuers:
            raise ClusterError(
                "the gateway does not run with the token of a ServiceAccount, which names the "
                "issuer that others must have"
            )
        return issuer in self._issuers


class ReviewsBusyError(Exception):
    """Too many tokens wait, of one sender or of all."""


class ReviewTurns:
    """Places for which the senders that wait take turns, so that none waits for another's many.

    Of unknown tokens an address is a sender, and a /64 of IPv6 is one address; all clients behind a
    proxy have its address. Of known ones a tenant is.
    """

    def __init__(self, places: int, most_of_sender: int) -> None:
        self._free = places
        self._most_of_sender = most_of_sender
        # By sender, the one whose turn is next first. They wait on when their client leaves, since
        # others may have sent the same token.
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}
        self._count = 0

    @asynccontextmanager
    async def place(self, sender: str) -> AsyncIterator[None]:
        """Hold a place, perhaps after a wait; raises ReviewsBusyError where too many wait."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(sender)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, sender: str) -> None:
        own = len(self._waiting.get(sender, ()))
        if own >= self._most_of_sender:
            raise ReviewsBusyError
        if self._count >= MAX_WAITING_OF_ALL:
            self._displace(own)
        waiting = self._waiting.setdefault(sender, {})
        turn = asyncio.get_running_loop().create_future()
        waiting[turn] = None
        self._count += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled() and turn in waiting:
                del waiting[turn]
                self._count -= 1
                if not waiting:
                    del self._waiting[sender]
            elif not turn.cancelled() and turn.exception() is None:
                # Its turn came in the same moment.
                self._pass_on()
            raise

    def _displace(self, own: int) -> None:
        """Refuse the newest of the sender with most, for one that has fewer than its share.

        Raises ReviewsBusyError for any other.
        """
        senders = len(self._waiting) + (own == 0)
        if (own + 1) * senders > MAX_WAITING_OF_ALL:
            raise ReviewsBusyError
        turn, _ = max(self._waiting.values(), key=len).popitem()
        self._count -= 1
        if not turn.cancelled():
            turn.set_exception(ReviewsBusyError())

    def _pass_on(self) -> None:
        """Give a place to the sender that waits longest for its turn."""
        while self._waiting:
            sender = next(iter(self._waiting))
            waiting = self._waiting.pop(sender)
            turn = next(iter(waiting))
            del waiting[turn]
            self._count -= 1
            if waiting:
                self._waiting[sender] = waiting
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1
