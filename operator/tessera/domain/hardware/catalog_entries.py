"""Entries that an installation adds to the shipped catalog: GPU products and shapes of models."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.gpu_catalog import (
    SHARED_PRODUCT,
    Catalog,
    KnownModel,
    Product,
    shipped,
)

EntryT = TypeVar("EntryT", Product, KnownModel)

# Compute capability from which GPUs compute in 8 bits.
_FP8_CAPABILITY = (8, 9)
_FORMAT_HELP = (
    'write {"gpus": [{"product": "NVIDIA-RTX-A5000", "capability": "8.6", "memoryMiB": 24564, '
    '"bandwidthGBs": 768, "multiprocessors": 64, "bf16Tflops": 111}], "models": []}'
)


def extended_catalog(text: str) -> tuple[Catalog, tuple[str, ...]]:
    """Return the shipped catalog with the entries of a document, and what was left out of it.

    An entry that cannot be used is left out with a sentence. So is one with the name of a shipped
    entry: what a known GPU or model can do is the same everywhere, and another figure would change
    prices and limits of unchanged services.
    """
    base, faults = shipped(), list[str]()
    entries = _entries(text, faults.append)
    gpus = _usable(entries.get("gpus", []), "gpus", base.products, Product, faults.append)
    shapes = _usable(entries.get("models", []), "models", base.models, KnownModel, faults.append)
    catalog = Catalog(
        products={**base.products, **{product.product: product for product in gpus}},
        models={**base.models, **{shape.model: shape for shape in shapes}},
    )
    return catalog, tuple(faults)


def _entries(text: str, report: Callable[[str], None]) -> Mapping[str, list[object]]:
    """Return the lists of the document; what else it has is reported."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        report(f"catalogs is not JSON: {error}; {_FORMAT_HELP}")
        return {}
    if not isinstance(document, dict):
        report(f"catalogs is no object; {_FORMAT_HELP}")
        return {}
    for key, entries in document.items():
        if key not in ("gpus", "models") or not isinstance(entries, list):
            report(f"catalogs.{str(key)[:63]} is no list of gpus or models; {_FORMAT_HELP}")
    return {key: entries for key, entries in document.items() if isinstance(entries, list)}


def _usable(
    entries: list[object],
    kind: str,
    known: Mapping[str, Product] | Mapping[str, ModelShape],
    entry_type: type[EntryT],
    report: Callable[[str], None],
) -> list[EntryT]:
    adapter, usable = TypeAdapter(entry_type), dict[str, EntryT]()
    for index, raw in enumerate(entries):
        problem: str | None
        try:
            entry = adapter.validate_python(raw)
        except ValidationError as error:
            problem = _first_problem(error)
        else:
            name = entry.product if isinstance(entry, Product) else entry.model
            problem = next(_problems(entry, name, known, usable), None)
            if problem is None:
                usable[name] = entry
        if problem is not None:
            report(f"catalogs.{kind}[{index}] is left out: {problem}")
    return list(usable.values())


def _problems(
    entry: Product | KnownModel,
    name: str,
    known: Mapping[str, object],
    earlier: Mapping[str, object],
) -> Iterator[str]:
    if name in known:
        yield (
            f"{name} is shipped with Tessera, and that entry stays, so that its figures are the "
            "same everywhere; remove yours, and report a wrong figure"
        )
    if name in earlier:
        yield f"{name} is there twice, and the first entry stays; remove one"
    if isinstance(entry, Product):
        if name.endswith(SHARED_PRODUCT):
            yield (
                f"{name} are GPUs that pods share, and an engine needs one of its own; remove it, "
                "and turn time slicing or MPS off in the device plugin"
            )
        major, minor = entry.capability.split(".")
        has_fp8 = (int(major), int(minor)) >= _FP8_CAPABILITY
        if has_fp8 and entry.fp8_tflops is None:
            yield f"{name}: add fp8Tflops, which compute capability {entry.capability} has"
        if not has_fp8 and entry.fp8_tflops is not None:
            yield f"{name}: remove fp8Tflops, which needs compute capability 8.9"
    elif (entry.active_parameters or 0) > entry.parameters:
        yield (
            f"{name}: activeParameters {entry.active_parameters} exceed parameters "
            f"{entry.parameters}; write the part that is used per token"
        )


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(key) for key in first["loc"])[:63]
    return f"{path or 'the entry'}: {first['msg']}; {_FORMAT_HELP}"
