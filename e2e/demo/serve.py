"""A service gets the cheapest hardware that keeps its latency, and streams an answer."""

import time

import openai

from demo.cluster import InstalledCluster, Json, Ref, StepError, condition, until
from demo.tenants import create_key, create_tenant, gateway_address, serve

SERVICE = Ref("team-a", "chat")
# A small window, so that minutes become seconds.
SCALING = {"minReplicas": 1, "maxReplicas": 3, "scaleDown": {"stabilizationWindow": "8s"}}
QUESTION = "What does a tessera do in a mosaic?"
_TOKENS = 24
# Of a client on a busy machine, which may take longer than its five seconds to connect.
_TIMEOUT_SECONDS = 180


async def run(cluster: InstalledCluster) -> str:
    """Serve a model on a MIG slice, and answer through the gateway by a key."""
    await create_tenant(cluster, SERVICE.namespace)
    service = await serve(cluster, SERVICE, scaling=SCALING)
    status = service["status"]
    variant, placed = status["variant"], condition(service, "Placed")
    cluster.say(f"why there: {placed.get('message')}")
    profile = variant.get("profile")
    if profile is None:
        raise StepError(f"{SERVICE} is on {variant['name']}, which is no MIG slice")
    key = await create_key(cluster, SERVICE.namespace)
    address = await gateway_address(cluster)
    base = f"http://{address}:8443/v1"

    async def first_token() -> float | None:
        try:
            return await chat_at(cluster, base, SERVICE.name, key)
        except openai.APIStatusError:
            return None  # The gateway has not read the new key yet.

    seconds = await until(first_token, bool, f"{base} answers the key", _TIMEOUT_SECONDS)
    return (
        f"{SERVICE} runs on a {profile} slice of {variant['pool']} at {_price(status)}, and a "
        f"client with a key had its first token after {seconds * 1e3:.0f} ms."
    )


def _price(status: Json) -> str:
    cost = status["cost"]
    return f"{cost['perHour']} USD an hour ({cost['perMillionTokens']} USD per million tokens)"


async def chat(cluster: InstalledCluster, ref: Ref, model: str) -> None:
    """Stream one answer of a service; StepError when it is empty or came in one piece."""
    await chat_at(cluster, f"{await cluster.address(ref)}/v1", model, "none")


async def chat_at(cluster: InstalledCluster, base: str, model: str, key: str) -> float:
    """Stream one answer from an API; return the seconds until its first token.

    StepError when it is empty or came in one piece.
    """
    begun = time.monotonic()
    pieces: list[str] = []
    async with openai.AsyncOpenAI(
        base_url=base, api_key=key, max_retries=0, timeout=_TIMEOUT_SECONDS
    ) as client:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        )
        first, usage = None, None
        async for chunk in stream:
            usage = chunk.usage or usage
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.monotonic()
                pieces.append(chunk.choices[0].delta.content)
    text = "".join(pieces)
    if not text.strip() or first is None:
        raise StepError(f"{model} answered nothing")
    if len(pieces) < 2:
        raise StepError(f"{model} did not stream: the answer came in {len(pieces)} piece")
    if usage is None or not usage.completion_tokens:
        raise StepError(f"{model} did not say what the answer used")
    cluster.say(
        f"{model}: first token after {(first - begun) * 1e3:.0f} ms, {usage.completion_tokens} "
        f"tokens in {len(pieces)} pieces: {text.strip()[:60]!r}"
    )
    return first - begun
