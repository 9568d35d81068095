"""`tessera mix`: numbers of reserved replicas side by side."""

from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

from tessera.adapters.clock import now
from tessera.cli.errors import CommandError
from tessera.cli.numbers import bounded
from tessera.cli.output import Output
from tessera.domain.economics.reservation import LoadCurve
from tessera_lab.cli.mix.live import read_live_load
from tessera_lab.cli.mix.report import MixReport, output
from tessera_lab.cli.simulate.fleet_file import FleetFile, read_fleet_file
from tessera_lab.fleet.capacity_mix import mix_options, prices_by_tier
from tessera_lab.fleet.load_curve import LOAD_FORMATS, read_load_curve
from tessera_lab.fleet.prices import PRICE_SETS, GpuPrices
from tessera_lab.load.trace_rows import TraceError

_MAX_PRICE = 10_000.0


def run(arguments: SimpleNamespace) -> Output:
    """Return the report; raise CommandError for invalid options and files."""
    at = now()
    file = _fleet_file(arguments, at)
    prices = _prices(arguments, file)
    wasted = bounded("--wasted", arguments.wasted, 0.0, 0.99)
    rate = arguments.replica_rate
    if rate is not None:
        bounded("--replica-rate", rate, 1e-6, 1e6)
    bounded("--window", arguments.window, 1.0, 86400.0)
    live = None
    if arguments.from_prometheus is None:
        curve = _curve_of_file(arguments)
    else:
        live = read_live_load(arguments, file, rate, at)
        curve = live.curve
    report = MixReport(
        curve=curve,
        prices=prices,
        currency=file.currency if file is not None else "USD",
        wasted=wasted,
        options=tuple(mix_options(curve, prices, wasted)),
        live=live,
        notes=file.notes if file is not None else (),
    )
    return output(report, arguments.output)


def _fleet_file(arguments: SimpleNamespace, at: datetime) -> FleetFile | None:
    if (arguments.load is None) == (arguments.from_prometheus is None):
        raise CommandError("give a file with a load or --from-prometheus, and not both")
    if arguments.from_prometheus is None:
        for name in ("fleet", "service"):
            if getattr(arguments, name) is not None:
                raise CommandError(f"--{name} is of a load that --from-prometheus reads")
        return None
    if arguments.fleet is None:
        return None
    return read_fleet_file(arguments.fleet, arguments.service, None, at)


def _curve_of_file(arguments: SimpleNamespace) -> LoadCurve:
    try:
        curve = read_load_curve(arguments.load, arguments.replica_rate, arguments.window)
    except TraceError as error:
        hint = "" if "--replica-rate" in str(error) else f"; {LOAD_FORMATS}"
        raise CommandError(f"{error}{hint}") from None
    if not curve.peak:
        raise CommandError(f"{arguments.load} needs no replica at any time")
    return curve


def _prices(arguments: SimpleNamespace, file: FleetFile | None) -> GpuPrices:
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
    elif file is not None:
        prices = _pool_prices(file)
    else:
        raise CommandError(
            f"no prices: choose a set with --prices ({', '.join(PRICE_SETS)}), or write --on-demand"
        )
    if arguments.gpus is not None:
        gpus = bounded("--gpus", arguments.gpus, 1, 64)
    else:
        gpus = float(file.choice.offer.tariff.weight) if file is not None else 1.0
    return replace(prices, **amounts).times(gpus)


def _pool_prices(file: FleetFile) -> GpuPrices:
    """Return the prices of the service's GPU; a tier without a pool has its usual share."""
    product = file.choice.offer.hardware.product
    of_pools = file.gpu_prices[product]
    names = {"OnDemand": "on_demand", "Reserved": "reserved", "Spot": "spot"}
    known = {
        name: getattr(of_pools, name)
        for tier, name in names.items()
        if tier not in file.missing_tiers
    }
    name, price = next(iter(known.items()))
    return replace(prices_by_tier(price / getattr(prices_by_tier(1.0), name)), **known)


def _set_prices(name: str, product: str | None) -> GpuPrices:
    prices = PRICE_SETS[name]
    if product is None and len(prices) == 1:
        return next(iter(prices.values()))
    if product not in prices:
        problem = "has several GPUs" if product is None else f"has no price of {product}"
        raise CommandError(f"--prices {name} {problem}: choose --gpu {' or '.join(prices)}")
    return prices[product]
