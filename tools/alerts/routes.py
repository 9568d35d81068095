"""Alerts about routes: what fallback hides from clients, and what it costs."""

from alerts.alert import Alert, Firing, always, by_gateway, growing
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.routes.fallback import fallback_kind
from tessera.domain.routes.reasons import RouteReason

_POD = (
    'job="tessera-system/tessera-gateway",namespace="tessera-system",pod="gateway-0",'
    'tenant="team-a",route="team-a/assistant"'
)
_PROVIDER = 'job="tessera-system/tessera-gateway",pod="gateway-0",provider="acme"'
_ROUTE = {"route": "team-a/assistant"}
# A service that sleeps, or that no budget pays, does not fail.
_NO_FAILURES = {
    RequestReason.SERVICE_ASLEEP,
    RequestReason.SERVICE_STOPPED,
    RequestReason.BUDGET_EXHAUSTED,
}
_FAILURES = "|".join(
    sorted(
        reason
        for reason in RequestReason
        if (fallback_kind(reason) in ("ServerError", "Timeout") and reason not in _NO_FAILURES)
        or reason is RequestReason.PROVIDER_MODEL_NOT_FOUND
    )
)


def _requests(target: str, reason: str = "RuleMatched") -> str:
    name = "tessera_gateway_route_requests_total"
    return f'{name}{{{_POD},target="{target}",reason="{reason}"}}'


def _skipped(target: str, reason: str) -> str:
    name = "tessera_gateway_route_skipped_total"
    return f'{name}{{{_POD},target="{target}",reason="{reason}"}}'


def _nanos(what: str) -> str:
    return f'tessera_gateway_route_{what}_nanos_total{{{_POD},target="small",currency="USD"}}'


def _rate(what: str, matchers: str = "") -> str:
    series = f"rate(tessera_gateway_route_{what}_total{{{matchers}%s}}[5m])"
    return by_gateway(series, "tenant", "route", "target", "reason")


def _increase(what: str) -> str:
    series = f"increase(tessera_gateway_route_{what}_nanos_total{{%s}}[1h])"
    return by_gateway(series, "tenant", "route", "target", "currency")


def _cost(of: str) -> str:
    return f"tessera_gateway_provider_{of}_cost_total{{{_PROVIDER}}}"


def _cost_increase(of: str) -> str:
    series = f"increase(tessera_gateway_provider_{of}_cost_total{{%s}}[1h])"
    return by_gateway(series, "provider")


ROUTES = (
    Alert(
        name="RouteFallsBack",
        expr=f"""
            sum by (route) (
              {_rate("requests", f'reason="{RouteReason.FALLBACK}",')}
            )
              / sum by (route) (
                {_rate("requests")}
              ) > 0.2
        """,
        minutes=15,
        severity="warning",
        summary="Many requests for ModelRoute {{ $labels.route }} are answered by another target.",
        description="{{ $value | humanizePercentage }} of its requests have fallen back for 15 "
        "minutes. The label reason of tessera_gateway_route_skipped_total says why.",
        cause="""
            The target that they should get has no room (`QueueFull`, `DeadlineUnreachable`),
            sleeps (`ServiceAsleep`), is over a limit (`TooManyTokens`, `BudgetExceeded`), or fails.
            Answers come, but they are dearer, or of a smaller model.
        """,
        look="""
            kubectl tessera explain route NAME
            kubectl tessera usage --by route,target,reason
        """,
        act="""
            Repair the target, or give it replicas or budget.
        """,
        fires=Firing(
            series={
                _requests("small"): growing(0.7),
                _requests("large", RouteReason.FALLBACK): growing(0.3),
            },
            labels=_ROUTE,
            value="30%",
            after=16,
        ),
        silent={
            "one fallback of ten": {
                _requests("small"): growing(0.9),
                _requests("large", RouteReason.FALLBACK): growing(0.1),
            },
            "a burst of ten minutes": {
                _requests("small"): growing(1),
                _requests("large", RouteReason.FALLBACK): "0x20 0+60x10 600x150",
            },
        },
    ),
    Alert(
        name="RouteTargetFails",
        expr=f"""
            sum by (route, target) (
              {_rate("skipped", f'reason=~"{_FAILURES}",')}
            )
              / on (route) group_left ()
              sum by (route) (
                {_rate("requests")}
              ) > 0.05
        """,
        minutes=10,
        severity="warning",
        summary="Target {{ $labels.target }} of ModelRoute {{ $labels.route }} fails.",
        description="It gave no answer to requests that were {{ $value | humanizePercentage }} of "
        "those that other targets answered, for 10 minutes: clients see no error.",
        cause="""
            As of [GatewayErrors](#gatewayerrors), which counts what clients get, and of a provider:
            `ProviderUnreachable`, `ProviderFailed`, `ProviderTimeout`, `ProviderModelNotFound`,
            `ProviderKeyRefused` (key, credit).
        """,
        look="""
            kubectl tessera explain route NAME
            kubectl -n tessera-system logs deploy/tessera-gateway --since=15m | grep skippedTargets
        """,
        act="""
            Repair the service, or what the status of the ModelProvider names. Until then take the
            target out of the route.
        """,
        fires=Firing(
            series={
                _requests("large", RouteReason.FALLBACK): growing(1),
                _skipped("small", "EngineFailed"): growing(0.1),
            },
            labels={**_ROUTE, "target": "small"},
            value="10%",
            after=11,
        ),
        silent={
            "one failure of a hundred": {
                _requests("large"): growing(1),
                _skipped("small", "EngineFailed"): growing(0.01),
            },
            "a service that sleeps": {
                _requests("large"): growing(1),
                _skipped("small", "ServiceAsleep"): growing(1),
            },
        },
    ),
    Alert(
        name="ProviderEjected",
        expr=f"""
            avg by (provider) (
              {by_gateway("avg_over_time(tessera_gateway_provider_ejected{%s}[15m])", "provider")}
            ) > 0.5
        """,
        minutes=15,
        severity="warning",
        summary="ModelProvider/{{ $labels.provider }} is asked nothing most of the time.",
        description="Gateways left it out for {{ $value | humanizePercentage }} of the last 15 "
        "minutes, since it failed or refused: other targets answer, or none.",
        cause="""
            Its limits are reached (`ProviderBusy`), its key was revoked (`ProviderKeyRefused`), or
            it fails or cannot be reached; `reason` of `tessera_gateway_provider_requests_total`
            says which. A gateway asks again after its `Retry-After`, a minute at most.
        """,
        look="""
            kubectl describe modelproviders
            kubectl -n tessera-system logs deploy/tessera-gateway --since=15m | grep Provider
        """,
        act="""
            Renew the key in its Secret, have its limits raised, or open the way to it:
            `gateway.providers` of the chart.
        """,
        fires=Firing(
            series={f"tessera_gateway_provider_ejected{{{_PROVIDER}}}": "0x20 1x160"},
            labels={"provider": "acme"},
            value="100%",
            after=43,
        ),
        silent={
            "a provider that answers": {
                f"tessera_gateway_provider_ejected{{{_PROVIDER}}}": always(0)
            },
            "a minute of each four": {
                f"tessera_gateway_provider_ejected{{{_PROVIDER}}}": "1 0 0 0 " * 45
            },
        },
    ),
    Alert(
        name="MetersDisagree",
        expr=f"""
            abs(
              sum by (provider) (
                {_cost_increase("compared")}
              )
              - sum by (provider) (
                {_cost_increase("own")}
              )
            )
              / sum by (provider) (
                {_cost_increase("own")}
              ) > 0.02
        """,
        minutes=15,
        severity="warning",
        summary="Costs of ModelProvider/{{ $labels.provider }} are not what it says itself.",
        description="For an hour, its own count of the cost of answers and that by "
        "spec.models[].cost have been {{ $value | humanizePercentage }} apart.",
        cause="""
            A price in `spec.models[].cost` is out of date, or `spec.dialect` is wrong.
        """,
        look="""
            kubectl tessera provider diff
        """,
        act="""
            Correct it: limits go by these costs.
        """,
        fires=Firing(
            series={_cost("own"): growing(0.01), _cost("compared"): growing(0.007)},
            labels={"provider": "acme"},
            value="30%",
            after=16,
        ),
        silent={
            "a rounding of a hundredth": {
                _cost("own"): growing(0.01),
                _cost("compared"): growing(0.0101),
            },
            "a provider that says no cost": {_cost("own"): always(0), _cost("compared"): always(0)},
        },
    ),
    Alert(
        name="RouteWastesItsSaving",
        expr=f"""
            sum by (route, currency) (
              {_increase("failed")}
            )
              > 0.1 * clamp_min(
                sum by (route, currency) (
                  {_increase("last_target")}
                )
                - sum by (route, currency) (
                  {_increase("charge")}
                ), 0
              )
        """,
        minutes=60,
        severity="warning",
        summary="Failed calls of ModelRoute {{ $labels.route }} cost a tenth of what it saves.",
        description="For an hour, calls that gave no answer have cost more than 10 % of what its "
        "answers cost less than at the last target. The choice of a target itself is free.",
        cause="""
            A target works on requests that another one then answers: it runs into `timeouts`, or
            breaks off before the first token. Its work is paid.
        """,
        look="""
            kubectl tessera explain route NAME
        """,
        act="""
            Give the target more time, or less of the requests, or keep the last target alone.
        """,
        fires=Firing(
            series={
                _nanos("failed"): growing(2),
                _nanos("charge"): growing(10),
                _nanos("last_target"): growing(20),
            },
            labels={**_ROUTE, "currency": "USD"},
            after=61,
        ),
        silent={
            "failures of a hundredth": {
                _nanos("failed"): growing(0.1),
                _nanos("charge"): growing(10),
                _nanos("last_target"): growing(20),
            },
            "a dearer target by choice": {
                _nanos("failed"): always(5),
                _nanos("charge"): growing(20),
                _nanos("last_target"): growing(10),
            },
        },
    ),
)
