"""Whose token a request to a port inside the cluster has, as the API server says."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from tessera.adapters.review_turns import ReviewTurns

REVIEW_SECONDS = 5.0


async def reviewed_user(
    fields: Iterable[str],
    address: str,
    review: Callable[[str], Awaitable[str | None]],
    turns: ReviewTurns,
) -> str | None:
    """Return the user whose token the fields `Authorization` have; None where the token is none.

    Raises ValueError where it has no token or several, TimeoutError, ReviewsBusyError, and what
    `review` raises.
    """
    given = set(fields)
    if len(given) > 1:
        raise ValueError("several Authorization fields that differ")
    scheme, _, token = "".join(given).partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise ValueError("no bearer token")
    async with asyncio.timeout(REVIEW_SECONDS), turns.place(address):
        return await review(token.strip())
