"""The CRDs at a real API server: every rule, every bound, strictness, explain, scale."""

import asyncio
import itertools
import json
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from tessera.adapters.kube.client import KubeCluster
from tessera.api.api_resource import ApiResource
from tessera.api.price_list import MAX_MEASURED_PRICES, PriceListSpec
from tessera.api.ref import Ref
from tessera.api.schema import crd
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.cost.cost_prices import DAY, ServiceDay, next_status
from tessera.domain.gateway.name_rights import NameHolder, NameRights
from tessera.domain.kinds.kinds import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    KINDS,
    MODEL_PROVIDERS,
    MODEL_ROUTES,
    PRICE_LISTS,
    QUALITY_GATES,
    TENANT_BUDGETS,
)
from tessera.domain.observed.price_lists import ObservedPriceList
from tessera.domain.observed.snapshot import ObservedService
from tessera.resources.api_resources import PRICED_LISTS
from tessera.resources.manifest import partial_manifest, wire_format
from tests.builders import A_MODEL_OUTSIDE, a_provider_spec
from world import World
from world.testing import eventually

URI = "hf://meta-llama/Llama-3.1-8B-Instruct"
_numbers = itertools.count(1)

SHAPE = {
    "parameters": 100,
    "layers": 1,
    "attentionHeads": 1,
    "kvHeads": 1,
    "headDim": 1,
    "maxPositionEmbeddings": 100,
}


def a_service_spec(**spec: Any) -> dict[str, Any]:
    return {"model": {"uri": URI}, **spec}


def a_pool_spec(*prices: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {"nodeSelector": {"a": "b"}, "prices": list(prices), **spec}


A_COST: dict[str, Any] = {"input": "1", "output": "2"}
STEP: dict[str, Any] = A_COST | {"aboveInputTokens": 1}
COST_RULES: list[tuple[dict[str, Any], str]] = [
    (A_COST | {"search": "0.01"}, "needs both search and maxSearches"),
    (A_COST | {"steps": [STEP | {"aboveInputTokens": 2}, STEP]}, "needs ascending values"),
    (A_COST | {"cacheWrite": "2", "steps": [STEP]}, "repeat those that do not change"),
]
SUITE: dict[str, Any] = {"configMap": {"name": "suite"}}


def a_gate_spec(**spec: Any) -> dict[str, Any]:
    return {"suite": SUITE, **spec}


PRICE = {"from": "2026-01-01", "perGPUHour": "2.16"}
OUTSIDE = {"name": "acme", "model": "Big"}

RULES = [
    # kind, spec, words of the message
    *(
        (
            INFERENCE_SERVICES,
            a_service_spec(podTemplate={field: {"k" * 318: "v"}}),
            f"spec.podTemplate.{field}: a key has at most 317 characters",
        )
        for field in ("labels", "annotations")
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(scaling={"minReplicas": 9}),
        "spec.scaling.minReplicas must not exceed spec.scaling.maxReplicas",
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(scaling={"minReplicas": 0}),
        "spec.scaling.minReplicas 0 needs spec.scaling.idle",
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(scaling={"minReplicas": 0, "idle": {"after": "25h"}}),
        '"25h": must be a duration of at least 30s and at most 24h, written like 33ms',
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(
            model={"uri": "hf://Qwen/Qwen3-8B", "adapters": [{"name": "sql", "uri": "hf://a/sql"}]},
            access={"aliases": ["sql"]},
        ),
        "spec.access.aliases has the name of an adapter",
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(scaling={"activity": {"target": "1.5"}}),
        "spec.scaling.activity.target is a share",
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(drain={"timeout": "1 min"}),
        'spec.drain.timeout: Invalid value: "1 min": must be a duration of at most 24h, written '
        "like 33ms, 90s or 1h30m",
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(scaling={"scaleDown": {"stabilizationWindow": "61m"}}),
        "spec.scaling.scaleDown.stabilizationWindow: Invalid value",
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(scaling={"scaleUp": {"stabilizationWindow": "2h"}}),
        "spec.scaling.scaleUp.stabilizationWindow: Invalid value",
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(scaling={"scaleUp": {"period": "2h"}}),
        "spec.scaling.scaleUp.period: Invalid value",
    ),
    (INFERENCE_SERVICES, a_service_spec(slo={"ttftP95": "61m"}), "spec.slo.ttftP95: Invalid value"),
    (INFERENCE_SERVICES, a_service_spec(slo={"itlP95": "61s"}), "spec.slo.itlP95: Invalid value"),
    (
        ACCELERATOR_POOLS,
        a_pool_spec(PRICE, mig={"drainDeadline": "25h"}),
        "spec.mig.drainDeadline: Invalid value",
    ),
    (
        INFERENCE_SERVICES,
        {"model": {"uri": "pvc://claim/path", "revision": "main", "shape": SHAPE}},
        "spec.model.revision applies to hf:// models only",
    ),
    (
        INFERENCE_SERVICES,
        {
            "model": {
                "uri": "pvc://claim/path",
                "shape": SHAPE,
                "cache": {"type": "PersistentVolumeClaim"},
            }
        },
        "spec.model.cache does not apply to pvc:// and oci:// models",
    ),
    (
        INFERENCE_SERVICES,
        {"model": {"uri": URI, "shape": SHAPE | {"activeParameters": 101}}},
        "spec.model.shape.activeParameters",
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(podTemplate={"env": [{"name": "A"}]}),
        "needs exactly one of value and valueFrom",
    ),
    (
        ACCELERATOR_POOLS,
        a_pool_spec(PRICE, {"from": "2026-02-01", "perGPUHour": "2", "currency": "EUR"}),
        "spec.prices must have the same currency",
    ),
    (
        ACCELERATOR_POOLS,
        a_pool_spec(PRICE, {"from": "2026-01-01", "perGPUHour": "3"}),
        "spec.prices has two prices with the same first day",
    ),
    (
        ACCELERATOR_POOLS,
        a_pool_spec(PRICE, tolerations=[{"key": "a", "operator": "Exists", "value": "b"}]),
        "with operator Exists, which matches any value",
    ),
    (
        ACCELERATOR_POOLS,
        a_pool_spec(PRICE, tolerations=[{"value": "b"}]),
        "spec.tolerations[] needs a key, or operator Exists",
    ),
    (
        ACCELERATOR_POOLS,
        a_pool_spec(PRICE, tolerations=[{"key": "a", "tolerationSeconds": 5}]),
        "spec.tolerations[].tolerationSeconds needs",
    ),
    (
        ACCELERATOR_POOLS,
        a_pool_spec(PRICE, mig={"mode": "Auto", "layout": {"3g.40gb": 2}}),
        "spec.mig.layout sets the layout of all GPUs and needs spec.mig.mode Static",
    ),
]

TEMPLATE = {"product": "NVIDIA-A100-SXM4-80GB", "gpus": 8, "maxNodes": 4}
RULES += [
    (ACCELERATOR_POOLS, a_pool_spec(PRICE, nodeTemplate=TEMPLATE | fields), words)
    for fields, words in (
        ({"labels": {"a": "c"}}, "spec.nodeTemplate.labels has a label of spec.nodeSelector with"),
        (
            {"labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
            "spec.nodeTemplate.product is not the label nvidia.com/gpu.product",
        ),
        (
            {"labels": {"nvidia.com/gpu.count": "4"}},
            "spec.nodeTemplate.gpus is not the label nvidia.com/gpu.count",
        ),
        ({"expectedStart": "2h"}, "must be a duration of at least 10s and at most 1h"),
    )
]
RULES += [
    (
        ACCELERATOR_POOLS,
        a_pool_spec(
            PRICE,
            mig={"mode": "Static", "layout": {"3g.40gb": 2}},
            nodeTemplate=TEMPLATE | {"migLayout": {"1g.10gb": 7}},
        ),
        "spec.nodeTemplate.migLayout is not spec.mig.layout",
    ),
]

BUDGET = {
    "owner": "anna@example.org",
    "tenant": {"namespaces": ["team-a"]},
    "limits": [{"window": "Day", "amount": "10"}],
}


def a_charge_limit(**fields: str) -> dict[str, Any]:
    members = {"team", "key", "user", "service", "model"} & fields.keys()
    own = {name: fields[name] for name in fields.keys() - members}
    limit: dict[str, Any] = {"window": "Day", "amount": "1", "basis": "Charge", **own}
    return limit | ({"for": {name: fields[name] for name in members}} if members else {})


# Of a request with a key: 2 of the tenant, 4 of its team, 2 of its key, 2 of the service, 2 of the
# model.
MOST_LIMITS = [
    *(a_charge_limit(window=window) for window in ("Day", "Month")),
    *(a_charge_limit(window=window, team=team) for window in ("Day", "Week") for team in "a*"),
    *(a_charge_limit(window=window, team="b") for window in ("Day", "Week")),
    *(a_charge_limit(window=window, key="*") for window in ("Day", "Week")),
    *(a_charge_limit(window=window, user="*") for window in ("Day", "Week")),
    *(a_charge_limit(window=window, service="a/b") for window in ("Day", "Week")),
    *(a_charge_limit(model=model) for model in ("*", "chat")),
]
AN_ENTRY = {"from": "2026-01-01", "models": ["*"], "input": "1", "output": "2"}
TERMS = {"factor": "1.2", "atLeast": "0.1"}
BY_COST = {"from": "2026-01-01", "models": ["*"], "fromCost": TERMS}

RULES += [
    (
        TENANT_BUDGETS,
        BUDGET | {"limits": [{"window": "Day", "amount": "10"}, {"window": "Day", "amount": "9"}]},
        "spec.limits has two limits with the same basis, window, tier and for",
    ),
    *(
        (TENANT_BUDGETS, BUDGET | {"limits": [a_charge_limit(**{field: value})]}, words)
        for field, value, words in (
            ("name", "Month", "must be lower-case letters, digits, dots and hyphens"),
            ("team", "-", "must be the name of a team, or * for each"),
            ("key", "CI", "must be the name of a key, or * for each"),
            ("user", "a b", "must be a user without spaces, or * for each"),
            ("service", "chat", "must be namespace/name of an InferenceService, or * for each"),
            ("model", "Llama", "must be a served name in lower case, or * for each"),
        )
    ),
    (
        TENANT_BUDGETS,
        BUDGET | {"limits": [a_charge_limit(key="ci"), a_charge_limit(name="charge-day-key-ci")]},
        "spec.limits has two limits of the same name",
    ),
    (
        TENANT_BUDGETS,
        BUDGET | {"limits": [a_charge_limit(tier="Spot")]},
        "spec.limits has a tier in a limit of basis Charge",
    ),
    (
        TENANT_BUDGETS,
        BUDGET | {"limits": [a_charge_limit(basis="Cost", key="*")]},
        "spec.limits has a for without service in a limit of basis Cost",
    ),
    (
        TENANT_BUDGETS,
        BUDGET | {"limits": [a_charge_limit(key="ci", team="ads")]},
        "spec.limits[].for needs one of team, key, user, service and model",
    ),
    (
        TENANT_BUDGETS,
        BUDGET | {"limits": [*MOST_LIMITS, a_charge_limit(window="Week", model="chat")]},
        "spec.limits has more than 12 limits that may hold for one request",
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(rollout={"strategy": "Gated"}),
        "spec.rollout.strategy Gated needs spec.rollout.gateRef",
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(rollout={"gateWindow": {"cron": "0 2 * * *", "duration": "5m"}}),
        "must be a duration of at least 10m and at most 24h",
    ),
    *(
        (QUALITY_GATES, a_gate_spec(**spec), words)
        for spec, words in (
            ({"suite": {}}, "spec.suite needs exactly one of configMap and claim"),
            ({"suite": SUITE | {"prompts": {"Sums": 9}}}, "a stratum is named by at most 40"),
            ({"maxDropPoints": "0"}, "must be a number from 0.1 to 50"),
            ({"maxRelativeDrop": "1.1"}, "must be a number from 0 to 1"),
            ({"maxCostIncrease": "1.1"}, "must be a number from 0 to 1"),
            ({"minScore": "1.1"}, "must be a number from 0 to 1"),
            ({"timeout": "30s"}, "must be a duration of at least 60s and at most 24h"),
        )
    ),
    *(
        (MODEL_ROUTES, {"targets": [{"service": "small"}, *targets]} | spec, words)
        for targets, spec, words in (
            ([{"service": "large", "when": {"maxScore": 2}}], {}, "so it has no when"),
            ([{"service": "team-b/small"}], {}, "spec.targets: two have the same name"),
            (
                [{"service": "large", "weight": 0}],
                {"select": "Weights", "targets": [{"service": "small", "weight": 0}]},
                "spec.targets: with select Weights one needs a weight above 0",
            ),
            (
                [{"service": "large", "timeouts": {"firstToken": "16m"}}],
                {},
                "must be a duration of at least 100ms and at most 15m",
            ),
            (
                [{"service": "large", "timeouts": {"total": "500ms"}}],
                {},
                "must be a duration of at least 1s and at most 24h",
            ),
            ([{"name": "outside"}], {}, "spec.targets[] needs either service or provider"),
            ([{"provider": OUTSIDE}], {}, "spec.targets[] with a provider needs a name"),
            (
                [{"name": "outside", "provider": {"name": "acme", "model": "a b"}}],
                {},
                "must be letters, digits and . _ : / @ + ~ -, as the provider calls the model",
            ),
        )
    ),
    *(
        (MODEL_PROVIDERS, a_provider_spec(models=[A_MODEL_OUTSIDE | {"cost": cost}]), words)
        for cost, words in COST_RULES
    ),
    *(
        (MODEL_PROVIDERS, a_provider_spec(**spec), words)
        for spec, words in (
            ({"baseUrl": "http://api.example.com/v1"}, "must be an https URL with the version"),
            ({"proxyUrl": "http://me:secret@proxy"}, "must be a URL of a host and a port alone"),
            ({"dialect": "xAI"}, "must be lower-case letters, digits and - _ . within"),
            ({"timeouts": {"connect": "61s"}}, "at least 100ms and at most 60s"),
            ({"timeouts": {"firstByte": "16m"}}, "at least 100ms and at most 15m"),
            ({"timeouts": {"gap": "1ms"}}, "at least 100ms and at most 15m"),
            ({"timeouts": {"total": "25h"}}, "at least 1s and at most 24h"),
            ({"models": [A_MODEL_OUTSIDE | {"name": ""}]}, "must be letters, digits and"),
            (
                {"models": [A_MODEL_OUTSIDE, A_MODEL_OUTSIDE | {"name": "big"}]},
                "spec.models has two of the same name, in any case",
            ),
        )
    ),
    (
        PRICE_LISTS,
        {"entries": [AN_ENTRY, AN_ENTRY | {"input": "2"}]},
        "spec.entries has two prices for the same day, models and tenants",
    ),
    (
        PRICE_LISTS,
        {"entries": [BY_COST | {"cachedInput": "1"}]},
        "spec.entries[] needs input and output, or fromCost and no other price of tokens",
    ),
    (
        PRICE_LISTS,
        {"entries": [BY_COST | {"fromCost": {"factor": "1", "atLeast": "2", "atMost": "1.5"}}]},
        "spec.entries[].fromCost has atLeast above atMost",
    ),
    (
        PRICE_LISTS,
        {"entries": [AN_ENTRY | {"models": ["Llama"]}]},
        'spec.entries[0].models[0]: Invalid value: "Llama": must be a served name',
    ),
    (
        TENANT_BUDGETS,
        BUDGET | {"tenant": {"namespaces": ["team-a", "team-a"]}},
        "spec.tenant.namespaces lists a namespace twice",
    ),
    (TENANT_BUDGETS, BUDGET | {"weight": "0"}, "spec.weight must be from 0.01 to 1000"),
    (TENANT_BUDGETS, BUDGET | {"gpus": "0"}, "spec.gpus must be above 0"),
    (
        TENANT_BUDGETS,
        BUDGET | {"publishing": [{"names": ["GPT-4o"]}]},
        'spec.publishing[0].names[0]: Invalid value: "GPT-4o": must be lower-case letters, digits',
    ),
    (
        TENANT_BUDGETS,
        BUDGET | {"publishing": [{"names": ["llama"], "namespaces": ["elsewhere"]}]},
        "spec.publishing has a namespace that spec.tenant.namespaces lacks",
    ),
]
BATCH: dict[str, Any] = {
    "claimName": "data",
    "input": "in.jsonl",
    "output": "out.jsonl",
    "model": {"uri": URI, "shape": SHAPE},
}
ADDRESS = {"allowedMediaDomains": ["images.example.org", "10.0.0.7"]}
# Of lists of precisions: variants, words of the message.
PRECISION_RULES = [
    ([{"precision": "awq-int4"}], "the engine makes fp8 alone while loading; set uri"),
    (
        [{"precision": "fp8", "revision": "main"}],
        "spec.precision.variants[].revision applies to an hf:// uri only",
    ),
    (
        [{"precision": "fp8"}, {"precision": "fp8", "uri": "hf://acme/fp8"}],
        "spec.precision.variants lists a precision twice",
    ),
    (
        [{"precision": "awq-int4", "uri": URI}],
        "spec.precision.variants has the uri of spec.model.uri",
    ),
    ([{"precision": "awq-int4", "uri": "ftp://a/b"}], "spec.precision.variants[0].uri: Invalid"),
]

# Of options of the engine: what they are, words of the message.
DRAFT = {"uri": "hf://acme/draft"}
ENGINE_RULES: list[tuple[dict[str, Any], str]] = [
    ({"gpuMemoryUtilization": "1.01"}, "must be a number from 0.1 to 1"),
    ({"speculation": {"method": "Eagle"}}, "the methods DraftModel and Eagle need it"),
    (
        {"speculation": {"method": "NGram", "model": DRAFT}},
        "the method NGram drafts without a model",
    ),
    (
        {"speculation": {"method": "DraftModel", "model": {"uri": "ftp://a/b"}}},
        "spec.engine.speculation.model.uri: Invalid value",
    ),
]

RULES += [
    *(
        (kind, {**base, "engine": engine}, message)
        for kind, base in ((INFERENCE_SERVICES, a_service_spec()), (BATCH_INFERENCES, BATCH))
        for engine, message in ENGINE_RULES
    ),
    *(
        (kind, {**base, "precision": {"variants": variants}}, message)
        for kind, base in ((INFERENCE_SERVICES, a_service_spec()), (BATCH_INFERENCES, BATCH))
        for variants, message in PRECISION_RULES
    ),
    (INFERENCE_SERVICES, a_service_spec(engine=ADDRESS), "must be the name of a host"),
    (BATCH_INFERENCES, BATCH | {"engine": ADDRESS}, "must be the name of a host"),
    (BATCH_INFERENCES, BATCH | {"service": "chat"}, "spec.model and spec.service"),
    (
        BATCH_INFERENCES,
        BATCH | {"ttlAfterFinished": "8761h"},
        "spec.ttlAfterFinished: Invalid value",
    ),
    (
        BATCH_INFERENCES,
        {**BATCH, "model": None, "service": "chat", "context": {}},
        "spec.precision, spec.context and spec.engine come from spec.service",
    ),
    *(
        (
            kind,
            {**base, "model": {"uri": URI, "shape": SHAPE, "cache": {"size": "16385Gi"}}},
            "spec.model.cache.size must be at most 16Ti",
        )
        for kind, base in ((INFERENCE_SERVICES, a_service_spec()), (BATCH_INFERENCES, BATCH))
    ),
    (BATCH_INFERENCES, BATCH | {"output": "in.jsonl"}, "3 different files"),
    (BATCH_INFERENCES, BATCH | {"deadline": "5s"}, '"5s": must be a duration of at least 60s'),
    (
        BATCH_INFERENCES,
        BATCH | {"model": {"uri": "pvc://claim/path", "revision": "main", "shape": SHAPE}},
        "spec.model.revision applies to hf:// models only",
    ),
    (
        BATCH_INFERENCES,
        BATCH | {"model": {"uri": URI, "shape": SHAPE, "cache": {"type": "PersistentVolumeClaim"}}},
        "spec.model.cache.type PersistentVolumeClaim downloads the files once and for all",
    ),
    (
        BATCH_INFERENCES,
        BATCH | {"model": {"uri": URI, "shape": SHAPE | {"activeParameters": 101}}},
        "spec.model.shape.activeParameters",
    ),
    *(
        (
            BATCH_INFERENCES,
            BATCH | {field: "./x"},
            f'spec.{field}: Invalid value: "./x": must be a path on the claim, such as jobs/',
        )
        for field in ("input", "output", "errors")
    ),
    *(
        (kind, base | {"model": base["model"] | change}, f"{field}: Invalid value: {words}")
        for kind, base in ((INFERENCE_SERVICES, a_service_spec()), (BATCH_INFERENCES, BATCH))
        for change, field, words in (
            (
                {"uri": "https://models.example/llama"},
                "spec.model.uri",
                '"https://models.example/llama": must be hf://organization/name, pvc://claim/',
            ),
            (
                {"store": {"endpoint": "ftp://models.example"}},
                "spec.model.store.endpoint",
                '"ftp://models.example": must be http:// or https:// with a host',
            ),
            (
                {"adapters": [{"name": "sql", "uri": "s3://models/../sql"}]},
                "spec.model.adapters[0].uri",
                '"s3://models/../sql": must be hf://organization/name, pvc://claim/path, ',
            ),
        )
    ),
]
FIXED = [
    {"claimName": "other"},
    {"input": "other.jsonl"},
    {"output": "other.jsonl"},
    {"errors": "errors.jsonl"},
    {"model": {"uri": "hf://Qwen/Qwen3-8B"}},
    {"model": None, "service": "chat"},
    {"modelAliases": ["gpt-4o-mini"]},
    {"precision": {"variants": [{"precision": "fp8"}]}},
    {"context": {"maxModelLen": 64}},
    {"engine": {"extraArgs": ["--max-logprobs=5"]}},
]

BOUNDS = [
    *(
        (
            INFERENCE_SERVICES,
            a_service_spec(drain={"timeout": text}),
            f'.timeout: Invalid value: "{text}": must',
        )
        for text in ("", "60", "1d", "24h1ms", "999999h", "1m1h")
    ),
    (
        INFERENCE_SERVICES,
        a_service_spec(scaling={"minReplicas": 0, "idle": {"after": "29s"}}),
        '.after: Invalid value: "29s": must be a duration of at least 30s',
    ),
    (
        BATCH_INFERENCES,
        BATCH | {"deadline": "a day"},
        'spec.deadline: Invalid value: "a day": must',
    ),
    (BATCH_INFERENCES, BATCH | {"input": "/etc/passwd"}, "spec.input"),
    (BATCH_INFERENCES, BATCH | {"output": "../other"}, "spec.output"),
    (BATCH_INFERENCES, BATCH | {"retries": 21}, "spec.retries"),
    (BATCH_INFERENCES, BATCH | {"spot": {"policy": "maybe"}}, "spec.spot.policy"),
    (TENANT_BUDGETS, BUDGET | {"owner": ""}, "spec.owner"),
    (
        TENANT_BUDGETS,
        BUDGET | {"publishing": [{"names": [f"name-{number}" for number in range(10_000)]}]},
        "spec.publishing[0].names: Too many: 10000: must have at most 32 items",
    ),
    (
        TENANT_BUDGETS,
        BUDGET | {"publishing": [{"names": ["gpt-4\u043e"]}]},
        "must be lower-case letters, digits and . _ : / @ + ~ -, such as llama-3",
    ),
    (
        TENANT_BUDGETS,
        BUDGET | {"publishing": [{"names": ["a", "a"]}]},
        "spec.publishing[0].names[1]",
    ),
    (TENANT_BUDGETS, BUDGET | {"limits": []}, "spec.limits"),
    (
        TENANT_BUDGETS,
        BUDGET | {"limits": [a_charge_limit(user=f"u{number}") for number in range(33)]},
        "spec.limits: Too many: 33: must have at most 32 items",
    ),
    *(
        (TENANT_BUDGETS, BUDGET | {"limits": limits}, words)
        for limits, words in (
            ([a_charge_limit(team="Ads"), a_charge_limit(team="ads")], "limits of the same name"),
            ([a_charge_limit(name="a"), a_charge_limit(name="b")], "the same basis, window, tier"),
            ([a_charge_limit(user="u" * 256)], "spec.limits[0].for.user"),
        )
    ),
    (PRICE_LISTS, {"entries": []}, "spec.entries"),
    (PRICE_LISTS, {"entries": [AN_ENTRY | {"input": "-1"}]}, "spec.entries[0].input"),
    (PRICE_LISTS, {"entries": [AN_ENTRY | {"from": "soon"}]}, "spec.entries[0].from"),
    (PRICE_LISTS, {"entries": [AN_ENTRY], "currency": "usd"}, "spec.currency"),
    (
        TENANT_BUDGETS,
        BUDGET | {"limits": [{"window": "Day", "amount": "-1"}]},
        "spec.limits[0].amount",
    ),
    (
        TENANT_BUDGETS,
        BUDGET | {"limits": [{"window": "week", "amount": "1"}]},
        "spec.limits[0].window",
    ),
    (TENANT_BUDGETS, BUDGET | {"timeZone": "not a zone"}, "spec.timeZone"),
    (TENANT_BUDGETS, BUDGET | {"currency": "dollars"}, "spec.currency"),
    (
        INFERENCE_SERVICES,
        {"model": {"uri": URI, "adapters": [{"name": "a", "uri": URI}, {"name": "a", "uri": URI}]}},
        "spec.model.adapters[1]",
    ),
    (
        INFERENCE_SERVICES,
        {"model": {"uri": URI, "adapters": [{"name": "a", "uri": URI, "rank": 513}]}},
        "spec.model.adapters[0].rank",
    ),
    (
        INFERENCE_SERVICES,
        {"model": {"uri": URI, "cache": {"type": "PersistentVolumeClaim", "size": "50"}}},
        "spec.model.cache.size",
    ),
    (INFERENCE_SERVICES, {"model": {"uri": "ftp://x"}}, "spec.model.uri"),
    (INFERENCE_SERVICES, {}, "spec.model"),
    (INFERENCE_SERVICES, a_service_spec(replicas=-1), "spec.replicas"),
    (INFERENCE_SERVICES, a_service_spec(drain={"timeout": "a minute"}), "spec.drain.timeout"),
    (INFERENCE_SERVICES, a_service_spec(engine={"version": "latest"}), "spec.engine.version"),
    (INFERENCE_SERVICES, a_service_spec(scaling={"minReplicas": 0}), "spec.scaling.minReplicas"),
    (
        INFERENCE_SERVICES,
        a_service_spec(precision={"variants": [{"precision": "int1"}]}),
        "spec.precision.variants[0].precision",
    ),
    (MODEL_ROUTES, {"targets": []}, "spec.targets"),
    (MODEL_ROUTES, {"targets": [{"service": "Small"}]}, "spec.targets[0].service"),
    (MODEL_ROUTES, {"targets": [{"service": "a/b/c"}]}, "spec.targets[0].service"),
    (
        MODEL_ROUTES,
        {"targets": [{"service": f"s{number}"} for number in range(9)]},
        "spec.targets: Too many: 9: must have at most 8 items",
    ),
    (
        MODEL_ROUTES,
        {"targets": [{"service": "a"}], "fallback": ["Timeout", "Timeout"]},
        "spec.fallback[1]: Duplicate value",
    ),
    (
        MODEL_PROVIDERS,
        a_provider_spec(models=[A_MODEL_OUTSIDE | {"cost": {"input": "-1", "output": "1"}}]),
        "spec.models[0].cost.input",
    ),
    (MODEL_PROVIDERS, a_provider_spec(protocols=[]), "spec.protocols"),
    (MODEL_PROVIDERS, a_provider_spec(tenants=[]), "spec.tenants"),
    (TENANT_BUDGETS, BUDGET | {"dataResidency": ["EU"]}, "spec.dataResidency[0]"),
    (ACCELERATOR_POOLS, a_pool_spec(), "spec.prices"),
    (ACCELERATOR_POOLS, a_pool_spec(PRICE, tier="free"), "spec.tier"),
    (ACCELERATOR_POOLS, a_pool_spec(PRICE | {"perGPUHour": "-1"}), "spec.prices[0].perGPUHour"),
    (ACCELERATOR_POOLS, a_pool_spec(PRICE | {"from": "soon"}), "spec.prices[0].from"),
    (ACCELERATOR_POOLS, a_pool_spec(PRICE, mig={"backend": "nobody"}), "spec.mig.backend"),
    (
        ACCELERATOR_POOLS,
        a_pool_spec(PRICE, mig={"mode": "Static", "layout": {"3g.40gb": 9}}),
        "spec.mig.layout.3g.40gb",
    ),
    (
        ACCELERATOR_POOLS,
        a_pool_spec(PRICE, mig={"maintenanceWindow": {"start": "25:00", "end": "06:00"}}),
        "spec.mig.maintenanceWindow.start",
    ),
]

NAMES: list[tuple[ApiResource, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = [
    # kind, spec, refused names, accepted names
    (
        INFERENCE_SERVICES,
        a_service_spec(),
        ("llama-3.1-8b", "3llama", f"n-{'a' * 62}"),
        ("llama-3-1-8b", f"n-{'a' * 61}"),
    ),
    (BATCH_INFERENCES, BATCH, ("night.1", "n" * 64), ("2026-11", "n" * 63)),
    (ACCELERATOR_POOLS, a_pool_spec(PRICE), ("p" * 64,), ("a100.west", "p" * 63)),
    (MODEL_PROVIDERS, a_provider_spec(), ("p" * 32, "acme.eu"), ("p" * 31, "acme-eu")),
]


async def create(
    cluster: KubeCluster,
    kind: ApiResource,
    spec: dict[str, Any],
    name: str | None = None,
    **query: str,
) -> tuple[int, Any]:
    body = {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": name or f"case-{next(_numbers)}"},
        "spec": spec,
    }
    return await cluster.request("POST", kind.path("default"), query, body)


@pytest.mark.parametrize(("kind", "spec", "words"), RULES)
async def test_every_rule_refuses_with_its_message(
    cluster: KubeCluster, kind: ApiResource, spec: dict[str, Any], words: str
) -> None:
    status, answer = await create(cluster, kind, spec)
    assert status == 422
    assert words in answer["message"]


@pytest.mark.parametrize(("kind", "spec", "field"), BOUNDS)
async def test_what_is_out_of_bounds_is_refused_with_its_path(
    cluster: KubeCluster, kind: ApiResource, spec: dict[str, Any], field: str
) -> None:
    status, answer = await create(cluster, kind, spec)
    assert status == 422
    assert field in answer["message"]


@pytest.mark.parametrize(
    ("kind", "spec", "refused", "accepted"), NAMES, ids=[case[0].plural for case in NAMES]
)
async def test_a_name_that_no_child_can_have_is_refused(
    cluster: KubeCluster,
    kind: ApiResource,
    spec: dict[str, Any],
    refused: tuple[str, ...],
    accepted: tuple[str, ...],
) -> None:
    for name in refused:
        status, answer = await create(cluster, kind, spec, name)
        assert status == 422
        assert "metadata.name is also" in answer["message"]
    for name in accepted:
        status, answer = await create(cluster, kind, spec, name)
        assert status == 201, answer


def test_every_rule_has_a_manifest() -> None:
    text = json.dumps([crd(kind) for kind in KINDS])
    assert text.count('"rule":') == len(RULES) + len(FIXED) + len(NAMES)


@pytest.mark.parametrize("change", FIXED, ids=lambda change: next(reversed(change)))
async def test_what_answers_depend_on_cannot_change(
    cluster: KubeCluster, change: dict[str, Any]
) -> None:
    status, batch = await create(cluster, BATCH_INFERENCES, BATCH)
    assert status == 201
    path = BATCH_INFERENCES.path("default", batch["metadata"]["name"])
    body = {"spec": change}
    status, answer = await cluster.request("PATCH", path, {}, body, "application/merge-patch+json")
    assert status == 422
    assert f"spec.{next(reversed(change))} is immutable" in answer["message"]


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ({"uri": URI, "revision": "a" * 40}, 201),
        ({"uri": URI, "revision": "main"}, 422),
        ({"uri": "s3://models/llama"}, 201),
        ({"uri": "pvc://claim/llama"}, 422),
        ({"uri": "oci://registry/llama:1"}, 422),
    ],
)
async def test_a_batch_caches_files_that_cannot_become_others(
    cluster: KubeCluster, model: dict[str, Any], status: int
) -> None:
    model = {**model, "cache": {"type": "PersistentVolumeClaim"}}
    answer = await create(cluster, BATCH_INFERENCES, {**BATCH, "model": model})
    assert answer[0] == status, answer


@pytest.mark.parametrize(
    "limits",
    [
        MOST_LIMITS,
        [a_charge_limit(user=f"{number:0255}") for number in range(32)],
        [
            *MOST_LIMITS,
            *(
                a_charge_limit(window=window, basis="Cost", service=service)
                for window in ("Hour", "Day", "Week", "Month")
                for service in ("*", "team-a/chat")
            ),
        ],
    ],
    ids=["twelve of a request", "thirty-two of users", "those of nodes beside them"],
)
async def test_a_budget_may_have_many_limits(
    cluster: KubeCluster, limits: list[dict[str, Any]]
) -> None:
    status, answer = await create(cluster, TENANT_BUDGETS, BUDGET | {"limits": limits})
    assert status == 201, answer


async def test_a_price_list_may_have_many_entries(cluster: KubeCluster) -> None:
    models = [f"{number:0128}" for number in range(32)]
    tenants = [f"{'t' * 60}.{number}" for number in range(32)]
    entries = [
        AN_ENTRY | {"from": f"20{year}-01-01", "models": models, "tenants": tenants}
        for year in range(26, 90)
    ]
    status, answer = await create(cluster, PRICE_LISTS, {"entries": entries})
    assert status == 201, answer


async def test_a_price_by_cost_needs_no_other_price_and_may_have_bounds(
    cluster: KubeCluster,
) -> None:
    bounds = TERMS | {"atMost": "0.1"}
    entries = [BY_COST, BY_COST | {"models": ["chat"], "fromCost": bounds, "perRequest": "1"}]
    status, answer = await create(cluster, PRICE_LISTS, {"entries": entries})
    assert status == 201, answer
    for entry in (
        BY_COST | {"fromCost": {"factor": "1.2"}},
        {**BY_COST, "fromCost": None},
        {**AN_ENTRY, "output": None},
        AN_ENTRY | BY_COST,
    ):
        status, answer = await create(cluster, PRICE_LISTS, {"entries": [entry]})
        assert status == 422, answer


async def test_the_longest_status_of_prices_by_cost_is_accepted_and_read_again(
    cluster: KubeCluster,
) -> None:
    bounds = {"factor": "1.5", "atLeast": "0", "atMost": "100000"}
    entries = [
        BY_COST | {"from": f"20{year}-01-01", "fromCost": bounds, "tenants": ["a", "b"]}
        for year in range(26, 90)
    ]
    status, answer = await create(cluster, PRICE_LISTS, {"entries": entries}, "by-cost")
    assert status == 201, answer
    spec = PriceListSpec.model_validate({"entries": entries})
    price_list = ObservedPriceList(ref=Ref("", "by-cost"), spec=spec)
    holder = NameHolder("a", frozenset({"team-a"}))
    rights = NameRights(holders={"chat": {"a": holder}})
    day = ServiceDay(
        namespace="team-a",
        models=frozenset({"chat"}),
        costs={"USD": 987_654_321},
        tokens=3_333_333,
    )
    for number in range(MAX_MEASURED_PRICES + 1):
        today = date(2090, 1, 1) + number * DAY
        price_list = replace(price_list, status=next_status(price_list, today, [day], rights))
    prices = [len(entry.prices) for entry in price_list.status.entries]
    assert prices == [MAX_MEASURED_PRICES] * 64
    meta = {"name": "by-cost", "uid": answer["metadata"]["uid"]}
    written = partial_manifest(PRICED_LISTS, meta, status=wire_format(price_list.status))
    applied = await cluster.apply(written, subresource="status")
    observed = applied.plan_input
    assert isinstance(observed, ObservedPriceList)
    assert (observed.spec, observed.status) == (spec, price_list.status)
    listing = await cluster.list(PRICED_LISTS)
    assert listing is not None
    assert observed in [each.plan_input for each in listing.items]


async def test_a_route_keeps_the_schema_of_answers_and_may_be_as_large_as_its_bounds(
    cluster: KubeCluster,
) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "minLength": 1}}}
    condition = {"maxScore": 2, "tags": {f"{number:064}": "t" * 64 for number in range(8)}}
    targets = [
        {
            "name": f"n{number:062}",
            "service": f"{'a' * 63}/{'s' * 63}",
            "when": condition,
            "set": {"responseSchema": schema},
            "timeouts": {"firstToken": "900s", "total": "24h"},
        }
        for number in range(7)
    ]
    # Named as its service, which begins as the names of the others.
    targets.append({"service": f"{'b' * 63}/n{'0' * 60}9"})
    words = [f"{number:064}" for number in range(64)]
    spec = {"targets": targets, "score": {"words": words}}
    status, answer = await create(cluster, MODEL_ROUTES, spec)
    assert status == 201, answer
    assert answer["spec"]["targets"][0]["set"] == {"responseSchema": schema}
    status, answer = await create(
        cluster,
        MODEL_ROUTES,
        {"targets": [{"name": "quick", "service": "chat"}, {"service": "chat"}]},
    )
    assert status == 201, answer


@pytest.mark.parametrize("name", ["@cf/openai/gpt-oss-120b", "claude-sonnet-4-5@20250929"])
async def test_models_have_the_names_that_their_providers_gave_them(
    cluster: KubeCluster, name: str
) -> None:
    limit = {"basis": "Charge", "window": "Month", "amount": "1", "for": {"model": f"acme/{name}"}}
    for kind, spec in (
        (MODEL_PROVIDERS, a_provider_spec(models=[A_MODEL_OUTSIDE | {"name": name}])),
        (
            MODEL_ROUTES,
            {
                "servedName": name,
                "targets": [{"name": "acme", "provider": {"name": "acme", "model": name}}],
            },
        ),
        (PRICE_LISTS, {"entries": [AN_ENTRY | {"models": [f"acme/{name}"]}]}),
        (
            TENANT_BUDGETS,
            BUDGET | {"limits": [limit], "publishing": [{"names": [name]}]},
        ),
    ):
        status, answer = await create(cluster, kind, spec)
        assert status == 201, answer


async def test_a_provider_may_be_as_large_as_its_bounds(cluster: KubeCluster) -> None:
    cost = A_COST | {
        "search": "0.01",
        "maxSearches": 5,
        "steps": [STEP | {"aboveInputTokens": start} for start in range(1, 9)],
        "observedAt": "2026-11-30",
    }
    models = [A_MODEL_OUTSIDE | {"name": f"{number:096}", "cost": cost} for number in range(64)]
    tenants = [f"{'t' * 250}{number}" for number in range(64)]
    status, answer = await create(
        cluster, MODEL_PROVIDERS, a_provider_spec(models=models, tenants=tenants, timeouts={})
    )
    assert status == 201, answer
    assert answer["spec"]["timeouts"] == {
        "connect": "10s",
        "firstByte": "60s",
        "gap": "60s",
        "total": "15m",
    }


async def test_the_status_of_what_is_tried_is_read_again_and_goes(cluster: KubeCluster) -> None:
    status, answer = await create(cluster, INFERENCE_SERVICES, a_service_spec(), "tried")
    assert status == 201, answer
    model = {"uri": URI, "revision": "c0ffee", "shape": SHAPE, "source": "config.json"}
    candidate = {
        "revision": "tried-1",
        "digest": "d" * 64,
        "since": "2026-11-20T12:00:00Z",
        "model": model,
        "precisions": [{"precision": "fp8", "uri": "hf://a/fp8", "reason": "FilesMatch"}],
        "templates": [{"variant": "a100-1gpu", "complete": "d1"}],
        "missingDevice": "no device of the pool a100 is free",
    }
    before = InferenceServiceStatus.model_validate(
        {"candidateRevision": "tried-1", "candidate": candidate, "model": model}
    )
    after = before.model_copy(update={"candidate": None, "candidate_revision": None})
    meta = {"name": "tried", "namespace": "default", "uid": answer["metadata"]["uid"]}
    for written in (before, after):
        body = partial_manifest(INFERENCE_SERVICES, meta, status=wire_format(written))
        applied = await cluster.apply(body, subresource="status")
        assert isinstance(applied.plan_input, ObservedService)
        assert applied.plan_input.status == written


async def test_unknown_fields_are_refused_under_strict_validation(cluster: KubeCluster) -> None:
    spec = a_service_spec(scaling={"minReplica": 1})
    status, answer = await create(cluster, INFERENCE_SERVICES, spec, fieldValidation="Strict")
    assert status == 400
    assert 'unknown field "spec.scaling.minReplica"' in answer["message"]


async def test_the_defaults_are_written_into_given_objects(cluster: KubeCluster) -> None:
    _, answer = await create(cluster, INFERENCE_SERVICES, a_service_spec(scaling={"scaleUp": {}}))
    # The class decides it, and a stored number would outlive a change of the class.
    assert "minReplicas" not in answer["spec"]["scaling"]
    assert answer["spec"]["scaling"]["maxReplicas"] == 8
    assert answer["spec"]["scaling"]["scaleUp"] == {
        "stabilizationWindow": "60s",
        "pods": 2,
        "period": "120s",
    }
    assert "slo" not in answer["spec"]


async def test_scaling_by_hand_works_beside_scaling(cluster: KubeCluster) -> None:
    _, service = await create(cluster, INFERENCE_SERVICES, a_service_spec(scaling={}))
    path = f"{INFERENCE_SERVICES.path('default', service['metadata']['name'])}/scale"
    status, answer = await cluster.request(
        "PATCH", path, body={"spec": {"replicas": 3}}, content_type="application/merge-patch+json"
    )
    assert (status, answer["spec"]["replicas"]) == (200, 3)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tsvc.spec.scaling.queue.target", "Waiting requests per replica"),
        ("tsvc.spec.model.shape", "num_key_value_heads"),
        ("acceleratorpool.spec.prices", "perGPUHour"),
        ("troute.spec.targets.when", "Most characters of the first message"),
        ("tsvc.status.variant.source", "Roofline"),
    ],
)
async def test_explain_says_what_a_field_means(
    cluster: KubeCluster, world: World, path: str, words: str
) -> None:
    # The API server publishes the schema of a new CRD a moment after it serves the kind.
    async def field_is_explained() -> None:
        schema = await cluster.request("GET", f"/openapi/v3/apis/{INFERENCE_SERVICES.api_version}")
        assert words in str(schema)
        process = await asyncio.create_subprocess_exec(
            str(world.binary("kubectl")),
            *("--kubeconfig", str(world.kubeconfig), "explain", path),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert words in output.decode()

    await eventually(field_is_explained)
