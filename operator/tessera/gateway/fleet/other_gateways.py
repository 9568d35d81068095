"""What the other gateway pods know of a request."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
from pydantic import ValidationError

from tessera.domain.explain.request import RequestExplanations
from tessera.ports import ClusterError

_TIMEOUT = aiohttp.ClientTimeout(total=5)


class OtherGateways:
    """Asks the ports for the platform of the other pods."""

    def __init__(self, find: Callable[[], Awaitable[Mapping[str, str]]], port: int) -> None:
        """Take `find`, which returns addresses by the names of pods, or raises ClusterError."""
        self._find, self._port = find, port

    async def explain(
        self, request_id: str, authorization: str
    ) -> Mapping[str, RequestExplanations | None]:
        """Return by pod what it says to the holder of a token; None where it gave no answer."""
        try:
            pods = await self._find()
        except ClusterError as error:
            return {f"all others ({error})": None}
        names = sorted(pods)
        headers = {"Authorization": authorization}
        async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=headers) as session:
            answers = await asyncio.gather(
                *(self._ask(session, pods[name], request_id) for name in names)
            )
        return dict(zip(names, answers, strict=True))

    async def _ask(
        self, session: aiohttp.ClientSession, address: str, request_id: str
    ) -> RequestExplanations | None:
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{self._port}/explanations"
        try:
            # It asks no other pod.
            query = {"request": request_id, "pods": "own"}
            async with session.get(url, params=query, raise_for_status=True) as response:
                return RequestExplanations.model_validate_json(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError, ValidationError):
            return None
