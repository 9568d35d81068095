"""Replicas, requests and limits of the gateway's decisions."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

from tessera.api.model_provider import ModelCost, ModelProviderSpec, ProviderKey, ProviderModel
from tessera.api.ref import Ref
from tessera.domain.budget.name_grants import EVERY_TENANT
from tessera.domain.gateway.directory import (
    EngineReplica,
    OfferedModel,
    OfferedProvider,
    OutsideModel,
)
from tessera.domain.gateway.name_rights import NameHolder, NameRights
from tessera.domain.gateway.outside import outside_cost
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.perf.step import StepTime
from tessera.domain.picking.replica_state import EngineLoad, ReplicaState
from tests.builders import NOW

# Of an 8B model on a large GPU: 7 ms for a step, 30 us for a token of a prompt.
STEP = StepTime(weights=6e-3, kv_token=4e-8, token=3e-5, pair=2e-10)


def grants_for(*models: OfferedModel) -> NameRights:
    """Return the grants that shared models need to be offered as their specs say."""
    holders: dict[str, dict[str, NameHolder]] = {}
    for model in models:
        if model.tenant is None:
            continue  # no grant can have its names
        holder = NameHolder(model.tenant, frozenset({model.service.namespace}))
        for name in (*model.names, *model.adapters):
            by_consumer = holders.setdefault(name.lower(), {})
            for consumer in (*model.tenants, *([EVERY_TENANT] if model.public else ())):
                by_consumer.setdefault(consumer, holder)
    return NameRights(holders=holders)


def a_request(
    input_tokens: int = 512, max_output_tokens: int = 128, adapter: str | None = None
) -> RequestShape:
    return RequestShape(
        model="chat",
        input_tokens=input_tokens,
        max_output_tokens=max_output_tokens,
        adapter=adapter,
    )


def an_engine_replica(name: str = "chat-1", **fields: Any) -> EngineReplica:
    defaults = {
        "pod": Ref("team-a", name),
        "uid": f"uid-{name}",
        "address": "10.0.0.1:8000",
        "ready_since": NOW - timedelta(hours=1),
        "max_num_seqs": 64,
        "max_num_batched_tokens": 8192,
        "step_time": STEP,
    }
    return EngineReplica(**{**defaults, **fields})


def a_replica_state(
    name: str = "chat-1", *, awaiting: int = 0, decoding: int = 0, **fields: Any
) -> ReplicaState:
    """Return a state at monotonic second 0 with requests of 512 tokens in flight."""
    state = ReplicaState.create(an_engine_replica(name, **fields), now=0.0, utc_now=NOW)
    for _ in range(awaiting + decoding):
        state.sent(512)
    for _ in range(decoding):
        state.first_token(512)
    return state


def an_engine_load(running: int = 0, waiting: int = 0, **fields: Any) -> EngineLoad:
    values = {"running": running, "waiting": waiting, "observed_at": 0.0}
    return EngineLoad(**{**values, **fields})


def an_offered_provider(name: str = "acme", **fields: Any) -> OfferedProvider:
    weights = fields.pop("weights", {"team-a": 1.0})
    defaults: dict[str, Any] = {
        "base_url": f"https://{name}.example/v1",
        "protocols": ("OpenAIChat", "OpenAIResponses", "AnthropicMessages"),
        "secret": ProviderKey(name=name),
    }
    spec = ModelProviderSpec.model_construct(**{**defaults, **fields})
    return OfferedProvider(name=name, spec=spec, weights=weights)


def an_outside_model(
    name: str = "large-1", provider: OfferedProvider | None = None, **fields: Any
) -> OutsideModel:
    defaults: dict[str, Any] = {
        "max_context_tokens": 128_000,
        "max_output_tokens": 4096,
        "media": True,
        "reasoning": True,
        "cost": ModelCost(input=Decimal(1), output=Decimal(4)),
    }
    model = ProviderModel(name=name, **{**defaults, **fields})
    return OutsideModel(
        provider=provider or an_offered_provider(),
        model=model,
        cost=outside_cost("acme", "USD", model.cost),
    )
