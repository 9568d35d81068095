"""`tessera mix`: numbers of reserved replicas side by side."""

from dataclasses import replace
from types import SimpleNamespace

from tessera.cli.errors import CommandError
from tessera.cli.numbers import bounded
from tessera.cli.output import Output
from tessera_lab.cli.mix.report import FORMATTERS, MixReport
from tessera_lab.fleet.capacity_mix import mix_options, prices_by_tier
from tessera_lab.fleet.load_curve import LOAD_FORMATS, read_load_curve
from tessera_lab.fleet.prices import PRICE_SETS, GpuPrices
from tessera_lab.load.trace_rows import TraceError

_MAX_PRICE = 10_000.0


def run(arguments: SimpleNamespace) -> Output:
    """Return the report; raise CommandError for invalid options and files."""
    prices = _prices(arguments)
    wasted = bounded("--wasted", arguments.wasted, 0.0, 0.99)
    rate = arguments.replica_rate
    if rate is not None:
        bounded("--replica-rate", rate, 1e-6, 1e6)
    window = bounded("--window", arguments.window, 1.0, 86400.0)
    try:
        curve = read_load_curve(arguments.load, rate, window)
    except TraceError as error:
        hint = "" if "--replica-rate" in str(error) else f"; {LOAD_FORMATS}"
        raise CommandError(f"{error}{hint}") from None
    if not curve.peak:
        raise CommandError(f"{arguments.load} needs no replica at any time")
    options = tuple(mix_options(curve, prices, wasted))
    report = MixReport(curve=curve, prices=prices, wasted=wasted, options=options)
    return FORMATTERS[arguments.output](report)


def _prices(arguments: SimpleNamespace) -> GpuPrices:
    """Return the prices of a replica and hour."""
    amounts = {
        tier: bounded(f"--{tier.replace('_', '-')}", amount, 1e-4, _MAX_PRICE)
        for tier in ("on_demand", "reserved", "spot")
        if (amount := getattr(arguments, tier)) is not None
    }
    if arguments.prices is not None:
        prices = _set_prices(arguments.prices, arguments.gpu)
    elif "on_demand" in amounts:
        prices = prices_by_tier(amounts["on_demand"])
    else:
        raise CommandError(
            f"no prices: choose a set with --prices ({', '.join(PRICE_SETS)}), or write --on-demand"
        )
    return replace(prices, **amounts).times(bounded("--gpus", arguments.gpus, 1, 64))


def _set_prices(name: str, product: str | None) -> GpuPrices:
    prices = PRICE_SETS[name]
    if product is None and len(prices) == 1:
        return next(iter(prices.values()))
    if product not in prices:
        problem = "has several GPUs" if product is None else f"has no price of {product}"
        raise CommandError(f"--prices {name} {problem}: choose --gpu {' or '.join(prices)}")
    return prices[product]
