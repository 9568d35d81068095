"""Claims that are arithmetic of prices and tokens."""

import math
from dataclasses import replace

from tessera.domain.economics.forecast import UsageFactors
from tessera.domain.economics.reservation import LoadCurve
from tessera.domain.routes.savings import router_blend
from tessera_lab.claims.formulas import (
    missing_saving,
    reduction,
    saving_as_ratio,
    stacked_saving,
)
from tessera_lab.claims.scenarios.setups import detail, draw, prices
from tessera_lab.claims.verdict import Conditions, ScenarioResult
from tessera_lab.fleet.capacity_mix import effective_spot_price, mix_options
from tessera_lab.fleet.generators import DAY, daily_wave

_CURVE_STEPS = 288


def routed(conditions: Conditions) -> ScenarioResult:
    """H31: the saving where a share of the tokens goes to the small model."""
    large = conditions.number("largeUsdPerMillion")
    blend = router_blend(
        conditions.number("smallShare"), conditions.number("smallUsdPerMillion"), large
    )
    return ScenarioResult(
        {"saving": reduction(large, blend)},
        (
            detail("blended price", blend, "USD/M"),
            detail("cheaper", large / blend, "x"),
            detail("with a small price of 0.10", large / router_blend(0.6, 0.1, large), "x"),
        ),
    )


def short_prompts(conditions: Conditions) -> ScenarioResult:
    """H33: the saving where short prompts go to the small model."""
    limit = conditions.number("words") * conditions.number("tokensPerWord")
    small, large = (
        conditions.number(name) for name in ("smallUsdPerMillion", "largeUsdPerMillion")
    )
    requests = [request for _, request in draw(conditions)]
    short = [request for request in requests if request.prompt_tokens < limit]
    all_tokens, short_tokens = (
        sum(request.prompt_tokens + request.output_tokens for request in group)
        for group in (requests, short)
    )
    share = short_tokens / all_tokens
    return ScenarioResult(
        {"saving": reduction(large, router_blend(share, small, large))},
        (
            detail("short requests", len(short) / len(requests), "share"),
            detail("their tokens", share, "share"),
        ),
    )


def compressed_prompts(conditions: Conditions) -> ScenarioResult:
    """H35: the saving where only prompts get shorter."""
    inputs = conditions.integer("inputTokens") * conditions.number("inputUsdPerMillion")
    outputs = conditions.integer("outputTokens") * conditions.number("outputUsdPerMillion")

    def saving(compression: float) -> float:
        return compression * inputs / (inputs + outputs)

    return ScenarioResult(
        {"saving": saving(conditions.number("compression"))},
        (
            detail("share of the cost that is input", inputs / (inputs + outputs), "share"),
            detail("half of the prompt", saving(0.5), "share"),
        ),
    )


def startup(conditions: Conditions) -> ScenarioResult:
    """H37: what routing has to save for the whole story to multiply."""
    residual = conditions.number("afterUsd") / conditions.number("beforeUsd")
    compressed = conditions.number("compression") * conditions.number("inputShare")
    savings = (conditions.number("cacheHits"), compressed)
    return ScenarioResult(
        {"routing saving": missing_saving(residual, savings)},
        (
            detail("cache and compression", stacked_saving(savings), "share"),
            detail("in total", 1 - residual, "share"),
            detail("cheaper", saving_as_ratio(1 - residual), "x"),
            detail("P95 from 4.2 to 1.8 s", reduction(4.2, 1.8), "share"),
        ),
    )


def discounts(conditions: Conditions) -> ScenarioResult:
    """H41: discounts of a price set, and the bill of a daily wave."""
    hour = prices(conditions)
    spot = effective_spot_price(hour.spot, conditions.number("wasted"))
    rate = daily_wave(conditions.number("meanReplicas"), conditions.number("swing"))
    step = DAY / _CURVE_STEPS
    curve = LoadCurve(
        tuple((step, math.ceil(rate((index + 0.5) * step))) for index in range(_CURVE_STEPS))
    )
    options = list(mix_options(curve, hour, conditions.number("wasted")))
    on_demand = options[0].total
    return ScenarioResult(
        {
            "reserved": reduction(hour.on_demand, hour.reserved),
            "spot": reduction(hour.on_demand, spot),
        },
        (
            detail(
                "saved by the best reservation of a daily wave",
                reduction(on_demand, min(option.total for option in options)),
                "share",
            ),
            detail(
                "with bursts on spot",
                reduction(on_demand, min(option.total_spot for option in options)),
                "share",
            ),
        ),
    )


def launch(conditions: Conditions) -> ScenarioResult:
    """H50: real tokens of a request over those of the forecast."""
    forecast = UsageFactors(
        requests=1,
        retries=0,
        prompt_tokens=conditions.number("visibleTokens"),
        hidden_tokens=0,
        turns=1,
        answer_tokens=conditions.number("forecastOutputTokens"),
        answers=1,
    )
    causes = {
        "longer outputs": {"answer_tokens": conditions.number("outputTokens")},
        "hidden prompt": {"hidden_tokens": conditions.number("hiddenTokens")},
        "repeats": {"retries": conditions.number("repeats")},
    }
    actual = forecast
    for cause in causes.values():
        actual = replace(actual, **cause)
    alone = (
        detail(f"{name} alone", replace(forecast, **cause).monthly() / forecast.monthly(), "x")
        for name, cause in causes.items()
    )
    return ScenarioResult({"tokens": actual.monthly() / forecast.monthly()}, tuple(alone))
