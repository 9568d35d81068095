"""A walk of all CRDs: every leaf of their schemas, with values that it may and may not have."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from tessera.api.schema import CustomResource, crd

ITEM, VALUE = "[]", "{}"
"""Steps of a path to the first item of a list, and to a value of a map."""

# The longest text of a status, whose texts have no bound of their own.
_LONG = 4096
_INT64 = 2**63 - 1
# Texts of which at least one matches each pattern of the schemas; the first is the usual one.
_TEXTS = (
    "example", "hf://meta-llama/Llama-3.1-8B-Instruct", "hf://a/b", "oci://a", "http://a",
    "45s", "0s", "0.31.0", "0.0.0", "0.5", "0", "40Gi", "1Ti", "EUR", "AAA", "07:30", "00:00",
    "23:59", "1g.10gb", "team-b/chat", "a/b", "a",
)  # fmt: skip
# Bounds that a CEL rule sets beside the schema, and zones that exist: legal, lowest, highest.
_RULED_VALUES: Mapping[str, tuple[Any, Any, Any]] = {
    "spec.targets[].set.responseSchema": ({"type": "object"}, {}, {"type": "array"}),
    "spec.scaling.activity.target": ("0.5", "0.000000001", "1"),
    "spec.scaling.schedules[].cron": ("0 8 * * 1-5", "* * * * *", "0,1-59/2 23 L 12 SUN"),
    "spec.scaling.schedules[].timeZone": ("Europe/Berlin", "GMT", "Asia/Tokyo"),
    "spec.engine.gpuMemoryUtilization": ("0.9", "0.1", "1"),
    "spec.weight": ("2", "0.01", "1000"),
    "spec.timeZone": ("Europe/Berlin", "GMT", "America/Argentina/ComodRivadavia"),
    "spec.mig.maintenanceWindow.timeZone": ("Europe/Berlin", "GMT", "Asia/Tokyo"),
    "spec.deadline": ("2h", "60s", "720h"),
    "spec.baseUrl": ("https://api.example.com/v1", "https://a", f"https://{'a' * 245}"),
    "spec.proxyUrl": ("http://proxy:3128", "http://a", f"http://{'a' * 246}"),
    "spec.nodeTemplate.expectedStart": ("5m", "10s", "1h"),
}
MAP_KEY = "example"
_MAP_KEYS = {"layout": "1g.10gb", "migLayout": "1g.10gb", "nodeSelector": "pool"}


class Value(NamedTuple):
    """A value of a leaf."""

    step: str
    """`legal`, `lowest`, `highest`, or why it is refused."""
    value: Any
    legal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A field without fields of its own, of one CRD."""

    kind: CustomResource
    path: tuple[str, ...]
    schemas: tuple[Mapping[str, Any], ...]
    """The schemas of its parents and its own."""

    @property
    def field(self) -> str:
        """The path as messages of the API server have it, without indices."""
        return ".".join(self.path).replace(f".{ITEM}", "[]").replace(f".{VALUE}", "{}")

    @property
    def name(self) -> str:
        return f"{self.kind.kind} {self.field}"

    @property
    def removable(self) -> bool:
        """Whether the object that holds it may be without it."""
        parent, step = self.schemas[-2], self.path[-1]
        if step in (ITEM, VALUE):
            return not (parent.get("minItems") or parent.get("minProperties"))
        return step not in parent.get("required", ())

    def values(self) -> Iterator[Value]:
        """Yield a legal value, both boundaries, and one value for each way to be illegal."""
        steps = ("legal", "lowest", "highest")
        legal = _RULED_VALUES.get(self.field) or _legal_values(self.schemas[-1])
        yield from (Value(step, value, True) for step, value in zip(steps, legal, strict=True))
        for step, value in _illegal_values(self.schemas[-1]):
            yield Value(step, value, False)

    def set(self, body: dict[str, Any], value: Any) -> None:
        """Set the leaf, and whatever must be there to hold it."""
        holder: Any = body
        *parents, last = _keys(self.path)
        for step, schema in zip(parents, self.schemas[1:-1], strict=True):
            holder = _descend(holder, step, schema)
        _put(holder, last, value)

    def remove(self, body: dict[str, Any]) -> None:
        """Remove the leaf, and nothing else."""
        holder: Any = body
        *parents, last = _keys(self.path)
        for step in parents:
            holder = _child(holder, step)
        if isinstance(holder, list):
            holder.pop(0)
        else:
            del holder[last]


def leaves(kind: CustomResource, part: str) -> Iterator[Leaf]:
    """Yield every leaf of the `spec` or `status` of a kind."""
    schema = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    part_schema = schema["properties"][part]
    for path, schemas in _walk(part_schema, (part,), (schema, part_schema)):
        yield Leaf(kind=kind, path=path, schemas=schemas)


def _walk(
    node: Mapping[str, Any], path: tuple[str, ...], schemas: tuple[Mapping[str, Any], ...]
) -> Iterator[tuple[tuple[str, ...], tuple[Mapping[str, Any], ...]]]:
    children = dict(node.get("properties", {}))
    children |= {step: node[key] for key, step in _INNER.items() if key in node}
    if not children:
        yield path, schemas
    for step, child in children.items():
        yield from _walk(child, (*path, step), (*schemas, child))


_INNER = {"items": ITEM, "additionalProperties": VALUE}


def example(schema: Mapping[str, Any]) -> Any:
    """Return the smallest legal value of a schema."""
    if "properties" in schema:
        required = schema.get("required", ())
        return {name: example(schema["properties"][name]) for name in required}
    if "additionalProperties" in schema:
        return {}
    if "items" in schema:
        return [example(schema["items"])] if schema.get("minItems") else []
    return _legal_values(schema)[0]


def _legal_values(schema: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    if "enum" in schema:
        choices = schema["enum"]
        return choices[len(choices) // 2], choices[0], choices[-1]
    match schema["type"], schema.get("format"):
        case "boolean", _:
            return True, False, True
        case "integer", _:
            low, high = schema.get("minimum", -_INT64), schema.get("maximum", _INT64)
            return min(high, max(low, 7)), low, high
        case _, "date":
            return "2026-02-01", "0001-01-01", "9999-12-31"
        case _, "date-time":
            return "2026-11-20T11:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"
        case _:
            return _legal_texts(schema)


def _legal_texts(schema: Mapping[str, Any]) -> tuple[str, str, str]:
    least, most = schema.get("minLength", 0), schema.get("maxLength", _LONG)
    if _pattern(schema) is None:
        return "example"[:most], "a" * least, "a" * most
    texts = [text for text in _TEXTS if _matches(schema, text)]
    if (longest := _duration_bound(schema, "<=")) is not None:
        return texts[0], _duration_bound(schema, ">=") or "0s", longest
    padded = [
        text + pad * (most - len(text))
        for text in texts
        for pad in ("a", "0", "9")
        if _matches(schema, text + pad * (most - len(text)))
    ]
    return texts[0], min(texts, key=len), max((*texts, *padded), key=len)


def _illegal_values(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield values that the schema alone refuses."""
    yield "wrong type", ["a", {"b": None}]
    if "enum" in schema:
        yield "unknown", "Nonsense" if schema["type"] == "string" else 5
        return
    if "minimum" in schema:
        yield "too small", schema["minimum"] - 1
    if "maximum" in schema:
        yield "too large", schema["maximum"] + 1
    if schema["type"] == "string" and "format" in schema:
        yield "malformed", "tomorrow"
    if _pattern(schema) is not None:
        yield "malformed", "not ! one"[: schema.get("maxLength")]
    if (longest := _duration_bound(schema, "<=")) is not None:
        yield "too long", f"{longest}1ms"
        if _duration_bound(schema, ">=") is not None:
            yield "too short", "1ms"
    elif "maxLength" in schema:
        yield "too long", "a" * (schema["maxLength"] + 1)
    if schema.get("minLength"):
        yield "empty", ""


def _duration_bound(schema: Mapping[str, Any], relation: str) -> str | None:
    """Return the longest (`<=`) or shortest (`>=`) duration that a rule allows."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if bound := re.search(rf"{relation} duration\('(\w+)'\)", rule["rule"]):
            return bound.group(1)
    return None


def _matches(schema: Mapping[str, Any], text: str) -> bool:
    fits = schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", _LONG)
    return fits and re.search(_pattern(schema) or "", text) is not None


def _pattern(schema: Mapping[str, Any]) -> str | None:
    """Return the regular expression of a text, also where a rule has it; None without one."""
    if "pattern" in schema:
        return str(schema["pattern"])
    for rule in schema.get("x-kubernetes-validations", ()):
        if match := re.match(r"self\.matches\('([^']*)'\)", rule["rule"]):
            return match.group(1)
    return None


def _descend(holder: Any, step: str, schema: Mapping[str, Any]) -> Any:
    """Return the child of a holder, which is made if it is not there."""
    try:
        return _child(holder, step)
    except (LookupError, TypeError):
        _put(holder, step, example(schema))
        return _child(holder, step)


def _child(holder: Any, step: str) -> Any:
    return holder[0] if step == ITEM else holder[step]


def _keys(path: tuple[str, ...]) -> Iterator[str]:
    """Yield the steps of a path, with a key for each value of a map."""
    for parent, step in pairwise(("", *path)):
        yield _MAP_KEYS.get(parent, MAP_KEY) if step == VALUE else step


def _put(holder: Any, step: str, value: Any) -> None:
    if step != ITEM:
        holder[step] = value
    elif holder:
        holder[0] = value
    else:
        holder.append(value)
