"""`/metrics`: names, types, labels and buckets from the fact table, numbers from the meters."""

import itertools
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

from tessera.domain import footprint
from tessera.domain.engine import Engine
from tessera.domain.engine_facts import Metric
from tessera.domain.engine_requests import Reason, Refusal
from tessera.engine_sim.condition import Condition
from tessera.engine_sim.launch import Launch
from tessera.engine_sim.meters import PREFIX, Histogram, Meters

_ONLY = ""
"""Instead of a label's value where a metric has only the common labels."""


def registry(
    launch: Launch, engine: Engine, meters: Meters, condition: Condition
) -> CollectorRegistry:
    """A registry of its own for each engine of the process."""
    found = CollectorRegistry()
    ProcessCollector(registry=found)
    PlatformCollector(registry=found)
    GCCollector(registry=found)
    if not launch.arguments.disable_log_stats:
        found.register(Exposition(launch, engine, meters, condition))
    return found


class Exposition(Collector):
    """The engine's own metrics, made anew for each scrape."""

    def __init__(
        self, launch: Launch, engine: Engine, meters: Meters, condition: Condition
    ) -> None:
        self._condition = condition
        self._created = time.time()
        self._shown = _shown(launch)
        self._launch = launch
        self._engine = engine
        self._meters = meters
        self._common = {"engine": "0", "model_name": launch.names[0]}

    @override
    def collect(self) -> Iterator[metrics_core.Metric]:
        values = self._values()
        for metric in self._shown:
            name = metric.name.removeprefix(PREFIX)
            if metric.type == "histogram":
                yield self._histogram(metric, self._meters.histograms[name])
            elif name == "cache_config_info":
                yield _single(metric, {name: "None" for name in metric.labels} | self._cache())
            elif name == "lora_requests_info":
                yield self._adapters(metric)
            else:
                yield self._numbers(metric, values.get(name, {_ONLY: 0.0}))

    def _values(self) -> dict[str, dict[str, float]]:
        """Counters and gauges by name and value of their own label."""
        engine, meters = self._engine, self._meters
        return {
            "num_requests_running": {_ONLY: engine.running},
            "num_requests_waiting": {_ONLY: engine.waiting},
            "num_requests_waiting_by_reason": {"capacity": engine.waiting, "deferred": 0},
            "engine_sleep_state": {
                state: float(state == self._condition.sleep_state)
                for state in ("awake", "weights_offloaded", "discard_all")
            },
            "kv_cache_usage_perc": {_ONLY: engine.kv_usage},
            "num_preemptions_total": {_ONLY: meters.preemptions},
            "prompt_tokens_total": {_ONLY: meters.prompt_tokens},
            "generation_tokens_total": {_ONLY: meters.generation_tokens},
            "prefix_cache_queries_total": {_ONLY: meters.queried_tokens},
            "prefix_cache_hits_total": {_ONLY: meters.hit_tokens},
            "prompt_tokens_cached_total": {_ONLY: meters.cached_tokens},
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
                **{reason.value: meters.ended_by[reason] for reason in Reason},
                "error": 0,
                "repetition": 0,
            },
            "admission_rejections_total": {
                refusal.value: meters.refused_by[refusal]
                for refusal in (Refusal.QUEUED_REQUESTS, Refusal.QUEUED_TOKENS)
            },
            "spec_decode_num_accepted_tokens_per_pos_total": dict.fromkeys(
                map(str, range(self._launch.drafted)), 0.0
            ),
            **(self._work() if self._launch.arguments.enable_mfu_metrics else {}),
        }

    def _work(self) -> dict[str, dict[str, float]]:
        """What one device computed, read and wrote, as the performance model sees it."""
        launch, meters = self._launch, self._meters
        active = footprint.active_parameters(launch.shape)
        weights = footprint.single_token_read_bytes(launch.shape, launch.precision)
        devices, token = launch.place.devices, launch.cache.bytes_per_token
        read = meters.steps * weights / devices + meters.read_kv_tokens * token
        return {
            "estimated_flops_per_gpu_total": {
                _ONLY: 2 * active * meters.computed_tokens / devices,
            },
            "estimated_read_bytes_per_gpu_total": {_ONLY: read},
            "estimated_write_bytes_per_gpu_total": {_ONLY: meters.computed_tokens * token},
        }

    def _cache(self) -> dict[str, str]:
        """Labels of `cache_config_info` that say something; the others are `None`."""
        cache, limits = self._launch.cache, self._launch.limits
        told = {
            "block_size": cache.block_size,
            "cache_dtype": "auto",
            "effective_attention_block_size": cache.block_size,
            "enable_prefix_caching": limits.prefix_cache,
            "engine": 0,
            "gpu_memory_utilization": self._launch.arguments.gpu_memory_utilization,
            "kv_cache_max_concurrency": round(cache.tokens / limits.max_model_len, 2),
            "kv_cache_memory_bytes": cache.tokens * cache.bytes_per_token,
            "kv_cache_size_tokens": cache.tokens,
            "num_gpu_blocks": cache.blocks,
            "num_gpu_blocks_override": self._launch.arguments.num_gpu_blocks_override,
        }
        return {name: str(value) for name, value in told.items()}

    def _numbers(self, metric: Metric, values: Mapping[str, float]) -> metrics_core.Metric:
        names = tuple(metric.labels)
        family: metrics_core.CounterMetricFamily | metrics_core.GaugeMetricFamily
        if metric.type == "counter":
            family = metrics_core.CounterMetricFamily(metric.name, _about(metric), labels=names)
        else:
            family = metrics_core.GaugeMetricFamily(metric.name, _about(metric), labels=names)
        for own, value in values.items():
            labels = [self._common.get(name, own) for name in names]
            if isinstance(family, metrics_core.CounterMetricFamily):
                family.add_metric(labels, value, created=self._created)
            else:
                family.add_metric(labels, value)
        return family

    def _adapters(self, metric: Metric) -> metrics_core.Metric:
        """Old series stay as the engine leaves them; the newest value is the present one."""
        family = metrics_core.GaugeMetricFamily(metric.name, _about(metric), labels=metric.labels)
        most = str(self._launch.arguments.max_loras)
        for (running, waiting), moment in self._condition.adapters().items():
            family.add_metric([most, running, waiting], moment)
        return family

    def _histogram(self, metric: Metric, histogram: Histogram) -> metrics_core.Metric:
        family = metrics_core.HistogramMetricFamily(
            metric.name, _about(metric), labels=metric.labels
        )
        bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
        reached = itertools.accumulate(histogram.counts)
        buckets = list(zip(bounds, map(float, reached), strict=True))
        labels = {name: self._common[name] for name in metric.labels}
        family.add_metric(list(labels.values()), buckets, histogram.total)
        family.add_sample(f"{metric.name}_created", labels, self._created)
        return family


def _shown(launch: Launch) -> tuple[Metric, ...]:
    """What this engine shows: the always present ones, and those of its options."""
    given = launch.arguments
    optional = {
        "kv_block_": given.kv_cache_metrics,
        "lora_requests_info": given.enable_lora,
        "spec_decode_": bool(given.speculative_config),
    }
    wanted = tuple(f"{PREFIX}{start}" for start, shown in optional.items() if shown)
    return tuple(
        metric
        for metric in launch.facts.metrics.values()
        if metric.name.startswith(PREFIX) and (metric.always or metric.name.startswith(wanted))
    )


def _single(metric: Metric, labels: Mapping[str, str]) -> metrics_core.Metric:
    """A gauge of 1 that only carries labels."""
    family = metrics_core.GaugeMetricFamily(metric.name, _about(metric), labels=metric.labels)
    family.add_metric([labels[name] for name in metric.labels], 1)
    return family


def _about(metric: Metric) -> str:
    return f"As vLLM's {metric.type} of this name."
