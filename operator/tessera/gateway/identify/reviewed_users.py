"""Whose token a request to a port inside the cluster has, as the API server says."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from tessera.adapters.review_turns import ReviewTurns

REVIEW_SECONDS = 5.0


async def reviewed_user(
    request: web.Request, review: Callable[[str], Awaitable[str | None]], turns: ReviewTurns
) -> str | None:
    """Return the user whose token a request has; None where the token is none.

    Raises ValueError where it has no token or several, TimeoutError, ReviewsBusyError, and what
    `review` raises.
    """
    given = set(request.headers.getall("Authorization", ()))
    if len(given) > 1:
        raise ValueError("several Authorization fields that differ")
    scheme, _, token = "".join(given).partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise ValueError("no bearer token")
    async with asyncio.timeout(REVIEW_SECONDS), turns.place(request.remote or ""):
        return await review(token.strip())
