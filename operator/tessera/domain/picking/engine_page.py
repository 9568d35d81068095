"""The load of an engine from its metrics page, which its tenant may have written."""

import math
import re
from collections.abc import Sequence

from tessera.domain.picking.replica_state import EngineLoad
from tessera.domain.vllm import metrics

# Pages of vLLM have 53 to 71 KB, and one line more for each set of LoRA adapters that ran together.
# Gauges come first and adapters last: of a longer page the beginning says what the load is.
MAX_PAGE_BYTES = 256 * 1024
_MAX_LINES, _MAX_ADAPTER_LINES = 64, 512
_MAX_LABELS_LENGTH, _MAX_NUMBER_LENGTH = 8192, 32
_MAX_REQUESTS = 1_000_000
_MAX_ADAPTERS = 64
_MAX_NAME_LENGTH = 128
_ADAPTER_LABEL = re.compile(rb'(?:running|waiting)_lora_adapters="([^"\\\n]*)"')
# A terabyte of the smallest caches has 10^9 tokens.
_KV_TOKENS_LABEL = re.compile(rb'(?<![a-z_])kv_cache_size_tokens="([0-9]{1,10})"')


def engine_load(page: bytes, observed_at: float) -> EngineLoad | None:
    """Return the load of all engines of a replica; None for a page that says nothing sensible.

    Of a page that was cut, the part of a line at its end is ignored.
    """
    # Searches for a few bytes: patterns took 20 times as long for a page that was made for them.
    page = b"\n" + page[:MAX_PAGE_BYTES]
    running = _requests(_samples(page, metrics.REQUESTS_RUNNING, _MAX_LINES))
    waiting = _requests(_samples(page, metrics.REQUESTS_WAITING, _MAX_LINES))
    usages = _samples(page, metrics.KV_CACHE_USAGE, _MAX_LINES)
    if running is None or waiting is None or usages is None:
        return None
    kv_usage = max((value for _, value in usages), default=None)
    return EngineLoad(
        running=running,
        waiting=waiting,
        kv_usage=kv_usage if kv_usage is not None and kv_usage <= 1 else None,
        adapters=_adapters(_samples(page, metrics.LORA_REQUESTS, _MAX_ADAPTER_LINES) or ()),
        kv_tokens=_kv_tokens(_samples(page, metrics.CACHE_CONFIG, _MAX_LINES) or ()),
        observed_at=observed_at,
    )


def _samples(page: bytes, name: str, limit: int) -> list[tuple[bytes, float]] | None:
    """Return labels and value of each sample of a name; None for too many, or one of no engine."""
    samples, start, end = list[tuple[bytes, float]](), f"\n{name}".encode(), 0
    for _ in range(limit):
        at = page.find(start, end)
        if at < 0 or (end := page.find(b"\n", at + 1)) < 0:
            return samples
        labels, _, text = page[at + len(start) : end].rpartition(b"}")
        # Not `num_requests_waiting_by_reason`.
        if labels[:1] == b"{" or (not labels and text[:1] == b" "):
            value = _number(text.strip().partition(b" ")[0])
            if value is None:
                return None
            samples.append((labels[:_MAX_LABELS_LENGTH], value))
    return None


def _number(text: bytes) -> float | None:
    try:
        value = float(text) if len(text) <= _MAX_NUMBER_LENGTH else math.inf
    except ValueError:
        return None
    # Python also reads `1_0`, which is no number of the format.
    return value if math.isfinite(value) and value >= 0 and b"_" not in text else None


def _requests(samples: Sequence[tuple[bytes, float]] | None) -> int | None:
    """Return the requests of all engines behind one address."""
    total = sum(value for _, value in samples or ())
    return int(total) if samples and total <= _MAX_REQUESTS else None


def _kv_tokens(samples: Sequence[tuple[bytes, float]]) -> int | None:
    """Return the tokens in the caches of all engines behind one address."""
    sizes = [size for labels, _ in samples for size in _KV_TOKENS_LABEL.findall(labels)]
    return sum(map(int, sizes)) or None


def _adapters(samples: Sequence[tuple[bytes, float]]) -> frozenset[str]:
    """Return the adapters of the newest sample, whose value is the time it was written."""
    labels, _ = max(samples, key=lambda sample: sample[1], default=(b"", 0.0))
    names = {
        name.strip().decode(errors="replace")
        for text in _ADAPTER_LABEL.findall(labels)
        for name in text.split(b",")[:_MAX_ADAPTERS]
        if 0 < len(name) <= _MAX_NAME_LENGTH
    }
    return frozenset(sorted(names)[:_MAX_ADAPTERS])
