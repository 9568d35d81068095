"""Turns in which senders of tokens have the API server review them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

# Of all senders: while a review takes 10 ms, the last one has its turn before it is given up.
MAX_WAITING_OF_ALL = 1024


class ReviewsBusyError(Exception):
    """Too many tokens wait, of one sender or of all."""


class ReviewTurns:
    """Places for which the senders that wait take turns, so that none waits for another's many.

    A sender is an address, or who is known to have a token.
    """

    def __init__(self, places: int, most_of_sender: int, most_at_once: int | None = None) -> None:
        """Let so many of a sender wait, and `most_at_once` have a place, or else all places."""
        self._free = places
        self._most_of_sender, self._most_at_once = most_of_sender, most_at_once or places
        self._at_once = Counter[str]()
        # By sender, the one whose turn is next first. They wait on when their client leaves, since
        # others may have sent the same token.
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}
        self._count = 0

    @asynccontextmanager
    async def place(self, sender: str) -> AsyncIterator[None]:
        """Hold a place, perhaps after a wait; raises ReviewsBusyError where too many wait."""
        if self._free and self._at_once[sender] < self._most_at_once:
            self._free -= 1
            self._at_once[sender] += 1
        else:
            await self._wait(sender)
        try:
            yield
        finally:
            self._leave(sender)

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
                self._leave(sender)
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

    def _leave(self, sender: str) -> None:
        """Free a place, and give it to the sender that waits longest for its turn and may."""
        self._free += 1
        self._at_once[sender] -= 1
        if not self._at_once[sender]:
            del self._at_once[sender]
        while self._free:
            ready = (each for each in self._waiting if self._at_once[each] < self._most_at_once)
            following = next(ready, None)
            if following is None:
                return
            waiting = self._waiting.pop(following)
            turn = next(iter(waiting))
            del waiting[turn]
            self._count -= 1
            if waiting:
                self._waiting[following] = waiting
            if not turn.cancelled():
                self._free -= 1
                self._at_once[following] += 1
                turn.set_result(None)
