"""Setups of an engine, from options on a command line."""

import difflib
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TypeVar

from tessera.api.model_files import ModelShape
from tessera.api.precision import CHECKPOINT
from tessera.cli.errors import CommandError
from tessera.domain.hardware.device import (
    Hardware,
    product_slices,
    slice_hardware,
    whole_gpu_hardware,
)
from tessera.domain.hardware.gpu_catalog import models, nearest_products, products
from tessera.domain.sizing.sizing import DEFAULT_MAX_MODEL_LEN
from tessera_lab.engine.setup import (
    DEFAULT_MAX_NUM_BATCHED_TOKENS,
    DEFAULT_MAX_NUM_SEQS,
    EngineSetup,
    EngineSetupError,
    KvCache,
    draft_cost,
)
from tessera_lab.engine.speculation import Speculation

_T = TypeVar("_T")
_OFF = "off"
_FLAGS = ("prefix-cache", "no-chunked-prefill")
_REQUIRED = ("model", "gpu")
_OPTIONS = (
    *(*_REQUIRED, "gpus", "precision", "batching", "kv-cache", "kv-cache-dtype", *_FLAGS),
    *("speculation", "draft", "max-model-len", "max-num-seqs", "max-num-batched-tokens"),
)
_NUMBER = r"\d{0,3}\.?\d{1,9}"
_SPECULATION = re.compile(rf"(\d{{1,2}}):(?:t({_NUMBER})|({_NUMBER}))(?::({_NUMBER}))?")
_COUNT = re.compile(r"\d{1,8}", re.ASCII)
_MAX_COUNT = 99_999_999


def engine_setups(arguments: SimpleNamespace, shared_tokens: int | None) -> dict[str, EngineSetup]:
    """Return the setups by their names; the first is that of the options alone.

    Raises CommandError with the setup that is invalid.
    """
    base = {
        name: "on" if value is True else str(value)
        for name in _OPTIONS
        if (value := getattr(arguments, name.replace("-", "_"))) is not None and value is not False
    }
    setups = {"as given": _setup("", base, shared_tokens)}
    for text in arguments.setup:
        if text in setups:
            raise CommandError(f"--setup {text} is written twice: leave one out")
        setups[text] = _setup(f"--setup {text}: ", _changed(base, text), shared_tokens)
    return setups


def _changed(base: Mapping[str, str], text: str) -> Mapping[str, str]:
    values = dict(base)
    for entry in text.split(","):
        name, _, value = entry.partition("=")
        if name not in _OPTIONS:
            raise CommandError(f"--setup {text}: {name} is none of {', '.join(_OPTIONS)}")
        if value == _OFF and name not in _REQUIRED:
            values.pop(name, None)
        elif name in _FLAGS and value in ("", "on"):
            values[name] = "on"
        elif name in _FLAGS or not value:
            words = "on or off" if name in _FLAGS else f"{name}=VALUE"
            raise CommandError(f"--setup {text}: write {words} for {name}")
        else:
            values[name] = value
    return values


def _setup(prefix: str, values: Mapping[str, str], shared_tokens: int | None) -> EngineSetup:
    try:
        return _engine_setup(values, shared_tokens)
    except (CommandError, EngineSetupError) as error:
        raise CommandError(f"{prefix}{error}") from None


def _engine_setup(values: Mapping[str, str], shared_tokens: int | None) -> EngineSetup:
    shape, hardware = _model("model", values["model"]), _hardware(values)
    precision = values.get("precision", CHECKPOINT)
    precision_name = None if precision == CHECKPOINT else precision
    draft = _model("draft", values["draft"]) if "draft" in values else None
    cost = 0.0 if draft is None else draft_cost(draft, shape, precision_name, hardware)
    return EngineSetup(
        shape=shape,
        hardware=hardware,
        precision=precision_name,
        kv_bits=_choice(values, "kv-cache-dtype", "auto", {"auto": 16, "fp8": 8}),
        static_batch=_batch_size(values.get("batching", "continuous")),
        kv_cache=_choice(values, "kv-cache", "paged", {kind.value: kind for kind in KvCache}),
        prefix_cache="prefix-cache" in values,
        shared_tokens=shared_tokens,
        chunked_prefill="no-chunked-prefill" not in values,
        speculation=_speculation(values.get("speculation"), cost),
        draft=draft,
        max_model_len=_count(
            values, "max-model-len", min(DEFAULT_MAX_MODEL_LEN, shape.max_position_embeddings)
        ),
        max_num_seqs=_count(values, "max-num-seqs", DEFAULT_MAX_NUM_SEQS),
        max_num_batched_tokens=_count(
            values, "max-num-batched-tokens", DEFAULT_MAX_NUM_BATCHED_TOKENS
        ),
    )


def _model(option: str, name: str) -> ModelShape:
    shape = models().get(name)
    if shape is None:
        similar = difflib.get_close_matches(name, sorted(models()), n=3, cutoff=0.3)
        raise CommandError(
            f"{option} {name} is none of the {len(models())} known models, such as "
            f"{', '.join(similar or sorted(models())[:3])}"
        )
    return shape


def _hardware(values: Mapping[str, str]) -> Hardware:
    name, _, profile = values["gpu"].partition("/")
    gpus = _count(values, "gpus", 1)
    product = products().get(name)
    if product is None:
        raise CommandError(f"gpu {name}: choose {' or '.join(nearest_products(name)[:3])}")
    if not profile:
        return whole_gpu_hardware(product, gpus)
    hardware = slice_hardware(product, profile)
    if hardware is None:
        profiles = ", ".join(each.name for each in product_slices(product))
        raise CommandError(f"gpu {name} has no slice {profile}: choose one of {profiles or 'none'}")
    if gpus != 1:
        raise CommandError(f"gpus {gpus}: slices cannot work together, leave it out")
    return hardware


def _batch_size(text: str) -> int | None:
    if text == "continuous":
        return None
    kind, _, size = text.partition(":")
    if kind != "static":
        raise CommandError(f"batching {text}: write continuous, or static:8 for batches of 8")
    return _parse_count("batching static", size)


def _speculation(text: str | None, cost: float) -> Speculation | None:
    if text is None:
        return None
    matched = _SPECULATION.fullmatch(text)
    if matched is None:
        raise CommandError(
            f"speculation {text}: write K:ACCEPTANCE[:COST], such as 5:0.7, or 5:t0.8 for the "
            "acceptance at temperature 0.8"
        )
    tokens, temperature, share, written_cost = matched.groups()
    draft_tokens, cost = int(tokens), float(written_cost or cost)
    try:
        if temperature is None:
            return Speculation(acceptance=float(share), draft_tokens=draft_tokens, draft_cost=cost)
        return Speculation.at_temperature(
            float(temperature), draft_tokens=draft_tokens, draft_cost=cost
        )
    except ValueError as error:
        raise CommandError(f"speculation {text}: {error}") from None


def _choice(values: Mapping[str, str], option: str, usual: str, choices: Mapping[str, _T]) -> _T:
    value = values.get(option, usual)
    if value not in choices:
        raise CommandError(f"{option} {value}: write {' or '.join(choices)}")
    return choices[value]


def _count(values: Mapping[str, str], option: str, usual: int) -> int:
    return _parse_count(option, values[option]) if option in values else usual


def _parse_count(option: str, text: str) -> int:
    if _COUNT.fullmatch(text) is None or not int(text):
        raise CommandError(f"{option} {text}: write a number from 1 to {_MAX_COUNT}")
    return int(text)
