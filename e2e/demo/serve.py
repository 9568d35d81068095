"""Step 1: a streamed chat with every service, by the `openai` client."""

import time

import openai

from demo.cluster import InstalledCluster, Ref, StepError

QUESTION = "What does a tessera do in a mosaic?"
_TOKENS = 24
# Of a client on a busy machine, which may take longer than its five seconds to connect.
_TIMEOUT_SECONDS = 180


async def run(cluster: InstalledCluster) -> None:
    """Every service must stream a non-empty answer in more than one piece."""
    for ref, service in await cluster.services():
        model = service["spec"]["model"].get("servedName", ref.name)
        await chat(cluster, ref, model)


async def chat(cluster: InstalledCluster, ref: Ref, model: str) -> None:
    """Stream one answer; StepError when it is empty or came in one piece."""
    base = f"{await cluster.address(ref)}/v1"
    begun = time.monotonic()
    pieces: list[str] = []
    async with openai.AsyncOpenAI(
        base_url=base, api_key="none", max_retries=0, timeout=_TIMEOUT_SECONDS
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
        raise StepError(f"{ref} answered nothing")
    if len(pieces) < 2:
        raise StepError(f"{ref} did not stream: the answer came in {len(pieces)} piece")
    if usage is None or not usage.completion_tokens:
        raise StepError(f"{ref} did not say what the answer used")
    cluster.say(
        f"{ref}: first token after {(first - begun) * 1e3:.0f} ms, {usage.completion_tokens} "
        f"tokens in {len(pieces)} pieces: {text.strip()[:60]!r}"
    )
