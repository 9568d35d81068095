"""A route by length before two real vLLM on the CPU: what it saves and loses is foretold."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tessera.api.model_route import ModelRouteSpec
from tessera.api.price_list import PriceEntry, PriceListSpec
from tessera.api.ref import Ref
from tessera.batch_runner.gate.scorers import ModelAnswer
from tessera.batch_runner.gate.suite import SuitePrompt, read_suite
from tessera.domain.charge.price_book import PriceListBook, revised_book
from tessera.domain.gateway.directory import Directory, OfferedModel
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.observed.price_lists import ObservedPriceList
from tests.clients.running import offered
from tests.conformance.engines import EngineProcess
from tests.conformance.sum_models import MOST_DIGITS, sum_engine, sum_model, write_suite
from tests.gateway.charging import paying
from tests.gateway.harness import TENANT, RunningGateway, a_directory, a_gateway, a_model
from world.testing import eventually

pytestmark = pytest.mark.vllm

_A_STRATUM = 30
_IN_FLIGHT = 8
# Batches of other prompts round otherwise, and a near tie of two tokens falls to the other.
_MOST_OTHERS = 0.02
# By service: the model, and nano-units of a token of a prompt and of an answer.
_MODELS = {"small": "1m", "large": "10m"}
_PRICES = {"small": (100, 400), "large": (1_000, 4_000)}
# A sum of n digits has 2n - 1 characters.
_BOUNDS = (7, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class SumAnswer:
    """A line of the file of outcomes: what a target says to a prompt."""

    prompt: str
    target: str
    text: str
    score: float
    input_tokens: int
    output_tokens: int

    @property
    def nanos(self) -> int:
        of_prompt, of_answer = _PRICES[self.target]
        return of_prompt * self.input_tokens + of_answer * self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What the answers to a suite come to."""

    small: int
    """Those of the small model."""
    score: float
    nanos: int


def _bill(answers: Iterable[SumAnswer]) -> Bill:
    rows = tuple(answers)
    return Bill(
        small=sum(row.target == "small" for row in rows),
        score=sum(row.score for row in rows),
        nanos=sum(row.nanos for row in rows),
    )


# Sends the body of a request; returns the target that answered, and the body of the answer.
Post = Callable[[Mapping[str, Any]], Awaitable[tuple[str, Any]]]


async def _ask(prompts: Sequence[SuitePrompt], model: str, post: Post) -> list[SumAnswer]:
    """Ask all prompts of a suite by the same greedy requests, so many at once."""
    places = asyncio.Semaphore(_IN_FLIGHT)

    async def ask(prompt: SuitePrompt) -> SumAnswer:
        row = prompt.row
        body = {"model": model, "messages": row.messages, "max_tokens": row.max_tokens}
        async with places:
            target, answer = await post({**body, "temperature": 0})
        text, usage = answer["choices"][0]["message"]["content"], answer["usage"]
        assert prompt.scorer is not None
        return SumAnswer(
            prompt=_text(prompt),
            target=target,
            text=text,
            score=prompt.scorer(ModelAnswer(text=text)),
            input_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
        )

    return await asyncio.gather(*map(ask, prompts))


def _text(prompt: SuitePrompt) -> str:
    assert prompt.row.messages is not None
    return str(prompt.row.messages[0]["content"])


def _directly(engine: EngineProcess) -> Post:
    async def post(body: Mapping[str, Any]) -> tuple[str, Any]:
        response = await engine.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return body["model"], response.json()

    return post


def _through(gateway: RunningGateway) -> Post:
    async def post(body: Mapping[str, Any]) -> tuple[str, Any]:
        answer = await gateway.post(body)
        assert answer.status == 200, answer.body
        return answer.headers["x-tessera-target"], json.loads(answer.body)

    return post


def _offers(running: Mapping[str, EngineProcess]) -> Directory:
    """Return a directory with both services at their prices, and a route for each bound."""
    # A busy machine is slow, and nothing may overflow for that.
    services = [
        offered(engine, name, service=Ref(TENANT, name), ttft_seconds=600.0)
        for name, engine in running.items()
    ]
    entries = tuple(
        PriceEntry(
            from_=date(2026, 1, 1),
            models=(name,),
            input=str(of_prompt / 1000),
            output=str(of_answer / 1000),
        )
        for name, (of_prompt, of_answer) in _PRICES.items()
    )
    list_ = ObservedPriceList(ref=Ref("", "standard"), spec=PriceListSpec(entries=entries))
    book = revised_book(PriceListBook(), [list_], 0.0)
    return a_directory(*services, *map(_route, _BOUNDS), **{**paying(), "prices": book})


def _route(bound: int) -> OfferedModel:
    name = _route_name(bound)
    small = {"service": "small", "when": {"maxCharacters": bound}}
    spec = ModelRouteSpec.model_validate({"targets": [small, {"service": "large"}]})
    return a_model(service=Ref(TENANT, name), uid=f"uid-{name}", names=(name,), route=spec)


def _route_name(bound: int) -> str:
    return f"sums-{bound}"


async def _records_of(gateway: RunningGateway, bound: int, count: int) -> list[UsageRecord]:
    """Return the records of a route, once there are so many."""

    async def are_all() -> list[UsageRecord]:
        records = [each for each in gateway.records if each.model == _route_name(bound)]
        assert len(records) == count
        return records

    return await eventually(are_all)


def _check(
    bound: int, prompts: Sequence[SuitePrompt], outcomes: Path, routed: list[SumAnswer], nanos: int
) -> Bill:
    """Compare a route with what the file of outcomes foretells; return what that is."""
    lines = outcomes.read_text(encoding="utf-8").splitlines()
    answers = {(row.prompt, row.target): row for row in (SumAnswer(**json.loads(x)) for x in lines)}
    texts = [_text(prompt) for prompt in prompts]
    foretold = _bill(answers[text, "small" if len(text) <= bound else "large"] for text in texts)
    top, measured = _bill(answers[text, "large"] for text in texts), _bill(routed)
    others = sum(row.text != answers[row.prompt, row.target].text for row in routed)
    for name, each in ("foretold", foretold), ("measured", measured):
        print(
            f"\nmaxCharacters {bound}, {name}: {each.small} of {len(texts)} to small, "
            f"{100 * (top.score - each.score) / len(texts):.1f} points lost of "
            f"{100 * top.score / len(texts):.1f}, {each.nanos / 1e9:.6f} USD, "
            f"{1 - each.nanos / top.nanos:.3f} saved of {top.nanos / 1e9:.6f}; {others} others"
        )
    assert others <= _MOST_OTHERS * len(texts)
    assert measured.small == foretold.small
    assert abs(measured.score - foretold.score) <= others
    # The gateway charges by what engines report; another answer has another length.
    assert nanos == measured.nanos
    longest = 3 * MOST_DIGITS * _PRICES["large"][1]
    assert abs(nanos - foretold.nanos) <= others * longest
    return foretold


async def test_a_route_by_length_saves_and_loses_what_the_answers_of_its_targets_foretell(
    venv: Path, tmp_path: Path
) -> None:
    suite, outcomes = tmp_path / "suite.jsonl", tmp_path / "outcomes.jsonl"
    write_suite(suite, _A_STRATUM)
    prompts = read_suite(suite).prompts
    async with AsyncExitStack() as stack:
        running = {
            name: await stack.enter_async_context(
                sum_engine(venv, sum_model(venv, size), name, tmp_path)
            )
            for name, size in _MODELS.items()
        }
        rows = [
            asdict(answer)
            for name, engine in running.items()
            for answer in await _ask(prompts, name, _directly(engine))
        ]
        outcomes.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        gateway = await stack.enter_async_context(a_gateway(_offers(running), idle_seconds=600))
        bills = []
        for bound in _BOUNDS:
            routed = await _ask(prompts, _route_name(bound), _through(gateway))
            records = await _records_of(gateway, bound, len(prompts))
            assert all(each.requests == 1 for each in records)
            nanos = sum(each.charge_nanos or 0 for each in records)
            bills.append(_check(bound, prompts, outcomes, routed, nanos))
    # A higher bound saves more, and loses more.
    assert bills[0].nanos > bills[1].nanos
    assert bills[0].score > bills[1].score
