"""The options of `tessera bench` as a plan; every invalid one is a sentence with its fix."""

import math
import os
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import SimpleNamespace

from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera.cli.files import writable_file
from tessera.domain.hardware.device import sized_profiles, slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import nearest_products, products
from tessera.domain.money import money
from tessera.domain.perf.utilization import HardwarePeaks, hardware_peaks
from tessera_lab.cli.bench.prompts import draw_requests, parse_lengths
from tessera_lab.cli.bench.server import base_url
from tessera_lab.cli.bench.trace import read_trace
from tessera_lab.load.lengths import LengthDistribution
from tessera_lab.load.requests import BenchRequest
from tessera_lab.load.token_cost import HourlyPrice

_CONCURRENCY = 10
_PROMPTS = 100
# Requests per concurrent one in a sweep, so that most of the time is at full concurrency.
_SWEEP_REQUESTS_PER_SLOT = 8
_MAX_CONCURRENCY = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLoad:
    """One load for the server."""

    name: str
    concurrency: int | None
    """None in an open loop, where each request has its own arrival."""
    requests: list[BenchRequest]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """A test before it starts."""

    base: str
    metrics: tuple[str, ...]
    """Metrics URLs, one per engine."""
    loads: tuple[BenchLoad, ...]
    description: str
    """The load in words."""
    seed: int
    peaks: HardwarePeaks | None
    price: HourlyPrice | None
    html: Path | None


def parse_plan(arguments: SimpleNamespace, seed: int) -> BenchPlan:
    """Return the plan; raise CommandError for invalid options."""
    for option, minimum in (("prompts", 1), ("concurrency", 1), ("warmup", 0), ("gpus", 1)):
        value = getattr(arguments, option)
        if value is not None and not minimum <= value <= 10**7:
            raise CommandError(f"--{option} {value}: write a number of at least {minimum}")
    for option in ("timeout", "rate", "speed", "price_ratio"):
        value = getattr(arguments, option)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise CommandError(f"--{option.replace('_', '-')} {value:g}: write a number above 0")
    base = base_url(arguments.url)
    loads, description = _loads(arguments, seed)
    return BenchPlan(
        base=base,
        metrics=_metrics(arguments.metrics) or (f"{base}/metrics",),
        loads=loads,
        description=description,
        seed=seed,
        peaks=_peaks(arguments),
        price=_price(arguments),
        html=writable_file("--html", arguments.html) if arguments.html else None,
    )


def api_key(arguments: SimpleNamespace) -> str | None:
    """Return the key of the file, else of TESSERA_API_KEY, else None."""
    key_text = os.environ.get("TESSERA_API_KEY", "")
    if arguments.api_key_file:
        try:
            key_text = Path(arguments.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise CommandError(f"--api-key-file {arguments.api_key_file}: {reason}") from None
        if not key_text:
            raise CommandError(f"--api-key-file {arguments.api_key_file} is empty")
    if not key_text.isprintable() or not key_text.isascii():
        raise CommandError(
            "the API key has characters that are not allowed in a header: is it one line?"
        )
    return key_text or None


def _metrics(text: str | None) -> tuple[str, ...]:
    urls = tuple(text.split(",")) if text else ()
    for url in urls:
        base_url(url)
    return urls


def _loads(arguments: SimpleNamespace, seed: int) -> tuple[tuple[BenchLoad, ...], str]:
    if arguments.trace:
        requests = read_trace(arguments.trace, arguments.prompts, arguments.speed)
        description = f"{arguments.trace}, open loop" + (
            f", {arguments.speed:g} times as fast" * (arguments.speed != 1)
        )
        return (BenchLoad(name="trace", concurrency=None, requests=requests),), description
    length_pair = _length_distributions(arguments)
    count = arguments.prompts or _PROMPTS
    description = f"input tokens {arguments.input_tokens}, output tokens {arguments.output_tokens}"
    description += f", shared prefix {arguments.shared_prefix}" * bool(arguments.shared_prefix)
    rate = arguments.rate
    if rate:
        requests = draw_requests(seed, count, *length_pair, arguments.shared_prefix, rate)
        load = BenchLoad(name=f"{rate:g}/s", concurrency=None, requests=requests)
        return (load,), f"open loop, {rate:g} requests/s with Poisson arrivals; {description}"
    sweep = arguments.sweep
    concurrencies = _sweep(sweep) if sweep else [arguments.concurrency or _CONCURRENCY]
    minimum = _SWEEP_REQUESTS_PER_SLOT if sweep else 0
    loads = tuple(
        BenchLoad(
            name=str(concurrency),
            concurrency=concurrency,
            requests=draw_requests(
                seed, max(count, minimum * concurrency), *length_pair, arguments.shared_prefix, None
            ),
        )
        for concurrency in concurrencies
    )
    return loads, f"closed loop, concurrency {sweep or concurrencies[0]}; {description}"


def _length_distributions(
    arguments: SimpleNamespace,
) -> tuple[LengthDistribution, LengthDistribution]:
    inputs = parse_lengths("--input-tokens", arguments.input_tokens)
    shared_prefix = arguments.shared_prefix
    if shared_prefix < 0 or (shared_prefix and shared_prefix >= inputs.low):
        raise CommandError(
            f"--shared-prefix {shared_prefix} leaves prompts of "
            f"{counted(int(inputs.low), 'token')} no part of their own: take fewer, or more "
            "--input-tokens"
        )
    return inputs, parse_lengths("--output-tokens", arguments.output_tokens)


def _sweep(text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,5}(,\d{1,5})*", text):
        raise CommandError(f"--sweep {text}: write numbers with commas, such as 1,2,4,8")
    concurrencies = sorted({int(number) for number in text.split(",")})
    if not 1 <= concurrencies[0] <= concurrencies[-1] <= _MAX_CONCURRENCY:
        raise CommandError(f"--sweep {text}: each must be from 1 to {_MAX_CONCURRENCY}")
    return concurrencies


def _peaks(arguments: SimpleNamespace) -> HardwarePeaks | None:
    if arguments.gpu is None:
        return None
    name, _, profile = arguments.gpu.partition("/")
    product = products().get(name)
    if product is None:
        nearest = ", ".join(nearest_products(name))
        raise CommandError(f"--gpu {name} is not known; did you mean {nearest}")
    hardware = slice_hardware(product, profile) if profile else whole_gpu_hardware(product, 1)
    if hardware is None:
        known = ", ".join(gi_profile.name for gi_profile in sized_profiles(product))
        raise CommandError(f"--gpu {arguments.gpu}: {name} has no {profile}, but {known}")
    gpu_peaks = hardware_peaks(hardware, fp8=arguments.fp8)
    if gpu_peaks is None:
        raise CommandError(f"--fp8: {name} has no FP8; leave it out")
    return gpu_peaks


def _price(arguments: SimpleNamespace) -> HourlyPrice | None:
    if arguments.price is None:
        return None
    try:
        amount = Decimal(arguments.price)
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or not 0 < amount < 10**9:
        raise CommandError(f"--price {arguments.price}: write an amount such as 3.50")
    per_hour = money(amount * arguments.gpus, arguments.currency)
    return HourlyPrice(per_hour=per_hour, output_input_ratio=Decimal(repr(arguments.price_ratio)))
