"""`/metrics`: names, types, labels and buckets from the fact table, values from the meters."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    metrics_core,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from typing_extensions import override

from tessera.domain.perf import footprint
from tessera.domain.vllm.facts import Metric
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import FinishReason, RejectionReason
from tessera_lab.sim.engine_state import SLEEP_STATES, EngineState
from tessera_lab.sim.launch.engine_config import EngineConfig
from tessera_lab.sim.meters import PREFIX, EngineMeters, Histogram

# Instead of a label's value where a metric has only the common labels.
_NO_LABEL = ""


def build_registry(
    config: EngineConfig, engine: EngineCore, meters: EngineMeters, state: EngineState
) -> CollectorRegistry:
    """Return a registry for one engine of the process."""
    collector_registry = CollectorRegistry()
    ProcessCollector(registry=collector_registry)
    PlatformCollector(registry=collector_registry)
    GCCollector(registry=collector_registry)
    if not config.arguments.disable_log_stats:
        collector_registry.register(EngineCollector(config, engine, meters, state))
    return collector_registry


class EngineCollector(Collector):
    """The engine's metrics, computed on each scrape."""

    def __init__(
        self, config: EngineConfig, engine: EngineCore, meters: EngineMeters, state: EngineState
    ) -> None:
        self._state = state
        self._created = time.time()
        self._metrics = _exposed_metrics(config)
        self._config = config
        self._engine = engine
        self._meters = meters
        self._common = {"engine": "0", "model_name": config.names[0]}

    @override
    def collect(self) -> Iterator[metrics_core.Metric]:
        values = self._values()
        for metric in self._metrics:
            name = metric.name.removeprefix(PREFIX)
            if metric.type == "histogram":
                yield self._histogram_family(metric, self._meters.histograms[name])
            elif name == "cache_config_info":
                labels = dict.fromkeys(metric.labels, "None") | self._cache_labels()
                yield self._family(metric, {tuple(labels[name] for name in metric.labels): 1})
            elif name == "lora_requests_info":
                yield self._family(metric, self._adapter_series())
            else:
                series = {
                    tuple(self._common.get(name, own_label) for name in metric.labels): value
                    for own_label, value in values.get(name, {_NO_LABEL: 0.0}).items()
                }
                shown = dict.fromkeys(series, math.nan) if self._state.shows_nan else series
                yield self._family(metric, shown)

    def _values(self) -> dict[str, dict[str, float]]:
        """Return counters and gauges by name and value of their own label."""
        engine, meters = self._engine, self._meters
        return {
            "num_requests_running": {_NO_LABEL: engine.running},
            "num_requests_waiting": {_NO_LABEL: engine.waiting},
            "num_requests_waiting_by_reason": {"capacity": engine.waiting, "deferred": 0},
            "engine_sleep_state": {
                state: float(state == self._state.sleep_state) for state in SLEEP_STATES.values()
            },
            "kv_cache_usage_perc": {_NO_LABEL: engine.kv_usage},
            "num_preemptions_total": {_NO_LABEL: meters.preemptions},
            "prompt_tokens_total": {_NO_LABEL: meters.prompt_tokens},
            "generation_tokens_total": {_NO_LABEL: meters.generation_tokens},
            "prefix_cache_queries_total": {_NO_LABEL: meters.queried_tokens},
            "prefix_cache_hits_total": {_NO_LABEL: meters.hit_tokens},
            "prompt_tokens_cached_total": {_NO_LABEL: meters.cached_tokens},
            "prompt_tokens_cached_by_source_total": {
                "device": meters.cached_tokens,
                **dict.fromkeys(("host", "p2p", "disk", "external_unspecified"), 0.0),
            },
            "prompt_tokens_by_source_total": {
                "local_compute": meters.prompt_tokens - meters.cached_tokens,
                "local_cache_hit": meters.cached_tokens,
                "external_kv_transfer": 0,
            },
            "request_success_total": {
                **{reason.value: meters.finished_by[reason] for reason in FinishReason},
                "error": 0,
                "repetition": 0,
            },
            "admission_rejections_total": {
                refusal.value: meters.rejected_by[refusal]
                for refusal in (RejectionReason.QUEUED_REQUESTS, RejectionReason.QUEUED_TOKENS)
            },
            "spec_decode_num_drafts_total": {_NO_LABEL: meters.drafts},
            "spec_decode_num_draft_tokens_total": {_NO_LABEL: meters.drafted_tokens},
            "spec_decode_num_accepted_tokens_total": {_NO_LABEL: sum(meters.accepted_by_position)},
            "spec_decode_num_accepted_tokens_per_pos_total": {
                str(position): count for position, count in enumerate(meters.accepted_by_position)
            },
            **(self._estimated_work() if self._config.arguments.enable_mfu_metrics else {}),
        }

    def _estimated_work(self) -> dict[str, dict[str, float]]:
        """Return what one device computed, read and wrote, by the performance model."""
        config, meters = self._config, self._meters
        active = footprint.active_parameters(config.shape)
        weights = footprint.single_token_read_bytes(config.shape, config.precision)
        devices, token_bytes = config.hardware.devices, config.kv_cache.bytes_per_token
        read = meters.steps * weights / devices + meters.read_kv_tokens * token_bytes
        return {
            "estimated_flops_per_gpu_total": {
                _NO_LABEL: 2 * active * meters.computed_tokens / devices
            },
            "estimated_read_bytes_per_gpu_total": {_NO_LABEL: read},
            "estimated_write_bytes_per_gpu_total": {
                _NO_LABEL: meters.computed_tokens * token_bytes
            },
        }

    def _cache_labels(self) -> dict[str, str]:
        """Return the labels of `cache_config_info` that have a value; the others are `None`."""
        cache, limits = self._config.kv_cache, self._config.limits
        info = {
            "block_size": cache.block_size,
            "cache_dtype": self._config.arguments.kv_cache_dtype,
            "effective_attention_block_size": cache.block_size,
            "enable_prefix_caching": limits.prefix_cache,
            "engine": 0,
            "gpu_memory_utilization": self._config.arguments.gpu_memory_utilization,
            "kv_cache_max_concurrency": round(cache.tokens / limits.max_model_len, 2),
            "kv_cache_memory_bytes": cache.tokens * cache.bytes_per_token,
            "kv_cache_size_tokens": cache.tokens,
            "num_gpu_blocks": cache.blocks,
            "num_gpu_blocks_override": self._config.arguments.num_gpu_blocks_override,
        }
        if not cache.bytes_per_token:
            info |= {
                "kv_cache_max_concurrency": None,
                "kv_cache_memory_bytes": None,
                "kv_cache_size_tokens": None,
                "num_gpu_blocks": 1,
            }
        return {name: str(value) for name, value in info.items()}

    def _family(
        self, metric: Metric, series: Mapping[tuple[str, ...], float]
    ) -> metrics_core.Metric:
        """Return a counter or a gauge with a value for each tuple of labels."""
        is_counter = metric.type == "counter"
        name = metric.name.removesuffix("_total") if is_counter else metric.name
        family = metrics_core.Metric(name, _help_text(metric), metric.type)
        for label_values, value in series.items():
            labels = dict(zip(metric.labels, label_values, strict=True))
            family.add_sample(metric.name, labels, value)
            if is_counter:
                family.add_sample(f"{name}_created", labels, self._created)
        return family

    def _adapter_series(self) -> dict[tuple[str, ...], float]:
        """Return the adapters' series; as in vLLM old ones stay and the newest value is current."""
        max_loras = str(self._config.arguments.max_loras)
        seen_at = self._state.adapters_seen_at()
        return {(max_loras, running, waiting): at for (running, waiting), at in seen_at.items()}

    def _histogram_family(self, metric: Metric, histogram: Histogram) -> metrics_core.Metric:
        family = metrics_core.HistogramMetricFamily(
            metric.name, _help_text(metric), labels=metric.labels
        )
        bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
        cumulative = itertools.accumulate(histogram.counts)
        buckets = list(zip(bounds, map(float, cumulative), strict=True))
        labels = {name: self._common[name] for name in metric.labels}
        family.add_metric(list(labels.values()), buckets, histogram.total)
        family.add_sample(f"{metric.name}_created", labels, self._created)
        return family


def _exposed_metrics(config: EngineConfig) -> tuple[Metric, ...]:
    """Return the metrics that this engine exposes: the default ones and those of its options."""
    arguments = config.arguments
    optional = {
        "kv_block_": arguments.kv_cache_metrics,
        "lora_requests_info": arguments.enable_lora,
        "spec_decode_": bool(arguments.speculative_config),
    }
    prefixes = tuple(f"{PREFIX}{prefix}" for prefix, is_enabled in optional.items() if is_enabled)
    return tuple(
        metric
        for metric in config.facts.metrics.values()
        if metric.name.startswith(PREFIX) and (metric.always or metric.name.startswith(prefixes))
    )


def _help_text(metric: Metric) -> str:
    return f"As vLLM's {metric.type} of this name."
