"""One name over two models and an outside one: the cheapest that can answers each request."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import cycle, islice

import openai

from demo import outside
from demo.cluster import InstalledCluster, Json, Ref, StepError, condition, until
from demo.tenants import MODEL, apply_spec, create_key, create_tenant, gateway_address
from tessera.adapters.clock import now
from world.provider import Provider, answer, refuse

TENANT, ROUTE = "team-a", "assistant"
_SMALL, _LARGE, _OUTSIDE = "small", "large", outside.NAME
# USD for a million tokens of input and of output.
_PRICES: Mapping[str, tuple[int, int]] = {
    _SMALL: (20, 80),
    _LARGE: (300, 1200),
    _OUTSIDE: (600, 2400),
}
# By which names PriceLists know them.
_PRICED = {_SMALL: _SMALL, _LARGE: _LARGE, _OUTSIDE: f"{outside.NAME}/{outside.MODEL}"}
_SERVICES = (_SMALL, _LARGE)
_EASY = ("What is a tessera?", "Who made the floor of Otranto?", "Name three mosaics in Ravenna.")
_HARD = (
    "Analyze why smalti keep their color, and compare them with marble.",
    "Explain why grout cracks, step by step, and compare two remedies.",
)
_HARDEST = "Analyze and compare three mortars, and explain why each of them cracks, step by step."
# Most requests are simple: that is what a route saves by.
_COUNTS = {_SMALL: 24, _LARGE: 6, _OUTSIDE: 3}
_TOKENS = 60
_SHOWN_HEADERS = ("route", "target", "model", "precision")
_AT_ONCE = 6
_PATIENCE = 180.0
# After they were applied; a gateway sees them sooner or later.
_PRICES_SECONDS = 60.0
_MILLION = Decimal(10**6)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What the gateway said of an answer."""

    headers: Mapping[str, str]
    input_tokens: int
    output_tokens: int

    @property
    def target(self) -> str:
        return self.headers["x-tessera-target"]

    @property
    def charge(self) -> Decimal:
        """Return what it was charged, in USD; 0 as long as no price counts."""
        amount, _, _ = self.headers.get("x-tessera-charge", "0").partition(" ")
        return Decimal(amount)

    def price_at(self, target: str) -> Decimal:
        """Return what its tokens are charged at a target, in USD."""
        of_input, of_output = _PRICES[target]
        return (self.input_tokens * of_input + self.output_tokens * of_output) / _MILLION


async def run(cluster: InstalledCluster) -> str:
    """Show shares, dollars, headers, and a target that dies."""
    await create_tenant(cluster, TENANT)
    applied_at = time.monotonic()
    async with outside.outside_provider(cluster, TENANT) as provider, AsyncExitStack() as stack:
        provider.script = answer(_TOKENS)
        await _apply(cluster)
        address = await gateway_address(cluster)
        key = await create_key(cluster, TENANT)
        base = f"http://{address}:8443/v1"
        client = await stack.enter_async_context(
            openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0, timeout=60)
        )
        cluster.say("prices count a minute after they were seen")
        await asyncio.sleep(applied_at + _PRICES_SECONDS - time.monotonic())
        await _wait_for_prices(client)
        answers = await _ask_all(client)
        saved = _show_shares(cluster, answers)
        await _show_bill(cluster, address, outside.billed(provider))
        await _lose_provider(cluster, client, provider)
        count = await _lose_target(cluster, client)
    return (
        f"{len(answers)} requests for `{ROUTE}` were charged {saved:.0%} less than at {_OUTSIDE} "
        f"alone, and {count} went to {_LARGE} when {_SMALL} died, none of which failed."
    )


async def _apply(cluster: InstalledCluster) -> None:
    """Apply two services, the prices of all models, and a route over them."""
    entries = [
        {
            "from": f"{now():%Y-%m-%d}",
            "models": [_PRICED[name]],
            "input": str(first),
            "output": str(last),
        }
        for name, (first, last) in _PRICES.items()
    ]
    spec: Json = {"currency": "USD", "entries": entries}
    await apply_spec(cluster, "PriceList", "pricelists", Ref("", ROUTE), spec)
    for name in _SERVICES:
        # Machines that play demos are busy, and this one is about targets that do not answer.
        slo = {"ttftP95": "10s", "itlP95": "500ms"}
        body: Json = {"model": {"uri": MODEL}, "replicas": 1, "slo": slo}
        await apply_spec(cluster, "InferenceService", "inferenceservices", Ref(TENANT, name), body)
    last = {"name": outside.NAME, "model": outside.MODEL}
    targets: list[Json] = [
        {"service": _SMALL, "when": {"maxScore": 1}},
        {"service": _LARGE, "when": {"maxScore": 4}},
        {"name": _OUTSIDE, "provider": last},
    ]
    route = Ref(TENANT, ROUTE)
    await apply_spec(cluster, "ModelRoute", "modelroutes", route, {"targets": targets})
    for name in _SERVICES:
        await until(
            partial(cluster.service, Ref(TENANT, name)),
            lambda body: condition(body, "Ready").get("status") == "True",
            f"{name} is Ready",
            _PATIENCE,
        )
    await cluster.run(
        *("kubectl", "-n", TENANT, "wait", "--timeout=60s", "--for=condition=Accepted"),
        f"modelroute/{ROUTE}",
    )
    routes = await cluster.run("kubectl", "-n", TENANT, "get", "modelroutes")
    cluster.say(f"kubectl get modelroutes\n{routes.rstrip()}")


async def _ask(client: openai.AsyncOpenAI, text: str, tokens: int = _TOKENS) -> _Answer:
    raw = await client.chat.completions.with_raw_response.create(
        model=ROUTE, messages=[{"role": "user", "content": text}], max_tokens=tokens
    )
    usage = raw.parse().usage
    if usage is None:
        raise StepError(f"an answer to {text!r} has no usage")
    return _Answer(
        headers=raw.headers,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
    )


async def _wait_for_prices(client: openai.AsyncOpenAI) -> None:
    """Wait until all targets answer with a charge."""

    async def charged() -> list[str]:
        try:
            answers = [await _ask(client, text, 1) for text in (_EASY[0], _HARD[0], _HARDEST)]
        except openai.APIStatusError as error:
            return [str(error)]
        return [answer.target for answer in answers if answer.charge]

    await until(charged, lambda targets: targets == [*_PRICES], "all are charged", _PATIENCE)


async def _ask_all(client: openai.AsyncOpenAI) -> list[_Answer]:
    """Ask what is simple and what is not, several at once."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def ask(text: str) -> _Answer:
        async with turns:
            return await _ask(client, text)

    texts = {_SMALL: _EASY, _LARGE: _HARD, _OUTSIDE: (_HARDEST,)}
    asked = [text for name, count in _COUNTS.items() for text in islice(cycle(texts[name]), count)]
    return await asyncio.gather(*map(ask, asked))


def _show_shares(cluster: InstalledCluster, answers: Sequence[_Answer]) -> float:
    """Say who answered and at what price; return the share that is saved."""
    counts = Counter(answer.target for answer in answers)
    if counts != _COUNTS:
        raise StepError(f"requests for {_COUNTS} went to {counts}")
    charged = sum((answer.charge for answer in answers), Decimal(0))
    own = sum((answer.price_at(answer.target) for answer in answers), Decimal(0))
    if charged != own:
        raise StepError(f"{charged} USD were charged, and the tokens cost {own} at their targets")
    last = sum((answer.price_at(_OUTSIDE) for answer in answers), Decimal(0))
    shares = ", ".join(f"{name} {count / len(answers):.0%}" for name, count in counts.items())
    cluster.say(f"{len(answers)} requests for {ROUTE}: {shares}")
    saved = float(1 - charged / last)
    cluster.say(
        f"charged {charged} USD by the prices of this demo, which are made up; all to {_OUTSIDE}: "
        f"{last} USD, so {saved:.1%} are saved"
    )
    headers = [
        f"  {name}: {value}"
        for name, value in answers[0].headers.items()
        if name.removeprefix("x-tessera-").partition("-")[0] in _SHOWN_HEADERS
    ]
    cluster.say("\n".join(["headers of the first answer:", *headers]))
    return saved


async def _show_bill(cluster: InstalledCluster, address: str, billed: Decimal) -> None:
    """Show what the targets were charged and cost, as the platform reads it."""
    gateway = ("--gateway", f"http://{address}:8080")

    async def read(grouping: str) -> Json:
        output = await cluster.tessera("cost", "--by", grouping, *gateway, "--output", "json")
        report: Json = json.loads(output)
        return report

    def is_billed(report: Json) -> bool:
        rows = [row for row in report["rows"] if row["provider"]]
        return [Decimal(row["providerCost"]) for row in rows] == [billed]

    await until(
        partial(read, "route,target"),
        lambda report: report.get("savings"),
        "the bill says what the route saved",
        _PATIENCE,
    )
    cluster.say(f"ModelProvider/{_OUTSIDE} itself bills {billed} USD")
    await until(partial(read, "provider"), is_billed, "tessera cost says the same", _PATIENCE)
    for grouping in ("route,target", "provider"):
        shown = await cluster.tessera("cost", "--by", grouping, *gateway)
        cluster.say(f"tessera cost --by {grouping}\n{shown.rstrip()}")


async def _lose_provider(
    cluster: InstalledCluster, client: openai.AsyncOpenAI, provider: Provider
) -> None:
    """Let the provider fail: the next target answers, which is the one before it."""
    provider.script = refuse(500)
    answers = [await _ask(client, _HARDEST) for _ in range(_COUNTS[_OUTSIDE])]
    provider.script = answer(_TOKENS)
    reasons = Counter((each.target, each.headers["x-tessera-target-reason"]) for each in answers)
    cluster.say(f"{_OUTSIDE} fails: {len(answers)} requests for it went to {_LARGE}")
    if reasons != {(_LARGE, "Fallback"): len(answers)}:
        raise StepError(f"requests for {_OUTSIDE}, which fails, were answered for {reasons}")


async def _lose_target(cluster: InstalledCluster, client: openai.AsyncOpenAI) -> int:
    """Kill the engine of the small target under simple requests; return how many went elsewhere."""
    replica = (await _ask(client, _EASY[0])).headers["x-tessera-replica"]
    asked = [asyncio.create_task(_ask(client, text)) for text in _EASY * 2]
    cluster.world.kill(TENANT, replica, "engine")
    cluster.say(f"the engine of {replica} is killed")
    answers = list(await asyncio.gather(*asked))
    answers += [await _ask(client, text) for text in _EASY]
    elsewhere = [answer for answer in answers if answer.target == _LARGE]
    reasons = Counter(answer.headers["x-tessera-target-reason"] for answer in elsewhere)
    cluster.say(f"{len(elsewhere)} of {len(answers)} simple requests: {_LARGE}, {dict(reasons)}")
    if reasons != {"Fallback": len(elsewhere)} or not elsewhere:
        raise StepError(f"requests for {_SMALL}, which is dead, were answered for {reasons}")
    await until(
        lambda: _ask(client, _EASY[0]),
        lambda answer: answer.target == _SMALL,
        f"{_SMALL} answers again",
        _PATIENCE,
    )
    cluster.say(f"{_SMALL} answers again")
    return len(elsewhere)
