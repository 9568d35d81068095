"""What the options of `tessera bench` ask for; every wrong one is a sentence with its mend."""

import argparse
import math
import os
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from tessera.cli.bench_baseline import baseline
from tessera.cli.bench_json import Json
from tessera.cli.bench_prompts import Lengths, drawn, lengths
from tessera.cli.bench_server import base_of
from tessera.cli.bench_trace import trace
from tessera.cli.errors import CommandError
from tessera.domain.bench.counters import Peaks, peaks
from tessera.domain.bench.dollars import Price
from tessera.domain.bench.jobs import Job
from tessera.domain.catalog import nearest_products, products
from tessera.domain.hardware import slice_hardware, whole_gpu_hardware
from tessera.domain.money import money
from tessera.settings import CommandSettings

_CONCURRENCY = 10
_PROMPTS = 100
_FOR_EACH_PLACE = 8
"""Requests of a sweep, so that the time while all places are taken is the greater part."""
_MOST = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load to be put on the server."""

    name: str
    concurrency: int | None
    """None where each request has its own arrival."""
    jobs: list[Job]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A test before it begins."""

    base: str
    metrics: tuple[str, ...]
    """Of each engine."""
    loads: tuple[Load, ...]
    told: str
    """The load in words."""
    seed: int
    peaks: Peaks | None
    price: Price | None
    html: Path | None
    baseline: Json | None
    """An earlier report."""


def plan(asked: argparse.Namespace, seed: int) -> Plan:
    """CommandError where the options cannot be carried out."""
    for option, least in (("prompts", 1), ("concurrency", 1), ("warmup", 0), ("gpus", 1)):
        value = getattr(asked, option)
        if value is not None and not least <= value <= 10**7:
            raise CommandError(f"--{option} {value}: write a number from {least} on")
    for option in ("timeout", "rate", "speed", "price_ratio"):
        value = getattr(asked, option)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise CommandError(f"--{option.replace('_', '-')} {value:g}: write a number above 0")
    base = base_of(asked.url)
    loads, told = _loads(asked, seed)
    return Plan(
        base=base,
        metrics=_metrics(asked.metrics) or (f"{base}/metrics",),
        loads=loads,
        told=told,
        seed=seed,
        peaks=_peaks(asked),
        price=_price(asked),
        html=_writable(asked.html),
        baseline=baseline(asked.baseline) if asked.baseline else None,
    )


def api_key(asked: argparse.Namespace) -> str | None:
    """From the file, else from the environment."""
    key = CommandSettings().api_key
    found = key.get_secret_value() if key else ""
    if asked.api_key_file:
        try:
            found = Path(asked.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            told = getattr(error, "strerror", None) or "not text"
            raise CommandError(f"--api-key-file {asked.api_key_file}: {told}") from None
        if not found:
            raise CommandError(f"--api-key-file {asked.api_key_file} is empty")
    if not found.isprintable() or not found.isascii():
        raise CommandError("the API key has characters that no header may have: is it one line?")
    return found or None


def _metrics(text: str | None) -> tuple[str, ...]:
    urls = tuple(text.split(",")) if text else ()
    for url in urls:
        base_of(url)
    return urls


def _loads(asked: argparse.Namespace, seed: int) -> tuple[tuple[Load, ...], str]:
    if asked.trace:
        jobs = trace(asked.trace, asked.prompts, asked.speed)
        told = f"{asked.trace}, open loop" + (
            f", {asked.speed:g} times as fast" * (asked.speed != 1)
        )
        return (Load(name="trace", concurrency=None, jobs=jobs),), told
    shapes = _shapes(asked)
    count = asked.prompts or _PROMPTS
    told = f"{asked.input_tokens} tokens in, {asked.output_tokens} out"
    told += f", the first {asked.shared_prefix} the same in all" * bool(asked.shared_prefix)
    if asked.rate:
        jobs = drawn(seed, count, *shapes, asked.shared_prefix, asked.rate)
        one = Load(name=f"{asked.rate:g}/s", concurrency=None, jobs=jobs)
        return (one,), f"open loop, {asked.rate:g} requests/s with Poisson arrivals; {told}"
    places = _sweep(asked.sweep) if asked.sweep else [asked.concurrency or _CONCURRENCY]
    least = _FOR_EACH_PLACE if asked.sweep else 0
    loads = tuple(
        Load(
            name=str(number),
            concurrency=number,
            jobs=drawn(seed, max(count, least * number), *shapes, asked.shared_prefix, None),
        )
        for number in places
    )
    return loads, f"closed loop, {asked.sweep or places[0]} at once; {told}"


def _shapes(asked: argparse.Namespace) -> tuple[Lengths, Lengths]:
    inputs = lengths("--input-tokens", asked.input_tokens)
    if asked.shared_prefix < 0 or (asked.shared_prefix and asked.shared_prefix >= inputs.low):
        raise CommandError(
            f"--shared-prefix {asked.shared_prefix} leaves prompts of {inputs.low:g} tokens "
            "nothing of their own: take fewer, or more --input-tokens"
        )
    return inputs, lengths("--output-tokens", asked.output_tokens)


def _sweep(text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,5}(,\d{1,5})*", text):
        raise CommandError(f"--sweep {text}: write numbers with commas, such as 1,2,4,8")
    found = sorted({int(number) for number in text.split(",")})
    if not 1 <= found[0] <= found[-1] <= _MOST:
        raise CommandError(f"--sweep {text}: each must be from 1 to {_MOST}")
    return found


def _peaks(asked: argparse.Namespace) -> Peaks | None:
    if asked.gpu is None:
        return None
    name, _, profile = asked.gpu.partition("/")
    product = products().get(name)
    if product is None:
        near = ", ".join(nearest_products(name))
        raise CommandError(f"--gpu {name} is not known; known are {near}")
    hardware = slice_hardware(product, profile) if profile else whole_gpu_hardware(product, 1)
    if hardware is None:
        known = ", ".join(one.profile for one in product.slices)
        raise CommandError(f"--gpu {asked.gpu}: {name} has no {profile}, but {known}")
    found = peaks(hardware, fp8=asked.fp8)
    if found is None:
        raise CommandError(f"--fp8: {name} does not compute at 8 bits; leave it out")
    return found


def _price(asked: argparse.Namespace) -> Price | None:
    if asked.price is None:
        return None
    try:
        amount = Decimal(asked.price)
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or not 0 < amount < 10**9:
        raise CommandError(f"--price {asked.price}: write an amount such as 3.50")
    return Price(
        per_hour=money(amount * asked.gpus, asked.currency),
        output_over_input=Decimal(repr(asked.price_ratio)),
    )


def _writable(file: str | None) -> Path | None:
    """Before the test, since it would be a pity afterwards."""
    if file is None:
        return None
    path = Path(file).expanduser()
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise CommandError(f"--html {file} cannot be written: give a file in a folder of yours")
    return path
