"""What clients that leave are charged, against what an engine computed for them.

A thousand clients leave chats in five languages, before the first token, within a stream, or while
they wait for a whole answer; some engines put several tokens into an event. The engine counts the
tokens of prompts and answers by a real tokenizer, Mistral's tekken, and stops once it hears that
the gateway left. The last line is `BENCH` and the figures as JSON.
"""

import asyncio
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import aiohttp

from environments import environment
from figures import benchmark
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.perf.step import StepTime
from tests.gateway.harness import (
    COMPLETION,
    MODEL,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

TEXTS = Path(__file__).parent / "left_early"
LANGUAGES = ("en", "de", "ru", "zh", "hi")
# Clients that read to the end go before, as most do: the gateway learns the length of tokens.
LEAVES, STAYING_SHARE, TOGETHER = 1000, 0.1, 20
# Where no tokenizer is asked, a token has so many bytes.
_TOKEN_BYTES = 4
STEP_SECONDS = 0.025
ANSWER_TOKENS = 60
# Prints the bytes of each token of each text.
_TOKENIZE = """
import base64, importlib.util, json, pathlib, sys
import tiktoken
package = pathlib.Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0])
tekken = json.loads((package / "data" / "tekken_240911.json").read_bytes())
ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in tekken["vocab"]}
pattern = tekken["config"]["pattern"]
encoding = tiktoken.Encoding("tekken", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
texts = json.load(sys.stdin)
json.dump([[encoding.decode_single_token_bytes(token).hex() for token in encoding.encode(text)]
           for text in texts], sys.stdout)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text and its tokens."""

    text: str
    tokens: Sequence[bytes]

    def beginning(self, tokens: int) -> str:
        """Return the complete characters of its first tokens."""
        return b"".join(self.tokens[:tokens]).decode(errors="ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One request, and when its client leaves."""

    text: Text
    repeats: int
    """Of the text in the prompt."""
    tokens_per_event: int
    is_escaped: bool
    """Whether its client writes other than ASCII as escapes."""
    events: int | None
    """The client leaves after so many events of a stream; None for a whole answer."""
    seconds: float
    """The client of a whole answer leaves after them."""
    stays: bool

    @property
    def prompt_tokens(self) -> int:
        return len(self.text.tokens) * self.repeats


@dataclass(slots=True)
class Engine:
    """Makes a token each step, until it hears that the gateway left."""

    chats: Sequence[Chat]
    computed: dict[str, int]
    """Tokens by request, of its prompt and its answer."""

    async def answer(self, call: EngineCall) -> None:
        request_id = call.headers["x-request-id"]
        chat = self.chats[int(request_id)]
        tokens = 0
        try:
            if chat.events is not None:
                await call.begin()
            while tokens < ANSWER_TOKENS and not await _is_gone(call):
                tokens += 1
                if chat.events is not None and tokens % chat.tokens_per_event == 0:
                    sent = chat.text.beginning(tokens - chat.tokens_per_event)
                    if new := chat.text.beginning(tokens)[len(sent) :]:
                        # Engines write UTF-8 without escapes.
                        await call.chunk(b"data: %b\n\n" % _json(_delta(new)))
            if tokens == ANSWER_TOKENS:
                await self._end(call, chat)
        finally:
            self.computed[request_id] = chat.prompt_tokens + tokens

    async def _end(self, call: EngineCall, chat: Chat) -> None:
        usage = {"prompt_tokens": chat.prompt_tokens, "completion_tokens": ANSWER_TOKENS}
        if chat.events is None:
            await call.whole({**COMPLETION, "usage": usage})
            return
        await call.chunk(b"data: %b\n\n" % _json({"choices": [], "usage": usage}))
        await call.chunk(b"data: [DONE]\n\n")
        await call.finish()


async def measure(leaves: int = LEAVES, seed: int = 1) -> dict[str, float]:
    """Measure, and print a table."""
    return {"left_early_charged_vs_computed": await charged_vs_computed(leaves, seed)}


async def charged_vs_computed(
    leaves: int = LEAVES, seed: int = 1, *, with_tokenizer: bool = True
) -> float:
    """Print both for each language, and return their ratio."""
    texts, staying = _texts(with_tokenizer=with_tokenizer), round(STAYING_SHARE * leaves)
    random = Random(seed)  # noqa: S311 - a seeded choice
    chats = [
        _chat(random, texts[number % len(texts)], stays=number < staying)
        for number in range(staying + leaves)
    ]
    records, computed = await _played(chats, staying)
    rows = dict.fromkeys(("all", *LANGUAGES, "whole", "merged"), (0, 0))
    for number, chat in enumerate(chats[staying:], staying):
        record = records.get(str(number))
        charged = record.input_tokens + record.output_tokens if record else 0
        names = ["all", LANGUAGES[number % len(texts)]]
        names += ["whole"] * (chat.events is None) + ["merged"] * (chat.tokens_per_event > 1)
        for name in names:
            before = rows[name]
            rows[name] = (before[0] + charged, before[1] + computed.get(str(number), 0))
    print(f"{'left':8} {'charged':>10} {'computed':>10} {'ratio':>6}")
    for name, (charged, tokens) in rows.items():
        print(f"{name:8} {charged:10} {tokens:10} {charged / max(1, tokens):6.2f}")
    charged, tokens = rows["all"]
    return round(charged / tokens, 3)


def _texts(*, with_tokenizer: bool) -> list[Text]:
    """Return a text of each language with its tokens."""
    texts = [(TEXTS / f"{name}.txt").read_text(encoding="utf-8") for name in LANGUAGES]
    if not with_tokenizer:
        return [Text(text=text, tokens=list(_pieces(text.encode()))) for text in texts]
    python = environment("tokenizer") / "bin" / "python"
    done = subprocess.run(
        [str(python), "-c", _TOKENIZE], input=json.dumps(texts), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return [
        Text(text=text, tokens=[bytes.fromhex(token) for token in tokens])
        for text, tokens in zip(texts, json.loads(done.stdout), strict=True)
    ]


def _pieces(text: bytes) -> Iterator[bytes]:
    for begin in range(0, len(text), _TOKEN_BYTES):
        yield text[begin : begin + _TOKEN_BYTES]


def _chat(random: Random, text: Text, *, stays: bool) -> Chat:
    merged = random.choice((1, 1, 4))
    whole = random.random() < 0.25
    return Chat(
        text=text,
        repeats=random.randint(1, 4),
        tokens_per_event=1 if whole else merged,
        is_escaped=random.random() < 0.5,
        events=None if whole else random.randint(0, ANSWER_TOKENS // merged // 2),
        seconds=random.uniform(0.1, 0.9) * STEP_SECONDS * ANSWER_TOKENS,
        stays=stays,
    )


async def _played(
    chats: Sequence[Chat], staying: int
) -> tuple[dict[str, UsageRecord], dict[str, int]]:
    """Play all chats, first those that stay; return their records and what was computed."""
    engine = Engine(chats, {})
    step = StepTime(weights=STEP_SECONDS, kv_token=0, token=0)
    async with ScriptedEngine(engine.answer) as server:
        model = a_model(a_replica(server.address, step_time=step), max_model_len=32_768)
        async with a_gateway(a_directory(model)) as gateway:
            for some in (range(staying), range(staying, len(chats))):
                numbers = iter(some)
                async with asyncio.TaskGroup() as group:
                    for _ in range(TOGETHER):
                        group.create_task(_clients(gateway, chats, numbers))
            await _until_ended(gateway)
            return {each.request_id: each for each in gateway.records}, engine.computed


async def _until_ended(gateway: RunningGateway) -> None:
    """Wait until the gateway has recorded all, and engines have heard of it."""
    count = -1
    while count != (count := len(gateway.records)):  # noqa: ASYNC110 - of whom none is the last
        await asyncio.sleep(10 * STEP_SECONDS)


async def _clients(gateway: RunningGateway, chats: Sequence[Chat], numbers: Iterator[int]) -> None:
    for number in numbers:
        await _client(gateway, chats[number], number)


async def _client(gateway: RunningGateway, chat: Chat, number: int) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": chat.text.text * chat.repeats}],
        "max_tokens": ANSWER_TOKENS,
        "stream": chat.events is not None,
    }
    seconds = None if chat.stays or chat.events else chat.seconds
    data = _json(body, escaped=chat.is_escaped)
    timeout = aiohttp.ClientTimeout(STEP_SECONDS / 2 if seconds and chat.events == 0 else seconds)
    url = f"{gateway.url}/v1/chat/completions"
    headers = {"x-request-id": str(number), "content-type": "application/json"}
    try:
        async with gateway.client.post(url, data=data, headers=headers, timeout=timeout) as answer:
            seen = 0
            async for line in answer.content:
                seen += line.startswith(b"data:")
                if not chat.stays and chat.events and seen >= chat.events:
                    answer.close()
                    return
    except TimeoutError:
        return


def _delta(content: str) -> object:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return {"id": "chatcmpl-0", "model": MODEL, "choices": [choice]}


def _json(value: object, *, escaped: bool = False) -> bytes:
    return json.dumps(value, ensure_ascii=escaped, separators=(",", ":")).encode()


async def _is_gone(call: EngineCall) -> bool:
    """Wait for a step, or until the gateway left."""
    try:
        async with asyncio.timeout(STEP_SECONDS):
            await call.gone.wait()
    except TimeoutError:
        return False
    return True


if __name__ == "__main__":
    benchmark(measure)
