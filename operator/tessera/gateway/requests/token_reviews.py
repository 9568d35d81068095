"""Has the API server review tokens of ServiceAccounts, a few at a time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tessera.adapters.oidc_tokens import unverified_issuer
from tessera.gateway.http.connections import address_owner
from tessera.ports import ClusterError

# Reviews at a time. Known tokens were accepted before, and come back once a minute; the others are
# whatever strangers send.
_KNOWN_PLACES, _UNKNOWN_PLACES = 4, 2
MAX_WAITING_TOKENS = 64


class TokenReviews:
    """Tokens of the cluster's own issuer; known ones wait for no unknown one."""

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
        self._known = asyncio.Semaphore(_KNOWN_PLACES)
        self._unknown = AddressTurns(_UNKNOWN_PLACES)

    async def user(self, token: str, issuer: str, address: str | None) -> str | None:
        """Return the user whose token it is; None for a token that is not valid.

        `address` sent an unknown token; it is None for one that was accepted before. Raises
        ClusterError while tokens cannot be reviewed, and ReviewsBusyError.
        """
        if not await self._is_of_cluster(issuer):
            return None
        if address is None:
            async with self._known:
                return await self._review(token)
        async with self._unknown.place(address):
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
    """Too many unknown tokens of one address wait."""


class AddressTurns:
    """Places for which the addresses that wait take turns, so that none waits for another's many.

    A /64 of IPv6 counts as one address, and all clients behind a proxy have its address.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        # By address, the one whose turn is next first; the connections bound them.
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}

    @asynccontextmanager
    async def place(self, address: str) -> AsyncIterator[None]:
        """Hold a place, perhaps after a wait; raises ReviewsBusyError where too many wait."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(address_owner(address))
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, address: str) -> None:
        waiting = self._waiting.setdefault(address, {})
        if len(waiting) >= MAX_WAITING_TOKENS:
            raise ReviewsBusyError
        turn = asyncio.get_running_loop().create_future()
        waiting[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # Its turn came in the same moment.
                self._pass_on()
            elif turn in waiting:
                del waiting[turn]
                if not waiting:
                    del self._waiting[address]
            raise

    def _pass_on(self) -> None:
        """Give a place to the address that waits longest for its turn."""
        while self._waiting:
            address = next(iter(self._waiting))
            waiting = self._waiting.pop(address)
            turn = next(iter(waiting))
            del waiting[turn]
            if waiting:
                self._waiting[address] = waiting
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1
