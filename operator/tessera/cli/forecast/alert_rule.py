"""A PrometheusRule that fires where a service uses more than twice P50 of its forecast."""

from typing import Any

from tessera.adapters.prometheus.queries import each_engine, each_gateway
from tessera.cli.errors import CommandError
from tessera.domain.economics.break_even import MONTH_DAYS
from tessera.domain.economics.forecast import TOKENS, Assumptions, draws, percentiles
from tessera.domain.vllm.metrics import GENERATION_TOKENS, PROMPT_TOKENS

_LIMIT = 2
# The labels of the counter of a gateway's tokens.
_TOKEN_LABELS = ("tenant", "service", "kind")
_RUNBOOK = "docs/tasks/forecast.md#get-an-alert"


def alert_rule(assumptions: Assumptions) -> dict[str, Any]:
    """Return the object; CommandError where the forecast names no service.

    Tokens are those that gateways counted, and otherwise those of the engines.
    """
    if assumptions.service is None:
        raise CommandError("no service to watch: write --service NAMESPACE/NAME")
    namespace, _, name = assumptions.service.partition("/")
    daily = percentiles(draws(assumptions), TOKENS).p50 / MONTH_DAYS
    gateway = f'service="{assumptions.service}",kind=~"input|output"'
    engines = f'namespace="{namespace}",tessera_dev_service="{name}"'
    inputs, outputs = (
        f"sum({each_engine(f'increase({counter}{{%s}}[1d])', matchers=engines)})"
        for counter in (PROMPT_TOKENS, GENERATION_TOKENS)
    )
    tokens = each_gateway(
        "increase(tessera_gateway_tokens_total{%s}[1d])", gateway, "namespace", *_TOKEN_LABELS
    )
    expr = f"(sum({tokens}) or {inputs} + {outputs}) / {daily:.0f} > {_LIMIT}"
    rule = {
        "alert": "UsageAboveForecast",
        "expr": expr,
        "for": "1h",
        "labels": {"severity": "warning", "namespace": namespace, "service": name},
        "annotations": {
            "summary": f"{assumptions.service} uses more than twice its forecast.",
            "description": "The tokens of a day are {{ $value | humanize }} times the forecast of "
            f"{daily:.0f}. tessera forecast --compare names the factor that was wrong.",
            "runbook": _RUNBOOK,
        },
    }
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": f"{name}-forecast", "namespace": namespace},
        "spec": {"groups": [{"name": "tessera.forecast.alerts", "rules": [rule]}]},
    }
