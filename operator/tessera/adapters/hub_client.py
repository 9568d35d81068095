"""The model hub: resolves revisions to commits anonymously, without a token."""

import asyncio
import json
import re
from collections.abc import Mapping
from urllib.parse import quote

import httpx

from tessera.api.reasons import RevisionReason
from tessera.api.template_version import Platform
from tessera.domain.names import PUBLIC_HUB
from tessera.domain.observed.snapshot import Resolution, RevisionQuery

# The response lists all files of a model.
_MAX_BYTES = 4 * 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REASONS: Mapping[int, RevisionReason] = {
    httpx.codes.UNAUTHORIZED: RevisionReason.TOKEN_REQUIRED,
    httpx.codes.FORBIDDEN: RevisionReason.TOKEN_REQUIRED,
    httpx.codes.NOT_FOUND: RevisionReason.REVISION_NOT_FOUND,
}


class HttpHub:
    """`ModelHub` over HTTP: the public hub, or the platform's mirror."""

    def __init__(self, platform: Platform, seconds: float = 5) -> None:
        self._base = (platform.hub_endpoint or PUBLIC_HUB).rstrip("/")
        self._seconds = seconds
        self._client = httpx.AsyncClient(
            trust_env=False,
            proxy=platform.https_proxy,
            follow_redirects=True,  # renamed models redirect
            max_redirects=3,
            timeout=seconds,
            headers={"Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def resolve(self, query: RevisionQuery) -> Resolution:
        path = f"/api/models/{query.repository}/revision/{quote(query.revision, safe='')}"
        try:
            status, body = await self._read(f"{self._base}{path}")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            message = f"GET {path}: {type(error).__name__} {error}".strip()
            return Resolution(None, RevisionReason.HUB_UNREACHABLE, message)
        if status != httpx.codes.OK:
            reason = _REASONS.get(status, RevisionReason.HUB_UNREACHABLE)
            return Resolution(None, reason, f"GET {path}: {status}")
        commit = parse_commit(body)
        if commit is None:
            return Resolution(
                None, RevisionReason.HUB_UNREACHABLE, f"GET {path}: no commit in the response"
            )
        message = f"{query.revision} of {query.repository} resolved to {commit}"
        return Resolution(commit, RevisionReason.REVISION_RESOLVED, message)

    async def _read(self, url: str) -> tuple[int, bytes]:
        content = bytearray()
        async with asyncio.timeout(self._seconds), self._client.stream("GET", url) as response:
            async for part in response.aiter_raw():
                content += part
                if len(content) > _MAX_BYTES:
                    break
            return response.status_code, bytes(content)


def parse_commit(body: bytes) -> str | None:
    try:
        commit = json.loads(body)["sha"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return commit if isinstance(commit, str) and _COMMIT.fullmatch(commit) else None
