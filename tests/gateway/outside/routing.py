"""A gateway with a route over a model of a scripted provider and a service."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tessera.api.model_provider import ModelCost, ProviderModel
from tessera.api.model_route import ModelRouteSpec
from tessera.api.ref import Ref
from tessera.domain.charge.scopes import ChargeLimit
from tessera.domain.gateway.directory import ApiKey, OfferedModel, OutsideModel
from tessera.domain.gateway.outside import outside_cost
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.model.paths import PROTOCOLS
from tests.gateway.charging import paying
from tests.gateway.harness import (
    TENANT,
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from tests.gateway.outside.asking import Asking, asking
from world.provider import Provider

ROUTE, MODEL = "assistant", "big-1"
OUTSIDE = {"name": "outside", "provider": {"name": "acme", "model": MODEL}}
OWN = {"name": "own", "service": "chat"}
MANY = 10**15


async def answers(call: EngineCall) -> None:
    """Answer as an engine."""
    await call.whole(
        {
            "model": call.json["model"],
            "choices": [{"message": {"content": "Own."}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        }
    )


def a_provider_model(asked: Asking, **fields: Any) -> OfferedModel:
    """Return a model that bills twice the prices of the list."""
    values: dict[str, Any] = {
        "name": MODEL,
        "max_context_tokens": 8192,
        "max_output_tokens": 100,
        "cost": ModelCost(input="2", cached_input="0.2", output="20"),
        **fields,
    }
    offered, model = asked.offered, ProviderModel(**values)
    return OfferedModel(
        service=Ref("ModelProvider", offered.name),
        uid=f"{offered.name}/{MODEL}",
        names=(f"acme/{MODEL}",),
        tenant=None,
        tenants=frozenset(offered.weights),
        max_model_len=values["max_context_tokens"],
        paths=tuple(path for path, each in PROTOCOLS.items() if each in offered.spec.protocols),
        outside=OutsideModel(
            provider=offered,
            model=model,
            cost=outside_cost("acme", "USD", model.cost),
        ),
    )


@dataclass(slots=True)
class Routed:
    """A gateway, the provider that it may ask, and the engine of its service."""

    gateway: RunningGateway
    provider: Provider
    engine: ScriptedEngine
    asked: Asking

    async def records(self, count: int) -> list[UsageRecord]:
        """Return so many records, once they are there."""
        while len(self.gateway.records) < count:
            self.gateway.recorded.clear()
            await self.gateway.recorded.wait()
        return self.gateway.records


@asynccontextmanager
async def routed(
    folder: Path,
    *targets: Mapping[str, Any],
    own: Script = answers,
    limits: tuple[ChargeLimit | int, ...] = (MANY,),
    tenant: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    keys: Sequence[ApiKey] = (),
    service: Mapping[str, Any] | None = None,
    **provider: Any,
) -> AsyncIterator[Routed]:
    """Run a gateway whose route asks the provider first, and then the service."""
    async with AsyncExitStack() as stack:
        asked = await stack.enter_async_context(asking(folder, **provider))
        engine = await stack.enter_async_context(ScriptedEngine(own))
        outside = a_provider_model(asked, **(model or {}))
        route = OfferedModel(
            service=Ref(TENANT, ROUTE),
            uid="uid-route",
            names=(ROUTE,),
            tenant=TENANT,
            route=ModelRouteSpec.model_validate(
                {"targets": targets or (OUTSIDE, OWN), **(spec or {})}
            ),
        )
        fields = paying(*limits)
        payer = replace(fields["tenants"][TENANT], **(tenant or {}))
        directory = a_directory(
            a_model(a_replica(engine.address, max_num_seqs=1), **(service or {})),
            route,
            keys=keys,
            outside={("acme", MODEL): outside},
            **{**fields, "tenants": {TENANT: payer}},
        )
        gateway = await stack.enter_async_context(a_gateway(directory, outside=asked.client))
        yield Routed(gateway, asked.provider, engine, asked)


def a_body(text: str = "What is a tessera?", **fields: Any) -> dict[str, Any]:
    return {"model": ROUTE, "messages": [{"role": "user", "content": text}], **fields}
