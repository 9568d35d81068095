"""Alerts about engines: their KV cache, their efficiency, and their predicted speed."""

from alerts.alert import Alert, Firing, Series, always, growing

SERVICE = 'namespace="team-a",tessera_dev_service="chat"'
POD = f'{SERVICE},pod="chat-0",tessera_dev_variant="a100-1g-10gb"'
OTHER = f'{SERVICE},pod="chat-1",tessera_dev_variant="a100-1g-10gb"'
# The labels of the operator's own metrics, as its PodMonitor leaves them.
EXPORTED = 'namespace="tessera-system",exported_namespace="team-a",service="chat"'
CHAT = {"namespace": "team-a", "tessera_dev_service": "chat"}
PEAK = 'tessera_service_peak_flops{%s,variant="a100-1g-10gb"}'
PREDICTED = 'tessera_service_output_tokens_per_second{%s,kind="predicted"}'
ACTIVITY = 'DCGM_FI_PROF_GR_ENGINE_ACTIVE{namespace="team-a",pod="chat-0"}'
_AS_PREDICTED = f'tessera_service_condition{{{EXPORTED},condition="SpeedAsPredicted",reason="%s"}}'
# One request at a time: a device that is always busy, with a tenth of its peak operations.
BUSY = {
    ACTIVITY: always(0.95),
    f"vllm:num_requests_running{{{POD}}}": always(1),
    f"vllm:estimated_flops_per_gpu_total{{{POD}}}": growing(4e12),
    PEAK % EXPORTED: always(40e12),
    f"vllm:generation_tokens_total{{{POD}}}": growing(300),
    PREDICTED % EXPORTED: always(1000),
}


def _input(samples: str, cached_samples: str) -> Series:
    """Return the input of two replicas, of which one has no cached token."""
    return {
        f"vllm:prompt_tokens_total{{{POD}}}": samples,
        f"vllm:prompt_tokens_total{{{OTHER}}}": samples,
        f"vllm:prompt_tokens_cached_total{{{POD}}}": cached_samples,
        f"vllm:prompt_tokens_cached_total{{{OTHER}}}": always(0),
    }


_NAME = "{{ $labels.namespace }}/{{ $labels.tessera_dev_service }}"

SPEED = (
    Alert(
        name="KVCacheSaturated",
        expr="tessera:service_kv_usage:max > 0.95",
        minutes=5,
        severity="warning",
        summary=f"The KV cache of a replica of {_NAME} is almost full.",
        description="{{ $value | humanizePercentage }} of it has been in use for 5 minutes: "
        "requests wait for free blocks or are preempted.",
        cause="""
            More than 95 % of the KV cache of a replica are in use: requests wait for space or are
            preempted.
        """,
        look="`kubectl tessera explain SERVICE`, and of `Tessera: speed` the panel "
        "`KV cache usage`.",
        act="""
            Add replicas (`spec.scaling`, a lower `queue.target`), shorten
            `spec.context.maxModelLen`, or use a larger slice (`spec.placement`).
        """,
        fires=Firing(
            series={
                f"vllm:kv_cache_usage_perc{{{POD}}}": always(0.97),
                f"vllm:kv_cache_usage_perc{{{OTHER}}}": always(0.5),
            },
            labels=CHAT,
            value="97%",
        ),
        silent={
            "a cache that is full for four minutes only": {
                f"vllm:kv_cache_usage_perc{{{POD}}}": "0.97x4 0.94x1 0.97x4 0.5x170"
            }
        },
    ),
    Alert(
        name="KVCacheOverProvisioned",
        expr="""
            tessera:service_kv_usage:max < 0.60
            and on (namespace, tessera_dev_service) tessera:service_running:avg5m >= 1
        """,
        minutes=60,
        severity="info",
        summary=f"The KV cache of {_NAME} is larger than its load needs.",
        description="At most {{ $value | humanizePercentage }} of it has been in use for 1 hour, "
        "under continuous load.",
        cause="""
            No replica used more than 60 % of its KV cache, although requests ran all the time.
        """,
        look="`kubectl tessera explain SERVICE` lists smaller slices with their prices.",
        act="""
            Use a smaller slice, or a looser `slo.itlP95`, which allows more requests in each step.
        """,
        fires=Firing(
            series={
                f"vllm:kv_cache_usage_perc{{{POD}}}": always(0.4),
                f"vllm:num_requests_running{{{POD}}}": always(3),
            },
            labels=CHAT,
            value="40%",
        ),
        silent={
            "a cache that is used as it should be": {
                f"vllm:kv_cache_usage_perc{{{POD}}}": always(0.85),
                f"vllm:num_requests_running{{{POD}}}": always(30),
            },
            "a cache that is empty since nothing runs": {
                f"vllm:kv_cache_usage_perc{{{POD}}}": always(0),
                f"vllm:num_requests_running{{{POD}}}": always(0),
            },
            "a cache that one replica uses well": {
                f"vllm:kv_cache_usage_perc{{{POD}}}": always(0.1),
                f"vllm:kv_cache_usage_perc{{{OTHER}}}": always(0.8),
                f"vllm:num_requests_running{{{POD}}}": always(30),
            },
        },
    ),
    Alert(
        name="EnginePreempts",
        expr="tessera:service_preemptions:increase5m > 0",
        minutes=5,
        severity="warning",
        summary=f"The engines of {_NAME} preempt requests.",
        description="{{ $value | humanize }} requests within 5 minutes lost their KV cache blocks "
        "and are recomputed.",
        cause="""
            Engines preempt requests and compute them again: you pay for tokens twice. Requests are
            longer than `spec.context.typicalInputTokens` and `typicalOutputTokens`.
        """,
        look="The panels `Preemptions in 5 minutes` and `KV cache usage` of `Tessera: speed`.",
        act="""
            Set both to what the service observes ([preemptions](tune-the-engine.md#preemptions)).
        """,
        fires=Firing(
            series={f"vllm:num_preemptions_total{{{POD}}}": growing(0.1)},
            labels=CHAT,
            value="30",
            after=6,
        ),
        silent={
            "preemptions of long ago": {f"vllm:num_preemptions_total{{{POD}}}": always(700)},
            "a single preemption": {f"vllm:num_preemptions_total{{{POD}}}": "0x20 1x160"},
        },
    ),
    Alert(
        name="CachedShareFell",
        expr="""
            avg_over_time(tessera:service_cached_tokens:rate5m[30m])
              / (avg_over_time(tessera:service_input_tokens:rate5m[30m]) > 100)
            < 0.5 * (
              avg_over_time(tessera:service_cached_tokens:rate5m[1d] offset 1h)
                / avg_over_time(tessera:service_input_tokens:rate5m[1d] offset 1h) > 0.1
            )
        """,
        minutes=15,
        severity="warning",
        summary=f"The prefix caches of {_NAME} have less than half of what they had.",
        description="They had {{ $value | humanizePercentage }} of its input tokens in the last 30 "
        "minutes, less than half of their share on the day before. The rest is computed: replicas "
        "carry fewer requests, and the first token comes later.",
        cause="""
            - Prompts begin with something else in each request: a time, a name or an id before the
              system prompt, or tools in another order.
            - Requests go elsewhere: more replicas, or a client that opens new conversations.
            - Prompts are kept apart: `spec.access` shared the model with other tenants ([Share a
              model](keys.md#share-a-model)).
            - Caches keep less: a smaller slice, longer prompts, or `prefixCaching: false`.
            - Another kind of load runs, such as a batch.
        """,
        look="""
            The panels `Cached share of input`, also `by replica` (`Tessera: speed`) and by tenant
            (`Tessera: tenants`). `kubectl tessera usage --by tenant,key,model` names the key whose
            cached tokens fell.
        """,
        act="""
            Have clients send what differs at the end of a prompt. The alert ends when the lower
            share has lasted for most of a day.
        """,
        fires=Firing(
            series=_input("0+60000x180", "0+96000x80 7680000+12000x100"),
            labels=CHAT,
            value="10%",
            after=114,
        ),
        silent={
            "a share that falls by a third": _input("0+60000x180", "0+96000x80 7680000+64000x100"),
            "caches that are cold for ten minutes": _input(
                "0+60000x180", "0+96000x80 7680000+0x10 7680000+96000x90"
            ),
            "few requests": _input("0+600x180", "0+960x80 76800+120x100"),
            "no requests any more": _input("0+60000x80 4800000x100", "0+96000x80 7680000x100"),
            "prompts that never shared much": _input("0+60000x180", "0+9600x80 768000+1200x100"),
            "a first day without anything cached": _input("0+60000x180", "0x180"),
        },
    ),
    Alert(
        name="BusyButInefficient",
        expr="""
            tessera:service_busy:avg5m > 0.85
            and on (namespace, tessera_dev_service) tessera:service_mfu:rate5m < 0.15
            and on (namespace, tessera_dev_service) tessera:service_capacity_used:rate5m < 0.5
        """,
        minutes=15,
        severity="warning",
        summary=f"{_NAME} keeps its devices busy with low throughput.",
        description="Busy {{ $value | humanizePercentage }} of the time for 15 minutes, with an "
        "MFU below 15 % and less than half of the output tokens that its replicas can generate.",
        cause="""
            The devices are busy more than 85 % of the time (`DCGM_FI_PROF_GR_ENGINE_ACTIVE`;
            without an exporter, some request is always running), with less than 15 % of the peak
            operations and less than half of the tokens that the replicas could generate. Engines
            that do not estimate their operations raise no alert.
        """,
        look="`kubectl tessera top`, and `kubectl tessera explain SERVICE --prometheus URL`.",
        act="""
            Fewer replicas do the same work for less: lower `scaling.minReplicas`, or move to a
            smaller slice.
        """,
        fires=Firing(series=BUSY, labels=CHAT, value="95%", after=16),
        silent={
            "devices that are busy with much work": BUSY
            | {f"vllm:estimated_flops_per_gpu_total{{{POD}}}": growing(16e12)},
            "decoding of full batches, which takes few operations": BUSY
            | {f"vllm:generation_tokens_total{{{POD}}}": growing(800)},
            "devices that are idle half of the time": BUSY | {ACTIVITY: always(0.5)},
        },
    ),
    Alert(
        name="OverProvisioned",
        expr="tessera:service_capacity_used:rate5m < 0.2",
        minutes=60,
        severity="info",
        summary=f"{_NAME} uses little of the capacity that it pays for.",
        description="It generates {{ $value | humanizePercentage }} of the output tokens that its "
        "replicas can generate, below 20 % for 1 hour.",
        cause="""
            The service generates less than 20 % of the output tokens that its replicas could.
        """,
        look="`kubectl tessera top` shows what it costs.",
        act="Lower `scaling.minReplicas`, or use a smaller slice.",
        fires=Firing(
            series={
                f"vllm:generation_tokens_total{{{POD}}}": growing(100),
                PREDICTED % EXPORTED: always(1000),
            },
            labels=CHAT,
            value="10%",
            after=61,
        ),
        silent={
            "a service that uses a third of what it has": {
                f"vllm:generation_tokens_total{{{POD}}}": growing(330),
                PREDICTED % EXPORTED: always(1000),
            },
            "a service without replicas": {
                f"vllm:generation_tokens_total{{{POD}}}": always(5),
                PREDICTED % EXPORTED: always(0),
            },
        },
    ),
    Alert(
        name="SpeedNotAsPredicted",
        expr="""
            max by (namespace, tessera_dev_service, reason) (
              label_replace(label_replace(label_replace(
                tessera_service_condition{condition="SpeedAsPredicted",reason=~"SlowerThanPredicted|FasterThanPredicted"} == 0,
                "tessera_dev_service", "$1", "service", "(.+)"),
                "tessera_dev_service", "$1", "exported_service", "(.+)"),
                "namespace", "$1", "exported_namespace", "(.+)")
            )
        """,  # noqa: E501 - one matcher
        minutes=10,
        severity="warning",
        summary=f"{_NAME} is not as fast as predicted: {{{{ $labels.reason }}}}.",
        description="The inter-token latency deviates more than 15 % from the prediction, which "
        "sizing, scaling and cost estimates use.",
        cause="""
            - `SlowerThanPredicted`: another process uses the device, its clock is throttled (power
              or heat), the host is short of CPU, or an option in `spec.engine.extraArgs` costs
              speed.
            - `FasterThanPredicted`: reported prices are too high and reported capacity is too low;
              nothing is at risk.
        """,
        look="""
            `kubectl tessera explain SERVICE --prometheus URL`, and of the device
            `DCGM_FI_DEV_POWER_USAGE` and `DCGM_FI_DEV_GPU_TEMP`.
        """,
        act="""
            Remove what slows the engine down. Where the speed is right for this hardware, do
            nothing: measurements replace predictions.
        """,
        fires=Firing(
            series={_AS_PREDICTED % "SlowerThanPredicted": always(0)},
            labels=CHAT | {"reason": "SlowerThanPredicted"},
        ),
        silent={
            f"the reason {reason}": {_AS_PREDICTED % reason: always(value)}
            for reason, value in (("AsPredicted", 1), ("NotEnoughRequests", 0))
        },
    ),
)
