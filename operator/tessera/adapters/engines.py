"""What the operator asks of pods: engines for a token and their load, runners for progress."""

import httpx

from tessera.domain.batch_reports import Shown, shown

_ASK = httpx.Timeout(30, connect=3)
_LOAD = httpx.Timeout(3)


class HttpEngines:
    """`Engines` over HTTP."""

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, base: str, model: str) -> str | None:
        url = f"{base}/v1/completions"
        body = {"model": model, "prompt": "1", "max_tokens": 1, "priority": -1}
        try:
            answer = await self._client.post(url, json=body, timeout=_ASK)
        except httpx.HTTPError as error:
            return f"POST {url}: {type(error).__name__} {error}".strip()
        if answer.status_code != httpx.codes.OK:
            return f"POST {url}: {answer.status_code} {answer.text[:300]}"
        try:
            tokens = answer.json()["usage"]["completion_tokens"]
        except (ValueError, KeyError, TypeError):
            return f"POST {url}: not a completion: {answer.text[:300]}"
        return None if tokens else f"POST {url}: the completion has 0 tokens"

    async def in_flight(self, address: str) -> int | None:
        try:
            answer = await self._client.get(f"http://{address}/load", timeout=_LOAD)
            return int(answer.json()["server_load"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None

    async def progress(self, address: str) -> Shown | None:
        try:
            answer = await self._client.get(f"http://{address}/progress", timeout=_LOAD)
        except httpx.HTTPError:
            return None
        return shown(answer.content)
