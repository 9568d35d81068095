"""The compared facts: status, content type and keys of a response, and the form of metrics."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

# The compared facts of one case, by aspect, as JSON.
Facts = dict[str, Any]

# Paths whose keys are tokens or their numbers, not names of the API.
_MAPS = ("top_logprobs[]", "prompt_logprobs[]")
_COMMON = {"engine", "model_name"}
_OWN_SERIES = "vllm:"
# Info metrics, whose label values are texts.
_INFO_METRICS = ("vllm:cache_config_info", "vllm:lora_requests_info")
# Headers of the engine's own.
_ECHOED = ("x-request-id",)


def answer(response: httpx.Response) -> Facts:
    """Return the facts of one response."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    facts: Facts = {"status": response.status_code, "content": kind}
    echoed = [name for name in _ECHOED if name in response.headers]
    if echoed:
        facts["headers"] = echoed
    if kind == "text/event-stream":
        return facts | {"events": _events(response.text)}
    if kind != "application/json" or not response.content:
        return facts
    body = response.json()
    facts["keys"] = sorted(set(keys(body)))
    return facts | _error_and_ends(body)


def keys(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all keys in JSON."""
    if isinstance(value, dict):
        for name, inner in value.items():
            known = "*" if prefix.endswith(_MAPS) else name
            path = f"{prefix}.{known}" if prefix else known
            yield path
            yield from keys(inner, path)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner, f"{prefix}[]")


def _error_and_ends(body: Any) -> Facts:
    """Return the error of a refusal, or the finish reasons of an answer."""
    if not isinstance(body, dict):
        return {}
    error = body.get("error")
    if isinstance(error, dict):
        return {"error": {name: error.get(name) for name in ("type", "param", "code")}}
    choices = [choice for choice in body.get("choices") or [] if isinstance(choice, dict)]
    ends = [choice["finish_reason"] for choice in choices if "finish_reason" in choice]
    return {"ends": ends} if ends else {}


def _events(text: str) -> list[list[str]]:
    """Return the kinds of events of a stream in order; equal neighbors count as one."""
    kinds: list[list[str]] = []
    for block in text.split("\n\n"):
        kind = _event(block)
        if kind and (not kinds or kinds[-1] != kind):
            kinds.append(kind)
    return kinds


def _event(block: str) -> list[str]:
    fields: list[str] = []
    for line in block.splitlines():
        field, _, value = line.partition(": ")
        if field == "event":
            fields.append(f"event {value}")
        elif field == "data" and not value.startswith("{"):
            fields.append(value)
        elif field == "data":
            fields += sorted(set(keys(json.loads(value))))
    return fields


def metrics(text: str) -> dict[str, Facts]:
    """Return the form of every metric by its name; counters end in `_total`."""
    metrics_by_name: dict[str, Facts] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        bounds = {float(s.labels["le"]) for s in family.samples if "le" in s.labels}
        facts: Facts = {"type": family.type, "labels": sorted(labels)}
        if bounds:
            facts["buckets"] = sorted(bounds - {float("inf")})
        own = labels - _COMMON
        if name.startswith(_OWN_SERIES) and name not in _INFO_METRICS and own:
            series = {
                ",".join(f"{label}={sample.labels[label]}" for label in sorted(own))
                for sample in family.samples
            }
            facts["series"] = sorted(series)
        metrics_by_name[name] = facts
    return metrics_by_name
