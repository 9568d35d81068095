"""Streams that lose their replica, and that a real vLLM on the CPU goes on with."""

import itertools
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import engines
from tests.conformance.configurations import CONTEXT, Configuration
from tests.conformance.engines import EngineProcess
from tests.gateway.harness import (
    DONE,
    MODEL,
    Answer,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from tests.gateway.resumed import (
    RESUMED,
    WITH_USAGE,
    data_of,
    events_of,
    text_of,
    usage_of,
)

pytestmark = pytest.mark.vllm

TOKENS, STREAMS = 40, 20
# One at a time, in float32: what an engine generates does not depend on what runs beside it.
ALONE = Configuration(
    name="alone",
    argv=(
        "--load-format=dummy",
        "--enforce-eager",
        "--dtype=float32",
        f"--max-model-len={CONTEXT}",
        "--block-size=128",
        "--num-gpu-blocks-override=64",
        f"--served-model-name={MODEL}",
        "--max-num-seqs=1",
    ),
)
# Of the text that the tokenizer of the tiny model was made from: most words are one token.
SENTENCE = "A tessera is one tile of a mosaic and the operator places models on slices of GPUs"
WORDS = re.findall(r"\w+", SENTENCE)
PATHS = {
    "text": "/v1/completions",
    "token ids": "/v1/completions",
    "chat": "/v1/chat/completions",
}


async def tokens_of(engine: EngineProcess, text: str) -> list[int]:
    body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
    tokens: list[int] = (await engine.http.post("/tokenize", json=body)).json()["tokens"]
    return tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A stream, and what an engine generates where nothing is lost."""

    kind: str
    body: dict[str, Any]
    text: str
    is_exact: bool
    """The text has the tokens that it was generated in, and no part of a character."""


async def a_case(
    engine: EngineProcess, kind: str, words: Sequence[int] | None, chance: random.Random
) -> Case:
    question = f"{chance.randint(0, 999)}: {' '.join(chance.sample(WORDS, 8))}"
    body: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **WITH_USAGE,
    }
    match kind:
        case "chat":
            body["messages"] = [{"role": "user", "content": question}]
        case "token ids":
            body["prompt"] = await tokens_of(engine, question)
        case _:
            body["prompt"] = question
    if words is not None:
        body["allowed_token_ids"] = words
    events = data_of((await engine.http.post(PATHS[kind], json=body)).content)
    text = text_of(events)
    token_ids = [
        token
        for each in events
        for choice in each["choices"]
        for token in choice.get("token_ids") or ()
    ]
    if kind != "token ids":
        del body["return_token_ids"]
    is_exact = await tokens_of(engine, text) == token_ids
    return Case(kind=kind, body=body, text=text, is_exact=is_exact)


@dataclass(kw_only=True)
class LosingReplica:
    """Passes a stream of an engine on, and breaks it after some events, before it has an end."""

    engine: EngineProcess
    events: int
    text: str = field(default="", init=False)
    """What the client got."""

    async def script(self, call: EngineCall) -> None:
        headers = {"content-type": "application/json"}
        async with self.engine.http.stream(
            "POST", call.path, content=call.body, headers=headers
        ) as answer:
            await call.begin()
            async for block in events_of(answer):
                [event] = data_of(block)
                if any(choice["finish_reason"] for choice in event["choices"]):
                    break
                await call.chunk(block)
                self.text += text_of([event])
                self.events -= 1
                if self.events <= 0 and self.text.strip():
                    break
        call.cut()


async def lose(engine: EngineProcess, case: Case, losing: LosingReplica) -> Answer:
    """Send a stream that loses its first replica."""
    async with ScriptedEngine(losing.script) as front:
        lost, other = (
            a_replica(address, name)
            for name, address in (
                ("chat-1", front.address),
                ("chat-2", engine.url.removeprefix("http://")),
            )
        )
        # The counter of turns begins with 1.
        async with a_gateway(a_directory(a_model(other, lost))) as gateway:
            return await gateway.post(case.body, PATHS[case.kind])


async def own_continuation(engine: EngineProcess, case: Case, begun: str) -> str:
    """Return a text with what the engine itself says after it."""
    if case.kind == "chat":
        begun = begun.rstrip()
        changes: dict[str, Any] = {
            "messages": [*case.body["messages"], {"role": "assistant", "content": begun}],
            "add_generation_prompt": False,
            "continue_final_message": True,
        }
    else:
        changes = {"prompt": case.body["prompt"] + begun}
    answer = await engine.http.post(PATHS[case.kind], json={**case.body, **changes})
    return begun + text_of(data_of(answer.content))


async def test_a_stream_that_is_lost_at_any_token_goes_on_as_its_engine_would(
    venv: Path, model: Path, tmp_path: Path
) -> None:
    chance = random.Random(7)  # noqa: S311 - not for secrets
    equal, cases = Counter[str](), Counter[str]()
    async with engines.running(engines.real(venv), str(model), ALONE, tmp_path) as engine:
        tokens = [await tokens_of(engine, f" {word}") for word in WORDS]
        words = sorted({each[0] for each in tokens if len(each) == 1})
        # Of other tokens, a random model makes bytes that are no text.
        for kind, allowed in itertools.product(PATHS, (words, None)):
            for _ in range(STREAMS):
                case = await a_case(engine, kind, allowed, chance)
                losing = LosingReplica(engine=engine, events=chance.randint(1, TOKENS - 1))
                answer = await lose(engine, case, losing)
                text = text_of(data_of(answer.body))
                name = f"{kind}, {'exact' if case.is_exact else 'read as other tokens'}"
                cases[name] += 1
                equal[name] += text == case.text
                assert answer.body.endswith(DONE)
                assert text.startswith(losing.text.rstrip())
                if case.is_exact:
                    assert text == case.text, (kind, losing.text)
                    assert answer.body.endswith(RESUMED + DONE)
                    assert usage_of(data_of(answer.body))["completion_tokens"] == TOKENS
                elif kind != "token ids":
                    # It has another length where the tokens so far are counted wrong.
                    own = await own_continuation(engine, case, losing.text)
                    assert own.startswith(text) or text.startswith(own), (kind, losing.text)
                # Else vLLM repeats the text of a prompt whose last token is a part of a character.
    for name, count in cases.items():
        print(f"\n{name}: {equal[name]} of {count} streams are equal", end="")
