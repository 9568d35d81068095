"""The request of `tessera size`, from its command-line options."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationError

from tessera.adapters.catalog_file import read_catalog
from tessera.api.engine_options import DraftModel, EngineOptions, SpeculationOptions
from tessera.api.inference_service import Context, InferenceServiceSpec, Model
from tessera.api.model_files import ModelShape
from tessera.api.precision import CHECKPOINT
from tessera.api.text import counted
from tessera.cli.errors import CommandError
from tessera.cli.files import read_text
from tessera.cli.numbers import objectives
from tessera.domain.hardware.gpu_catalog import (
    Product,
    catalog,
    models,
    nearest_products,
    products,
)
from tessera.domain.model.config import CONFIG, UnsupportedConfig, read_files
from tessera.domain.model.overrides import (
    overridden_config,
    overridden_shape,
    uncounted_keys,
    without_media,
)
from tessera.domain.model.quantization import UNSUPPORTED_METHODS
from tessera.domain.money import Money, money
from tessera.domain.perf.engine_terms import EngineTerms, engine_terms
from tessera.domain.placement.checks import check
from tessera.domain.price_files import PriceError
from tessera.domain.sizing import precision, prices, tensor_parallel
from tessera.domain.sizing.lora import RANKS, slots_mib
from tessera.domain.sizing.prices import PriceBook
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import DEFAULT_MAX_MODEL_LEN
from tessera.domain.vllm.extra_args import config_overrides, loads_media

_PRECISIONS = (None, "fp8", "awq-int4")
_SHAPE_HINT = (
    "use the name from the Hugging Face Hub, or pass its config.json with --config FILE; similar "
    "known models:"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRequest:
    """A model to size, with products, prices and the options of the report."""

    name: str
    demand: Demand
    products: tuple[Product, ...]
    precisions: tuple[str | None, ...]
    book: PriceBook
    unpriced: tuple[str, ...]
    """Products without a price, which are not sized unless named."""
    has_slo: bool
    compare: bool
    tensor_parallel: int | None
    api_price: Money | None


def size_request(arguments: SimpleNamespace, day: date) -> SizeRequest:
    """Return the request of the options; CommandError where they are invalid."""
    for option, least in (("input_tokens", 1), ("output_tokens", 1), ("adapters", 0), ("rank", 1)):
        _check_bounds(option, getattr(arguments, option), least)
    _use_catalogs(arguments.catalogs)
    engine = _requested_options(arguments)
    name, shape = _requested_model(arguments, config_overrides(engine))
    if not loads_media(engine):
        shape = without_media(shape)
    book = _read_price_book(arguments.prices, day)
    chosen, unpriced = _parse_products(arguments.gpu, book, arguments.prices)
    _check_divisible(shape, arguments.tensor_parallel)
    return SizeRequest(
        name=name,
        demand=_requested_demand(arguments, shape, engine),
        products=chosen,
        precisions=_parse_precisions(arguments.precision, shape),
        book=book,
        unpriced=unpriced,
        has_slo=arguments.slo is not None,
        compare=arguments.compare,
        tensor_parallel=arguments.tensor_parallel,
        api_price=_api_price(arguments.api_price, book),
    )


def _use_catalogs(name: str | None) -> None:
    """Let this process know the entries of a file; CommandError where one cannot be used."""
    if name is None:
        return
    extended, faults = read_catalog(Path(name).expanduser())
    if faults:
        raise CommandError(f"--catalogs {name}: {faults[0]}")
    catalog.set(extended)


def known_model(name: str, option: str) -> ModelShape:
    """Return the shape of a known model; CommandError with similar names otherwise."""
    for method, reason in UNSUPPORTED_METHODS.items():
        if method in name.lower():
            raise CommandError(f"{option} {name}: {method} is not supported: {reason}")
    shape = models().get(name.removeprefix("hf://"))
    if shape is None:
        raise CommandError(
            f"{option} {name} is none of the {len(models())} known models; {_SHAPE_HINT} "
            f"{', '.join(nearest_models(name))}"
        )
    return shape


def nearest_models(name: str) -> list[str]:
    """Return the known models with similar names, or some known models."""
    # The organization before the slash is ignored, since mirrors and quantized files change it.
    by_short_name = {model_name.partition("/")[2].lower(): model_name for model_name in models()}
    wanted = name.rpartition("/")[2].lower()
    close = difflib.get_close_matches(wanted, sorted(by_short_name), n=3, cutoff=0.3)
    return [by_short_name[short_name] for short_name in close] or sorted(models())[:3]


def _check_bounds(option: str, value: int | None, least: int) -> None:
    if value is not None and not least <= value <= 10**8:
        name = option.replace("_", "-")
        raise CommandError(f"--{name} {value}: write a number from {least} to {10**8}")


def _requested_model(
    arguments: SimpleNamespace, overrides: Mapping[str, Any]
) -> tuple[str, ModelShape]:
    if arguments.config is not None:
        shape = _from_config(Path(arguments.config).expanduser(), overrides)
        return arguments.model or arguments.config, shape
    if arguments.model is None:
        raise CommandError(
            "no model: name one, such as tessera size meta-llama/Llama-3.1-8B-Instruct, or pass "
            "--config FILE"
        )
    shape = known_model(arguments.model, "MODEL")
    if keys := tuple(uncounted_keys(overrides)):
        raise CommandError(
            f"--hf-overrides: {keys[0]} may change memory and speed; pass the config.json of "
            f"{arguments.model} with --config FILE, into which the overrides are merged"
        )
    return arguments.model, overridden_shape(shape, overrides)


def _from_config(path: Path, overrides: Mapping[str, Any]) -> ModelShape:
    config = _read_json(path)
    if isinstance(config, Mapping):
        config = overridden_config(config, overrides)
    weights = {file.name: file.stat().st_size for file in path.parent.glob("*.safetensors")}
    shape = read_files(lambda name: config if name == CONFIG else _read_beside(path, name), weights)
    if isinstance(shape, UnsupportedConfig):
        raise CommandError(
            f"--config {path}: {shape.message}. A file for --catalogs may have its shape instead "
            "(docs/tasks/catalogs.md)"
        )
    return shape


def _read_beside(path: Path, name: str) -> object:
    """Return the content of a file in the same folder; None if there is none."""
    neighbor = path.with_name(name)
    return _read_json(neighbor) if neighbor.is_file() else None


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} is not JSON: {error}") from None


def _requested_demand(
    arguments: SimpleNamespace, shape: ModelShape, engine: EngineOptions
) -> Demand:
    longest = shape.max_position_embeddings
    _check_bounds("context", arguments.context, 16)
    if arguments.context is not None and arguments.context > longest:
        raise CommandError(
            f"--context {arguments.context} exceeds the model's context length of "
            f"{counted(longest, 'token')}; use at most {longest}"
        )
    length = arguments.context or min(DEFAULT_MAX_MODEL_LEN, longest)
    answer = 0 if shape.pooling else min(arguments.output_tokens, max(1, length // 2))
    ttft, itl = objectives(arguments.slo)
    adapters_mib = slots_mib(shape, arguments.adapters, _supported_rank(arguments.rank))
    return Demand(
        shape=shape,
        precision=None,
        max_model_len=length,
        input_tokens=min(arguments.input_tokens, length - answer),
        output_tokens=answer,
        ttft=ttft,
        inter_token=itl,
        adapters_mib=adapters_mib,
        engine=_requested_terms(arguments, shape, length, engine),
    )


def _requested_terms(
    arguments: SimpleNamespace, shape: ModelShape, max_model_len: int, engine: EngineOptions
) -> EngineTerms:
    """Return the terms of an engine with these options, by the rules of a service."""
    model = Model.model_construct(uri=arguments.model or arguments.config, shape=shape)
    context = Context(max_model_len=max_model_len)
    spec = InferenceServiceSpec(model=model, context=context, engine=engine)
    if denials := check(spec, {}):
        raise CommandError(f"an engine with these options does not start: {denials[0].sentence}")
    return engine_terms(engine)


def _requested_options(arguments: SimpleNamespace) -> EngineOptions:
    options = {
        "kv_cache_dtype": arguments.kv_cache_dtype.replace("auto", "Auto"),
        "max_num_seqs": arguments.max_num_seqs,
        "max_num_batched_tokens": arguments.max_num_batched_tokens,
        "gpu_memory_utilization": arguments.gpu_memory_utilization,
        "block_size": arguments.block_size and int(arguments.block_size),
        "speculation": _requested_speculation(arguments),
        "extra_args": arguments.extra_arg,
    }
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return EngineOptions(**given)
    except ValidationError as error:
        fault = error.errors()[0]
        option = str(fault["loc"][0]).replace("_", "-")
        raise CommandError(f"--{option} {fault['input']}: {fault['msg']}") from None


def _requested_speculation(arguments: SimpleNamespace) -> SpeculationOptions | None:
    if arguments.draft is None:
        if arguments.draft_tokens is not None:
            raise CommandError("--draft-tokens needs a draft model: add --draft MODEL")
        return None
    draft = DraftModel(uri=f"hf://{arguments.draft}", shape=known_model(arguments.draft, "--draft"))
    tokens = {} if arguments.draft_tokens is None else {"tokens": arguments.draft_tokens}
    try:
        return SpeculationOptions(method="DraftModel", model=draft, **tokens)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise CommandError(f"--draft-tokens {arguments.draft_tokens}: {message}") from None


def _supported_rank(rank: int) -> int:
    supported = next((candidate for candidate in RANKS if candidate >= rank), None)
    if supported is None:
        raise CommandError(f"--rank {rank}: vLLM supports at most {RANKS[-1]}")
    return supported


def _parse_precisions(text: str | None, shape: ModelShape) -> tuple[str | None, ...]:
    """Return the precisions to size; None stands for that of the files, by either of its names."""
    if text is None:
        return _PRECISIONS if shape.quantization is None else (None,)
    checkpoint_names = (CHECKPOINT, precision.label(shape, None))
    return tuple(
        None if name in checkpoint_names else _checked_precision(name, shape)
        for name in text.split(",")
    )


def _checked_precision(name: str, shape: ModelShape) -> str:
    if name in UNSUPPORTED_METHODS:
        raise CommandError(f"--precision {name} is not supported: {UNSUPPORTED_METHODS[name]}")
    if name not in precision.ALTERNATIVES:
        known = ", ".join((CHECKPOINT, *precision.ALTERNATIVES))
        raise CommandError(f"--precision {name} is unknown; write one or more of {known}")
    if (problem := precision.mismatch_reason(shape, name)) is not None:
        raise CommandError(f"--precision {name}: {problem}")
    return name


def _check_divisible(shape: ModelShape, devices: int | None) -> None:
    _check_bounds("tensor_parallel", devices, 1)
    problem = None if devices is None else tensor_parallel.sharding_problem(shape, devices)
    if problem is not None:
        raise CommandError(f"--tensor-parallel {devices}: {problem}")


def _read_price_book(path: str | None, day: date) -> PriceBook:
    if path is None:
        return prices.price_book(prices.ASSUMED, prices.list_prices(), day)
    text = read_text("--prices", path)
    try:
        return prices.price_book(path, prices.parse_prices(text), day)
    except PriceError as error:
        raise CommandError(f"--prices {path}: {error}") from None


def _parse_products(
    text: str | None, book: PriceBook, path: str | None
) -> tuple[tuple[Product, ...], tuple[str, ...]]:
    """Return the named products, else all with a price, and the names of those without a price."""
    known = products()
    if text is None:
        priced = tuple(known[name] for name in known if name in book.hourly)
        return priced, tuple(name for name in known if name not in book.hourly)
    for name in text.split(","):
        if name not in known:
            raise CommandError(
                f"--gpu {name} is none of the {len(known)} known products; similar: "
                f"{', '.join(nearest_products(name))}"
            )
        if path is not None and name not in book.hourly:
            raise CommandError(
                f"--prices {path} has no price of {name}; add one, or remove it from --gpu"
            )
    named = tuple(known[name] for name in text.split(","))
    return named, tuple(product.product for product in named if product.product not in book.hourly)


def _api_price(text: str | None, book: PriceBook) -> Money | None:
    if text is None:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(0)
    if not (amount.is_finite() and amount > 0):
        raise CommandError(f"--api-price {text}: write an amount above 0, such as 0.90")
    return money(amount, book.currency)
