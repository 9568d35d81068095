"""A gateway whose routes lead to scripted providers, and the clients that ask there."""

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tessera.adapters.clock import CLOCK
from tessera.api.model_provider import ModelProviderSpec
from tessera.api.model_route import ModelRouteSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.gateway.outside import outside_models
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.domain.observed.providers import ObservedProvider, ProviderSecret
from tessera.gateway.outside.client import OutsideClient
from tessera.gateway.outside.keys import ProviderKeys
from tests.gateway.charging import a_cost_limit, paying
from tests.gateway.harness import (
    KEY,
    TENANT,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from tests.gateway.outside.asking import LOOPBACK
from tests.gateway.outside.routing import MANY, OWN
from tests.gateway.providers.messages import message_reply
from tests.gateway.providers.scripted import DONE, Refusal, Reply, Script, Tokens, event
from tests.gateway.providers.scripts import (
    anthropic_platform,
    deepseek,
    gemini,
    grok,
    groq_cloud,
    kimi,
    mistral,
    openai_platform,
    openrouter,
    plain_chat,
    plain_messages,
    zai,
)
from world.provider import KEY as PROVIDER_KEY
from world.provider import Provider, ProviderCall

TWELVE = (
    *(openai_platform.SCRIPT, gemini.SCRIPT, grok.SCRIPT, deepseek.SCRIPT, kimi.SCRIPT),
    *(mistral.SCRIPT, groq_cloud.SCRIPT, openrouter.SCRIPT, zai.SCRIPT, plain_chat.SCRIPT),
    *(anthropic_platform.SCRIPT, plain_messages.SCRIPT),
)
CHATS = [script.name for script in TWELVE if script.protocol == "OpenAIChat"]
MESSAGES = [script.name for script in TWELVE if script.protocol == "AnthropicMessages"]
# Routes that lead from one provider to the next.
SEVERAL = {
    "chats": (deepseek.SCRIPT, kimi.SCRIPT, grok.SCRIPT, plain_chat.SCRIPT),
    "messages": (anthropic_platform.SCRIPT, plain_messages.SCRIPT),
}
# Ends the name of a route that has no target beside the provider.
ALONE = "-alone"
OWN_WORDS = "Own words."
_MAX_OUTPUT = 16_000


def spec_of(script: Script, port: int) -> ModelProviderSpec:
    """Return the ModelProvider that its user would write, but for its host."""
    fields: dict[str, Any] = {
        "name": script.model,
        "maxContextTokens": 200_000,
        "maxOutputTokens": _MAX_OUTPUT,
        "reasoning": True,
        "cost": script.prices.cost(),
        **script.spec,
    }
    messages = script.protocol == "AnthropicMessages"
    return ModelProviderSpec.model_validate(
        {
            "baseUrl": f"https://localhost:{port}/{script.name}{script.path}",
            "protocols": [script.protocol],
            "keyHeader": "x-api-key" if messages else "Authorization",
            "secret": {"name": script.name},
            "tenants": [TENANT],
            "models": [fields],
            **({"dialect": script.dialect} if script.dialect else {}),
        }
    )


@dataclass(slots=True)
class Played:
    """A gateway, and what it and the clients see of providers."""

    gateway: RunningGateway
    outside: OutsideClient
    scripts: Mapping[str, Script]
    own: ScriptedEngine
    """The service behind the providers in their routes; routes ending with `ALONE` have none."""
    answers: list[tuple[Script, Tokens]]
    """What providers answered, in order."""
    openai: AsyncOpenAI
    anthropic: AsyncAnthropic
    base_url: str
    """Where the providers are, by the names of their scripts."""
    authority: Path
    """Who signed their certificate."""

    async def billed(self) -> list[tuple[UsageRecord, Script, Tokens]]:
        """Return the records of all answers of providers, with what they took there."""
        while len(records := list(filter(_is_answer, self.gateway.records))) < len(self.answers):
            self.gateway.recorded.clear()
            await self.gateway.recorded.wait()
        return [(record, *answer) for record, answer in zip(records, self.answers, strict=True)]

    def forget(self) -> None:
        """Leave what came before behind: refusals, records and pauses."""
        self.gateway.records.clear()
        self.outside.states.clear()
        self.own.calls.clear()
        self.answers.clear()
        for script in self.scripts.values():
            script.outage = None
            script.fails.clear()
            script.refused.clear()
            script.answered.clear()
            script.bodies.clear()


@asynccontextmanager
async def played(folder: Path) -> AsyncIterator[Played]:
    """Run a gateway with a route for each provider, and one that has no other target."""
    scripts = (*TWELVE, mistral.REASONING)
    by_name = {script.name: script for script in scripts}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Provider(folder / "keys"))
        answers: list[tuple[Script, Tokens]] = []
        server.script = _speak(by_name, answers)
        own = await stack.enter_async_context(ScriptedEngine(_own))
        keys = ProviderKeys()
        keys.update([ProviderSecret(name=name, keys={"key": PROVIDER_KEY}) for name in by_name])
        tls = ssl.create_default_context(cafile=str(server.authority))
        outside = OutsideClient(keys, LOOPBACK, CLOCK, tls)
        stack.push_async_callback(outside.close)
        fields = paying(MANY)
        fields["tenants"] = {
            name: replace(tenant, outside=(a_cost_limit(MANY),))
            for name, tenant in fields["tenants"].items()
        }
        observed = tuple(_observed(script, server.port) for script in scripts)
        directory = a_directory(
            a_model(a_replica(own.address)),
            *(_route(script.name, _target(script), OWN) for script in scripts),
            *(_route(script.name + ALONE, _target(script)) for script in scripts),
            *(_route(name, *map(_target, several)) for name, several in SEVERAL.items()),
            outside=outside_models(observed, fields["tenants"]),
            **fields,
        )
        gateway = await stack.enter_async_context(a_gateway(directory, outside=outside))
        options: Any = {"api_key": KEY, "max_retries": 0}
        openai = AsyncOpenAI(base_url=f"{gateway.url}/v1", **options)
        anthropic = AsyncAnthropic(base_url=gateway.url, **options)
        await stack.enter_async_context(openai)
        await stack.enter_async_context(anthropic)
        base_url = f"https://localhost:{server.port}"
        yield Played(
            gateway=gateway,
            outside=outside,
            scripts=by_name,
            own=own,
            answers=answers,
            openai=openai,
            anthropic=anthropic,
            base_url=base_url,
            authority=server.authority,
        )


def _observed(script: Script, port: int) -> ObservedProvider:
    return ObservedProvider(
        ref=Ref("", script.name),
        uid=f"uid-{script.name}",
        created=datetime(2026, 11, 1, tzinfo=UTC),
        generation=1,
        spec=spec_of(script, port),
    )


def _target(script: Script) -> Mapping[str, Any]:
    return {"name": script.name, "provider": {"name": script.name, "model": script.model}}


def _route(name: str, *targets: Mapping[str, Any]) -> OfferedModel:
    return OfferedModel(
        service=Ref(TENANT, name),
        uid=f"uid-route-{name}",
        names=(name,),
        tenant=TENANT,
        route=ModelRouteSpec.model_validate({"targets": targets}),
    )


def _is_answer(record: UsageRecord) -> bool:
    return bool(record.provider) and record.phase is Phase.COMPLETED


def _speak(scripts: Mapping[str, Script], answers: list[tuple[Script, Tokens]]) -> Any:
    async def script(call: ProviderCall) -> None:
        asked = scripts[call.path.split("/")[1]]
        reply = asked.answer(call.body)
        if isinstance(reply, Reply):
            answers.append((asked, reply.tokens))
        if isinstance(reply, Refusal):
            await call.whole(reply.body, reply.status, **reply.headers)
            return
        if isinstance(reply, Reply) and not call.streams:
            await call.whole(reply.whole)
            return
        events = reply.events if isinstance(reply, Reply) else reply
        await call.head(200, "text/event-stream")
        # What is small comes together, as from real ones.
        for start in range(0, len(events), 8):
            await call.chunk(b"".join(events[start : start + 8]))
        await call.end()

    return script


async def _own(call: EngineCall) -> None:
    """Answer as the service behind the providers."""
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    shared = {"id": "chatcmpl-own", "created": 1, "model": "chat"}
    message = {"role": "assistant", "content": OWN_WORDS}
    choice = {"index": 0, "message": message, "delta": message, "finish_reason": "stop"}
    whole: object = {**shared, "choices": [choice], "usage": usage}
    events: Sequence[bytes] = [event(whole), DONE]
    if call.path.startswith("/v1/messages"):
        block = {"type": "text", "text": OWN_WORDS}
        counts = {"input_tokens": 7, "output_tokens": 2}
        reply = message_reply([block], "chat", Tokens(prompt=7, output=2), counts, is_last=True)
        whole, events = reply.whole, reply.events
    if call.json.get("stream"):
        await call.stream(*events)
    else:
        await call.whole(whole)


def bill_differs(cost_nanos: int, bill: Decimal) -> bool:
    """Return whether a cost is more than 0.1 % off a bill in USD."""
    return abs(Decimal(cost_nanos) / 10**9 - bill) > bill / 1000
