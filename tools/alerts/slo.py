"""Alerts about the latency objectives of services, by how fast the error budget is used.

The goal is that 95 % are within the target, so 5 % are the budget. A rate of 1 uses it up exactly.
Only what certainly missed the target counts.
"""

from alerts.alert import Alert, Firing, always, growing
from alerts.speed import CHAT, EXPORTED, POD

_EDGE = f'tessera_service_slo_edge_info{{{EXPORTED},objective="%s",source="%s",bound="%s",le="%s"}}'
_TARGET = f'tessera_service_slo_target_seconds{{{EXPORTED},objective="itl"}}'
_OVERDUE = f"tessera_service_slo_overdue_requests{{{EXPORTED}}}"
_TTFT = f'vllm:time_to_first_token_seconds_bucket{{{POD},le="1.0"}}'
_REQUESTS = f"vllm:time_to_first_token_seconds_count{{{POD}}}"
_ITL = f'vllm:inter_token_latency_seconds_bucket{{{POD},le="%s"}}'
_TOKENS = f"vllm:inter_token_latency_seconds_count{{{POD}}}"
_ITL_SUM = f"vllm:inter_token_latency_seconds_sum{{{POD}}}"
_GATEWAY = 'namespace="tessera-system",pod="gateway-0",tenant="team-a",service="team-a/chat"'
_GATEWAY_ITL = f'tessera_gateway_inter_token_latency_seconds_bucket{{{_GATEWAY},le="0.033"}}'
_GATEWAY_TOKENS = f"tessera_gateway_inter_token_latency_seconds_count{{{_GATEWAY}}}"

_TTFT_EDGES = {_EDGE % ("ttft", "Engine", bound, "1.0"): always(1) for bound in ("lower", "upper")}
_ITL_EDGES = {
    _EDGE % ("itl", "Engine", "lower", "0.025"): always(1),
    _EDGE % ("itl", "Engine", "upper", "0.05"): always(1),
}
_GATEWAY_EDGES = {
    _EDGE % ("itl", "Gateway", bound, "0.033"): always(1) for bound in ("lower", "upper")
}


def _requests(share: float, per_second: float = 1.0) -> dict[str, str]:
    """Return the series of requests of which a share has its first token in time."""
    return _TTFT_EDGES | {
        _TTFT: growing(share * per_second),
        _REQUESTS: growing(per_second),
    }


_NAME = "{{ $labels.namespace }}/{{ $labels.tessera_dev_service }}"
_CAUSE = """
    - `objective: ttft`: requests wait, since replicas are missing (start-up, `maxReplicas`, a
      budget, hardware), or prompts are longer than `spec.context.typicalInputTokens`.
    - `objective: itl`: steps are too long, since too many requests share one, prompts interrupt
      decoding, or the device is slower than predicted (`SpeedAsPredicted`).
"""
_LOOK = """
    kubectl get tsvc -A
    kubectl tessera explain SERVICE --prometheus URL   # what is attained, by variant, what waits
    kubectl tessera top --prometheus URL
"""

SLO = (
    Alert(
        name="SLOBudgetBurnsFast",
        expr="""
            (
              (tessera:service_slo_burn:5m > 10 and tessera:service_slo_burn:1h > 10)
              or
              (tessera:service_slo_burn:30m > 4 and tessera:service_slo_burn:6h > 4)
            )
            and avg_over_time(tessera:service_slo_total:rate5m[1h]) * 3600 >= 20
        """,
        minutes=2,
        severity="critical",
        summary=f"{_NAME} misses its {{{{ $labels.objective }}}} objective.",
        description="It uses its error budget {{ $value | humanize }} times as fast as 95 % within "
        "spec.slo allow.",
        cause=_CAUSE,
        look=_LOOK,
        act="""
            Do what `explain` names. If replicas are missing, raise `spec.scaling.maxReplicas` or
            the tenant's budget; if they are too slow, see
            [SpeedNotAsPredicted](#speednotaspredicted), or hardware that `kubectl tessera size`
            names.
        """,
        fires=Firing(
            series=_requests(0.4),
            labels=CHAT | {"objective": "ttft"},
            value="12",
            after=3,
        ),
        silent={
            "a service that uses its budget and no more": _requests(0.95),
            "a service that misses a fifth": _requests(0.82),
            "misses that may be none, between two edges": _ITL_EDGES
            | {
                _ITL % "0.025": growing(10),
                _ITL % "0.05": growing(96),
                _TOKENS: growing(100),
            },
            "10 requests an hour, all late": _requests(0, 10 / 3600),
            "no requests": _TTFT_EDGES | {_TTFT: always(5), _REQUESTS: always(900)},
        },
    ),
    Alert(
        name="SLOBudgetBurns",
        expr="""
            tessera:service_slo_burn:6h > 1
            and tessera:service_slo_burn:3d > 1
            and avg_over_time(tessera:service_slo_total:rate5m[1h]) * 3600 >= 20
        """,
        minutes=30,
        severity="warning",
        summary=f"{_NAME} misses its {{{{ $labels.objective }}}} objective by little, for long.",
        description="It uses its error budget {{ $value | humanize }} times as fast as 95 % within "
        "spec.slo allow, over 6 hours and over 3 days.",
        cause="As of [SLOBudgetBurnsFast](#slobudgetburnsfast).",
        look="The same commands as there.",
        act="""
            It can wait for working hours. Raise `spec.scaling.minReplicas`, use a larger slice, or
            set `spec.slo` to what users need.
        """,
        fires=Firing(
            series=_GATEWAY_EDGES | {_GATEWAY_ITL: growing(90), _GATEWAY_TOKENS: growing(100)},
            labels=CHAT | {"objective": "itl"},
            value="2",
            after=35,
        ),
        silent={
            "a service that meets its objective": _requests(0.97),
            "misses that may be none, between two edges": _ITL_EDGES
            | {
                _ITL % "0.025": growing(10),
                _ITL % "0.05": growing(96),
                _TOKENS: growing(100),
            },
        },
    ),
    Alert(
        name="SlowTokens",
        expr="""
            sum by (namespace, tessera_dev_service) (
              max by (namespace, pod, tessera_dev_service, model_name, engine) (
                rate(vllm:inter_token_latency_seconds_sum{tessera_dev_service!="",pod!=""}[5m])
              )
            )
              / sum by (namespace, tessera_dev_service) (
                max by (namespace, pod, tessera_dev_service, model_name, engine) (
                  rate(vllm:inter_token_latency_seconds_count{tessera_dev_service!="",pod!=""}[5m])
                )
              ) > 0.0667
            and on (namespace, tessera_dev_service)
              tessera:service_slo_target{objective="itl"} <= 0.0667
        """,
        minutes=10,
        severity="warning",
        summary=f"{_NAME} generates tokens more slowly than people read.",
        description="The mean inter-token latency has been {{ $value | humanizeDuration }} for 10 "
        "minutes; 66.7 ms are 15 tokens per second.",
        cause="""
            Too many requests share a step, or the device is slower than predicted. Services whose
            `spec.slo.itlP95` is above 66.7 ms raise no alert.
        """,
        look="As of [SLOBudgetBurnsFast](#slobudgetburnsfast).",
        act="""
            Add replicas, or use a larger slice. Where answers are not read while they come, set
            `spec.slo.itlP95` to what is needed.
        """,
        fires=Firing(
            series={
                _TARGET: always(0.033),
                _ITL_SUM: growing(8),
                _TOKENS: growing(100),
            },
            labels=CHAT,
            value="80ms",
            after=11,
        ),
        silent={
            "30 tokens per second": {
                _TARGET: always(0.033),
                _ITL_SUM: growing(3.3),
                _TOKENS: growing(100),
            },
            "a target that allows 5 tokens per second": {
                _TARGET: always(0.2),
                _ITL_SUM: growing(8),
                _TOKENS: growing(100),
            },
        },
    ),
)

# Nothing has a first token: every request waits.
STUCK = _TTFT_EDGES | {_TTFT: always(0), _REQUESTS: always(0), _OVERDUE: always(30)}
