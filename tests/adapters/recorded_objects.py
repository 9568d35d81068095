"""Objects of the API server as the operator takes them, and what is made of each broken one.

They are those of a fleet that was played, and by hand the kinds that it has none of. A broken one
has another value at one place, by a seed.
"""

import copy
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from tessera.adapters.kube.object_parsing import is_plan_input, parse_object
from tessera.api.api_resource import ApiResource
from tessera.domain.kinds.kinds import (
    MODEL_PROVIDERS,
    MODEL_ROUTES,
    NODE_LAYOUTS,
    PRICE_LISTS,
    QUALITY_GATES,
)
from tessera.resources.api_resources import CONTROLLER_REVISIONS, KEY_SECRETS, KINDS
from tests.adapters import test_gate_objects, test_key_secrets
from tests.reconcile.test_written_objects import EXAMPLES, a_fleet, add_nodes, play
from tests.text_records import text_of, value_lines

Json = dict[str, Any]
Place = tuple[str | int, ...]

_OF_EACH_KIND, _BROKEN = 3, 32
_DIGEST = "ab" * 32
_WRITTEN: Mapping[ApiResource, str] = {
    PRICE_LISTS: "30-prices.yaml",
    QUALITY_GATES: "35-quality-gate.yaml",
    MODEL_PROVIDERS: "40-provider.yaml",
    MODEL_ROUTES: "45-route.yaml",
}
_CONDITION = {
    "type": "Accepted",
    "status": "True",
    "reason": "Accepted",
    "message": "the spec is valid",
    "lastTransitionTime": "2026-11-20T12:00:00Z",
    "observedGeneration": 2,
}
_HOSTILE: Sequence[Any] = (
    *(None, True, "", [], {}, [None], {"a": {"b": 1}}, "9" * 400, "x" * 5000, "NaN"),
    *(-1, 0, 1.5, 10**30, 1e308, float("nan"), "1e999999999", "9999-12-31T23:59:59Z"),
    *("0001-01-01T00:00:00Z", "line\nof\x00another\u202e", "2026-11-20T12:00:00+25:00"),
)


async def object_texts() -> Mapping[str, str]:
    """Return what is made of objects, and of broken ones, by the plural of their kind."""
    texts = {}
    for kind, bodies in (await _bodies()).items():
        parts = {}
        for body in bodies:
            name, parsed = body["metadata"]["name"], parse_object(kind, body)
            parts[name] = value_lines(parsed)
            for what, broken in _broken(body, f"{kind.plural} {name}"):
                parts[f"{name}, {what}"] = value_lines(parse_object(kind, broken), parsed)
        texts[kind.plural] = text_of(parts)
    return texts


async def _bodies() -> Mapping[ApiResource, Sequence[Json]]:
    fleet, _ = a_fleet("00-pools.yaml", "10-team-a.yaml", "20-team-b.yaml", "batch/night.yaml")
    add_nodes(fleet, "a100-reserved", 2, slices={"1g.10gb": 4, "3g.40gb": 1}, whole=1)
    add_nodes(fleet, "h100-ondemand", whole=4)
    add_nodes(fleet, "a100-spot", slices={"1g.10gb": 7})
    fleet.add_budget("team-b", "60")
    await play(fleet, 8)
    bodies: dict[ApiResource, list[Json]] = {
        kind: [
            body for key, body in sorted(fleet.cluster.objects.items()) if key.plural == kind.plural
        ]
        for kind in KINDS
        if is_plan_input(kind)
    }
    for kind, file in _WRITTEN.items():
        bodies[kind] = [*_written(kind, (EXAMPLES / file).read_text(encoding="utf-8"))]
    key = {"sha256": _DIGEST, "rateLimits": {"requests": {"perMinute": 60}}}
    bodies[KEY_SECRETS] = [test_key_secrets.a_secret({"ci": json.dumps(key).encode()})]
    bodies[CONTROLLER_REVISIONS] = [test_gate_objects.a_revision()]
    bodies[NODE_LAYOUTS] = [_layout()]
    assert [kind.plural for kind, objects in bodies.items() if not objects] == []
    return {kind: objects[:_OF_EACH_KIND] for kind, objects in bodies.items()}


def _written(kind: ApiResource, text: str) -> Iterator[Json]:
    meta = {"uid": "uid", "creationTimestamp": "2026-11-20T11:59:00Z", "generation": 2}
    for body in yaml.safe_load_all(text):
        if body["kind"] == kind.kind:
            wire = json.loads(json.dumps(body, default=str))
            status = {"conditions": [_CONDITION], "observedGeneration": 2}
            yield wire | {"metadata": wire["metadata"] | meta, "status": status}


def _layout() -> Json:
    gpu = {
        "index": 0,
        "uuid": "GPU-0",
        "product": "NVIDIA-A100-SXM4-80GB",
        "memoryMiB": 81920,
        "mode": "Enabled",
        "slices": [{"profile": "1g.10gb", "start": 0, "pods": ["team-a/chat-1"], "processes": 1}],
    }
    status = {"partitioningEnabled": True, "driverVersion": "580.95.05", "gpus": [gpu]}
    return {"metadata": {"name": "a100-0"}, "spec": {}, "status": status}


def _broken(body: Json, seed: str) -> Iterator[tuple[str, Json]]:
    """Yield bodies that have another value at one place each, with what that is."""
    chance = random.Random(seed)  # noqa: S311 - a test's objects
    places = [
        place for place in _places(body) if place not in (("metadata",), ("metadata", "name"))
    ]
    for _ in range(_BROKEN):
        *way, last = chance.choice(places)
        value, broken = chance.choice(_HOSTILE), copy.deepcopy(body)
        inner: Any = broken
        for step in way:
            inner = inner[step]
        inner[last] = value
        yield f"{'.'.join(map(str, (*way, last)))} = {json.dumps(value)[:40]}", broken


def _places(value: Any, way: Place = ()) -> Iterator[Place]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, each in inner:
        yield (*way, name)
        if isinstance(each, dict | list) and name != "managedFields":
            yield from _places(each, (*way, name))
