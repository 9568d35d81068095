"""The load of an engine from its metrics page, which its tenant may have written."""

import math
import re
from collections.abc import Mapping

from tessera.domain.picking.replica_state import EngineLoad

MAX_PAGE_BYTES = 1024 * 1024
_MAX_SAMPLES = 64
_MAX_REQUESTS = 1_000_000
_MAX_ADAPTERS = 64
_MAX_NAME_LENGTH = 128
_RUNNING, _WAITING = b"num_requests_running", b"num_requests_waiting"
_KV_USAGE, _ADAPTERS = b"kv_cache_usage_perc", b"lora_requests_info"
_SAMPLE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|lora_requests_info)"
    rb"(?:\{([^\n]{0,8192})\})? (\S{1,32})(?: [0-9]{1,20})?$",
    re.MULTILINE,
)
_ADAPTER_LABEL = re.compile(rb'(?:running|waiting)_lora_adapters="([^"\\\n]*)"')


def engine_load(page: bytes, observed_at: float) -> EngineLoad | None:
    """Return the load of all engines of a replica; None for a page that says nothing sensible."""
    samples: dict[bytes, list[tuple[bytes, float]]] = {}
    for number, match in enumerate(_SAMPLE.finditer(page[:MAX_PAGE_BYTES])):
        name, labels, text = match.groups()
        value = _number(text)
        if number >= _MAX_SAMPLES or value is None:
            return None
        samples.setdefault(name, []).append((labels or b"", value))
    running, waiting = _requests(samples, _RUNNING), _requests(samples, _WAITING)
    if running is None or waiting is None:
        return None
    usages = [value for _, value in samples.get(_KV_USAGE, ())]
    return EngineLoad(
        running=running,
        waiting=waiting,
        kv_usage=max(usages) if usages and max(usages) <= 1 else None,
        adapters=_adapters(samples),
        observed_at=observed_at,
    )


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # Python also reads `1_0`, which is no number of the format.
    return value if math.isfinite(value) and value >= 0 and b"_" not in text else None


def _requests(samples: Mapping[bytes, list[tuple[bytes, float]]], name: bytes) -> int | None:
    """Return the requests of all engines behind one address."""
    values = [value for _, value in samples.get(name, ())]
    total = sum(values)
    return int(total) if values and total <= _MAX_REQUESTS else None


def _adapters(samples: Mapping[bytes, list[tuple[bytes, float]]]) -> frozenset[str]:
    """Return the adapters of the newest sample, whose value is the time it was written."""
    labels, _ = max(samples.get(_ADAPTERS, ()), key=lambda sample: sample[1], default=(b"", 0.0))
    names = {
        name.strip().decode(errors="replace")
        for text in _ADAPTER_LABEL.findall(labels)
        for name in text.split(b",")[:_MAX_ADAPTERS]
        if 0 < len(name) <= _MAX_NAME_LENGTH
    }
    return frozenset(sorted(names)[:_MAX_ADAPTERS])
