"""What the tokens of a forecast cost: on own GPUs by a sized replica, and at an API."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from types import SimpleNamespace

from tessera.cli.breakeven.request import requested_prices
from tessera.cli.errors import CommandError
from tessera.cli.numbers import bounded
from tessera.domain.economics.api_prices import TokenUse
from tessera.domain.economics.break_even import MONTH_HOURS
from tessera.domain.economics.forecast import (
    Percentiles,
    TokenWeights,
    UsageFactors,
    percentiles,
)
from tessera.domain.hardware.weights import billing_weight
from tessera.domain.money import NANO
from tessera.domain.sizing.prices import ASSUMED

_MILLION = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthlyCost:
    """What a month costs in one way."""

    name: str
    """The replica, or the API and the price."""
    currency: str
    amount: Percentiles
    likely: float
    """At the likely values."""
    gpu_hours: Percentiles | None = None
    """Hours of own GPUs; those of a slice count by its share of the GPU."""
    warnings: tuple[str, ...] = ()


def api_cost(
    arguments: SimpleNamespace, likely: UsageFactors, cases: Sequence[UsageFactors], day: date
) -> MonthlyCost | None:
    """Return what the API of the options charges; None without one. It counts no cached input."""
    if arguments.api is None and arguments.api_price is None:
        return None
    if arguments.api is not None and arguments.api_price is not None:
        raise CommandError("--api and --api-price: write only one of them")
    options = SimpleNamespace(**vars(arguments), api_cached_price=None)
    prices, name, warnings = requested_prices(options, day)
    weights = TokenWeights(
        prices.input.nanos / NANO / _MILLION, prices.output.nanos / NANO / _MILLION
    )
    return MonthlyCost(
        name=name,
        currency=prices.output.currency,
        amount=percentiles(cases, weights),
        likely=likely.monthly(weights),
        warnings=tuple(warnings),
    )


def own_cost(
    arguments: SimpleNamespace, likely: UsageFactors, cases: Sequence[UsageFactors], day: date
) -> MonthlyCost | None:
    """Return what replicas of the model cost; None without a model.

    At least one replica runs all month, and their mean load is the utilization.
    """
    if arguments.model is None:
        return None
    # Sizing reads the whole catalog.
    from tessera.cli.breakeven.sized import sized_row  # noqa: PLC0415 - see above
    from tessera.domain.sizing.sizing import ReplicaFit, size  # noqa: PLC0415 - see above

    utilization = bounded("--utilization", arguments.utilization, 0.01, 1)
    request = TokenUse(input_tokens=likely.input_tokens, output_tokens=likely.output_tokens)
    report, row = sized_row(arguments, request, day)
    if row.hourly is None or row.tokens_per_second is None:
        raise CommandError(
            f"no price of {row.hardware.product}: add one to a file and pass it with --gpu-prices"
        )
    # Half the prompt says how the time of a request divides into that of input and of output.
    demand = replace(report.request.demand, precision=row.precision)
    shorter = replace(demand, input_tokens=-(-demand.input_tokens // 2))
    fit = size(shorter, row.hardware)
    seconds = demand.output_tokens / row.tokens_per_second
    saved = 0.0
    if isinstance(fit, ReplicaFit) and shorter.input_tokens < demand.input_tokens:
        saved = max(0.0, seconds - demand.output_tokens / fit.limits.tokens_per_second)
    an_input = saved / max(1, demand.input_tokens - shorter.input_tokens)
    an_output = max(0.0, seconds - an_input * demand.input_tokens) / demand.output_tokens
    hour = 3600 * utilization
    weights = TokenWeights(an_input / hour, an_output / hour)
    hours = Percentiles(*(max(MONTH_HOURS, each) for each in percentiles(cases, weights)))
    hourly, gpus = row.hourly.nanos / NANO, float(billing_weight(row.hardware))
    is_assumed = report.request.book.name == ASSUMED
    assumed = (
        f"the price of GPUs is assumed, a list price of {row.seller}: write your own with "
        "--gpu-prices"
    )
    return MonthlyCost(
        name=f"{row.hardware.name} {row.hardware.product} in {row.label}",
        currency=row.hourly.currency,
        amount=Percentiles(*(each * hourly for each in hours)),
        likely=max(MONTH_HOURS, likely.monthly(weights)) * hourly,
        gpu_hours=Percentiles(*(each * gpus for each in hours)),
        warnings=(assumed,) if is_assumed else (),
    )
