"""The ladders of the documents: three loads on a model of 8B and on one of 70B."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from itertools import product

from tessera.api.service_class import BUILT_IN_CLASSES
from tessera.domain.hardware.device import whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.sizing.prices import list_prices, price_book
from tessera_lab.engine.mixes import CHAT, CODE, RAG, LoadMix
from tessera_lab.engine.setup import BLOCK_TOKENS
from tessera_lab.fleet.capacity_mix import prices_by_tier
from tessera_lab.fleet.generators import DAY, daily_wave
from tessera_lab.fleet.prices import PRICE_SETS, GpuPrices
from tessera_lab.levers.assumptions import LeverAssumptions
from tessera_lab.levers.case import ServiceCase
from tessera_lab.levers.ladder import Ladder, MonthlyCosts, climb
from tessera_lab.levers.month import Month
from tessera_lab.levers.replica_rate import LatencyObjectives, LoadSample
from tessera_lab.levers.small_services import SmallServices
from tessera_lab.load.lengths import LengthDistribution

# Requests per minute over a day: `course` L3, where a naive fleet costs above 500,000 USD a month.
REQUESTS_PER_MINUTE = 10_000
# The day is lowest at 0.3 and highest at 1.7 of its mean.
SWING = 0.7
SPAN = 900.0
# So many stand for a load.
SAMPLE_REQUESTS = 1500
PROVIDER = "AWS"
PRICE_DAY = date(2026, 11, 20)
BASELINE_GPU = "NVIDIA-H100-80GB-HBM3"
# Small services: models, requests per minute, and a day of which a quarter has no request.
SMALL_MODELS = (
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "Qwen/Qwen3-4B",
    "meta-llama/Llama-3.1-8B-Instruct",
)
SMALL_RATES = (6, 20, 60)
SMALL_SWING, HOUR = 1.4, 3600.0
SMALL_SAMPLE_REQUESTS = 400
SMALL_GPU = "NVIDIA-A100-SXM4-80GB"
SMALL_OTHER_GPUS = ("NVIDIA-A10G", "NVIDIA-L4")


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderModel:
    """A model, those beside it, and the GPUs of its first replica."""

    name: str
    draft: str
    small: str
    gpus: int


MODELS: Mapping[str, LadderModel] = {
    "8B": LadderModel(
        name="meta-llama/Llama-3.1-8B-Instruct",
        draft="meta-llama/Llama-3.2-1B-Instruct",
        small="meta-llama/Llama-3.2-3B-Instruct",
        gpus=1,
    ),
    "70B": LadderModel(
        name="meta-llama/Llama-3.1-70B-Instruct",
        # `engineering` L108-112 drafts for it with 8B.
        draft="meta-llama/Llama-3.1-8B-Instruct",
        small="meta-llama/Llama-3.1-8B-Instruct",
        gpus=4,
    ),
}
_CONTEXT = LengthDistribution(kind="fixed", low=800, high=800)
LOADS: Mapping[str, LoadMix] = {
    # A system prompt of `engineering` L140 before 10 to 2,000 tokens.
    "chat": replace(CHAT, system_tokens=200),
    # 2,000 tokens with the system prompt of `engineering` L4.
    "rag": replace(RAG, prompts=_CONTEXT, prompt_bounds=(800, 800), system_tokens=1200),
    "code": CODE,
}


def ladder(model: str, load: str) -> Ladder:
    """Return the ladder of `8B` or `70B` under `chat`, `rag` or `code`."""
    return climb(costs(model, load))


@functools.cache
def costs(model: str, load: str) -> MonthlyCosts:
    """Return the months of this model and load by their levers; what was played is kept."""
    return MonthlyCosts(service_case(model, load))


def small_services() -> SmallServices:
    """Return services of three loads and rates on each small model, by day in three regions."""
    prices, cases = gpu_prices(), dict[str, ServiceCase]()
    numbers = product(range(len(SMALL_MODELS)), range(len(LOADS)), range(len(SMALL_RATES)))
    for number in numbers:
        model, load, rate = number
        name, begin = list(LOADS)[load], DAY / 3 * (sum(number) % 3)
        wave = daily_wave(SMALL_RATES[rate] / 60, SMALL_SWING)
        middles = [(hour + 0.5) * HOUR for hour in range(int(DAY / HOUR))]
        cases[f"{SMALL_MODELS[model].split('/')[1]}-{name}-{SMALL_RATES[rate]}"] = replace(
            service_case("8B", name, requests=SMALL_SAMPLE_REQUESTS),
            shape=models()[SMALL_MODELS[model]],
            demand=tuple((HOUR, wave(middle - begin)) for middle in middles),
            baseline=whole_gpu_hardware(products()[SMALL_GPU], 1),
            prices={each: prices[each] for each in (SMALL_GPU, *SMALL_OTHER_GPUS)},
        )
    return SmallServices(cases=cases, product=SMALL_GPU)


def static_batches(model: str, load: str) -> Month:
    """Return the month of the engines before continuous batching, on a fleet for the peak."""
    case = replace(service_case(model, load), static_batches=True)
    return MonthlyCosts(case).month(frozenset())


def service_case(
    model: str,
    load: str,
    assumptions: LeverAssumptions | None = None,
    requests: int = SAMPLE_REQUESTS,
) -> ServiceCase:
    chosen, mix, slo = MODELS[model], LOADS[load], BUILT_IN_CLASSES.standard
    rate = daily_wave(REQUESTS_PER_MINUTE / 60, SWING)
    return ServiceCase(
        shape=models()[chosen.name],
        load=LoadSample(
            name=load,
            requests=mix.draw(requests, 1.0),
            shared_tokens=BLOCK_TOKENS if mix.system_tokens else None,
        ),
        objectives=LatencyObjectives(
            ttft=slo.ttft_p95.total_seconds(), tpot=slo.itl_p95.total_seconds()
        ),
        demand=tuple((SPAN, rate((number + 0.5) * SPAN)) for number in range(int(DAY / SPAN))),
        baseline=whole_gpu_hardware(products()[BASELINE_GPU], chosen.gpus),
        prices=gpu_prices(),
        draft=models()[chosen.draft],
        small=models()[chosen.small],
        assumptions=assumptions or LeverAssumptions(),
    )


def gpu_prices() -> Mapping[str, GpuPrices]:
    """Return the list prices of one provider, so that no lever changes the provider.

    Tiers without a price have the usual share of the one on demand.
    """
    entries = tuple(entry for entry in list_prices() if entry.seller == PROVIDER)
    hourly = price_book(PROVIDER, entries, PRICE_DAY).hourly
    usual = {product: prices_by_tier(amount.nanos / 1e9) for product, amount in hourly.items()}
    return usual | PRICE_SETS["aws-2026"]
