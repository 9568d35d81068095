"""What the gateway records of prompts in the caches of engines, beside what real ones hold."""

import asyncio
import json
import random
import re
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tessera.domain.gateway.prefixes import BLOCK_BYTES
from tessera.domain.perf.step import StepTime
from tessera.domain.picking.engine_page import engine_load
from tests.conformance import engines
from tests.conformance.configurations import MODEL, Configuration
from tests.conformance.kv_events import HeldBlocks, followed
from tests.gateway.harness import a_directory, a_model, a_replica
from tests.gateway.test_gateway_process import GatewayProcess, a_process
from world.slots import free_port

pytestmark = pytest.mark.vllm

CONTEXT = 4096
BLOCK, BLOCKS = 32, 192
CACHE_TOKENS = BLOCK * BLOCKS
# About that of the tiny model.
STEP = StepTime(weights=0.01, token=1e-4, kv_token=1e-8)
# Of the text that the tokenizer of the tiny model was made from: most are one token.
SENTENCE = (
    "A tessera is one tile of a mosaic, and the operator places models on slices of GPUs, adds "
    "replicas while requests wait and removes them after a quiet time"
)
WORDS = re.findall(r"\w+", SENTENCE)
CONVERSATIONS, TURNS = 20, 5
ANSWER_TOKENS = 24
_CACHE_SIZE = re.compile(r"KV cache size: ([0-9,]+) tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A real engine, and what its events say that it holds."""

    name: str
    process: engines.EngineProcess
    blocks: HeldBlocks

    async def tokens(self, **prompt: object) -> list[int]:
        """Return the tokens of a text or of messages."""
        answer = await self.process.http.post("/tokenize", json={"model": MODEL, **prompt})
        tokens: list[int] = answer.json()["tokens"]
        return tokens

    async def clear(self) -> None:
        """Empty its cache."""
        # Events are published with the next step.
        prompt = {"model": MODEL, "prompt": "a", "max_tokens": 1}
        for path, body in (("/reset_prefix_cache", None), ("/v1/completions", prompt)):
            answer = await self.process.http.post(path, json=body)
            assert answer.status_code == 200, answer.text
        await self.blocks.until_cleared()

    def logged_cache_tokens(self) -> int:
        match = _CACHE_SIZE.search(self.process.log.read_text(encoding="utf-8"))
        assert match is not None
        return int(match[1].replace(",", ""))


@asynccontextmanager
async def an_engine(name: str, venv: Path, model: Path, folder: Path) -> AsyncIterator[Engine]:
    port = free_port()
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://127.0.0.1:{port}",
    }
    argv = (
        "--load-format=dummy",
        "--enforce-eager",
        "--dtype=bfloat16",
        f"--max-model-len={CONTEXT}",
        f"--block-size={BLOCK}",
        f"--num-gpu-blocks-override={BLOCKS}",
        f"--served-model-name={MODEL}",
        "--max-num-seqs=4",
        "--enable-prompt-tokens-details",
        f"--kv-events-config={json.dumps(events)}",
    )
    configuration = Configuration(name=name, argv=argv, env={"VLLM_SERVER_DEV_MODE": "1"})
    async with (
        followed(venv, port) as blocks,
        engines.running(engines.real(venv), str(model), configuration, folder) as process,
    ):
        yield Engine(name=name, process=process, blocks=blocks)


def with_long_context(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class SentPrompt:
    """A prompt that was answered, in tokens."""

    request_id: str
    tokens: int
    text_bytes: int
    engine: str
    held: Mapping[str, int]
    """Of its beginning, by each engine's events when it was sent."""
    reported: int
    """Cached ones, as the answer says."""


@dataclass(slots=True, kw_only=True)
class Client:
    """Sends prompts through the gateway."""

    gateway: GatewayProcess
    engines: Mapping[str, Engine]
    words: Sequence[int]
    """Tokens of which answers consist, so that they are read again as they were generated."""
    rng: random.Random
    sent: list[SentPrompt]

    def text(self, size: int) -> str:
        words = list[str]()
        while size > 0:
            words.append(self.rng.choice(WORDS))
            size -= len(words[-1]) + 1
        return " ".join(words)

    async def take_turn(self, messages: list[dict[str, str]]) -> None:
        """Add a question and its answer to a conversation."""
        messages.append({"role": "user", "content": self.text(self.rng.randint(200, 2000))})
        messages.append({"role": "assistant", "content": await self.send(messages)})

    async def send(self, messages: Sequence[Mapping[str, str]]) -> str:
        prompt = await next(iter(self.engines.values())).tokens(messages=messages)
        tokens_held = {
            name: engine.blocks.tokens_of(prompt, BLOCK) for name, engine in self.engines.items()
        }
        body = {
            "model": MODEL,
            "messages": messages,
            "max_tokens": ANSWER_TOKENS,
            "ignore_eos": True,
            "allowed_token_ids": self.words,
            "return_token_ids": True,
        }
        async with self.gateway.post(body) as response:
            answer = await response.json()
            assert response.status == 200, answer
            engine, request_id = (
                response.headers[name] for name in ("x-tessera-replica", "x-request-id")
            )
        assert answer["prompt_token_ids"] == prompt
        [choice] = answer["choices"]
        # Nothing was computed after the last token.
        computed = [*prompt, *choice["token_ids"][:-1]]
        await self.engines[engine].blocks.until_held(computed, BLOCK)
        details = answer["usage"]["prompt_tokens_details"]
        self.sent.append(
            SentPrompt(
                request_id=request_id,
                tokens=len(prompt),
                text_bytes=len(json.dumps(messages)),
                engine=engine,
                held=tokens_held,
                reported=details["cached_tokens"] if details else 0,
            )
        )
        text: str = choice["message"]["content"]
        return text


async def converse(client: Client) -> list[list[dict[str, str]]]:
    """Play conversations with two system prompts, among others that have nothing in common."""
    systems = [client.text(size) for size in (2600, 3400)]
    conversations = [
        [{"role": "system", "content": systems[number % 2]}] for number in range(CONVERSATIONS)
    ]
    # At once, so that each has an engine of its own.
    await asyncio.gather(*(client.take_turn(messages) for messages in conversations[:2]))
    turns = sorted(
        (number + CONVERSATIONS * client.rng.random(), number)
        for number in range(CONVERSATIONS)
        for _ in range(TURNS)
    )
    for place, (_, number) in enumerate(turns):
        if place % 4 == 0:
            text = client.text(client.rng.randint(1000, 5000))
            await client.send([{"role": "user", "content": text}])
        await client.take_turn(conversations[number])
    return conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Blocks of the engine in all prompts: promised by the record, and held by the events."""

    blocks: int
    promised: int
    held: int
    promised_not_held: int
    held_not_promised: int
    held_anywhere: int
    """By the engine that holds most of a prompt."""

    @property
    def right_share(self) -> float:
        return 1 - (self.promised_not_held + self.held_not_promised) / self.blocks


def compare(sent: Sequence[SentPrompt], promised_tokens: Mapping[str, int]) -> Comparison:
    promised = [promised_tokens[prompt.request_id] // BLOCK for prompt in sent]
    in_cache = [prompt.held[prompt.engine] // BLOCK for prompt in sent]
    more = [pair[0] - pair[1] for pair in zip(promised, in_cache, strict=True)]
    return Comparison(
        blocks=sum(prompt.tokens // BLOCK for prompt in sent),
        promised=sum(promised),
        held=sum(in_cache),
        promised_not_held=sum(max(0, blocks) for blocks in more),
        held_not_promised=sum(max(0, -blocks) for blocks in more),
        held_anywhere=sum(max(prompt.held.values()) // BLOCK for prompt in sent),
    )


def coarseness(sent: Sequence[SentPrompt]) -> int:
    """Return how many blocks the record may miss by its design.

    Of each prompt that the engine knows: a block of text that is not full, which is half of one in
    the mean, and the answer before it.
    """
    return sum(
        (prompt.tokens * BLOCK_BYTES // prompt.text_bytes + ANSWER_TOKENS) // BLOCK
        for prompt in sent
        if prompt.held[prompt.engine]
    )


async def test_the_record_of_prompts_is_what_real_engines_hold(
    venv: Path, model: Path, tmp_path: Path
) -> None:
    long_model = with_long_context(model, tmp_path / "model")
    async with AsyncExitStack() as stack:
        running = {
            name: await stack.enter_async_context(an_engine(name, venv, long_model, tmp_path))
            for name in ("chat-1", "chat-2")
        }
        replicas = []
        for name, engine in running.items():
            load = engine_load((await engine.process.http.get("/metrics")).content, 0.0)
            assert load is not None
            assert load.kv_tokens == engine.logged_cache_tokens() == CACHE_TOKENS
            address = engine.process.url.removeprefix("http://")
            replicas.append(a_replica(address, name, max_num_seqs=4, step_time=STEP))
        offered = a_model(*replicas, names=(MODEL,), max_model_len=CONTEXT)
        gateway = await stack.enter_async_context(a_process(tmp_path, a_directory(offered)))
        words = [await engine.tokens(prompt=f" {word}", add_special_tokens=False) for word in WORDS]
        client = Client(
            gateway=gateway,
            engines=running,
            words=sorted({tokens[0] for tokens in words if len(tokens) == 1}),
            rng=random.Random(39),  # noqa: S311 - the same every time
            sent=[],
        )
        conversations = await converse(client)
        before = len(client.sent)
        assert all(engine.blocks.removed for engine in running.values())
        for engine in running.values():
            await engine.clear()
        # Those first that the records have of late.
        for messages in reversed(conversations):
            await client.take_turn(messages)
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.process.wait() == 0
    log = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    promised = {line["requestId"]: line["predictedCachedTokens"] for line in log}

    # The last token of a prompt is always computed.
    assert [prompt.reported for prompt in client.sent] == [
        min(prompt.held[prompt.engine], (prompt.tokens - 1) // BLOCK * BLOCK)
        for prompt in client.sent
    ]
    usual, emptied = client.sent[:before], compare(client.sent[before:], promised)
    comparison = compare(usual, promised)
    print(f"\n{comparison.right_share:.1%} of blocks right: {comparison}; emptied: {emptied}")
    # Measured: none. Without the size of a cache, 4 to 12 % of what a record promises is evicted.
    assert comparison.promised_not_held <= 0.01 * comparison.promised
    # In the mean half of a block is not full; the other half is left for what is evicted too early.
    assert comparison.held_not_promised <= coarseness(usual)
    assert comparison.held >= 0.9 * comparison.held_anywhere
    # A promise that is broken is kept the next time, and the record forgets as much again.
    assert 0 < emptied.promised_not_held <= len(running) * BLOCKS / 2
