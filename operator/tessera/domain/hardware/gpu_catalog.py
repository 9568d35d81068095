"""GPU products and model shapes, from the data files in `domain/data`."""

import difflib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter

from tessera.api.inference_service import ModelShape
from tessera.api.meta import Wire
from tessera.domain.incremental import constant

# Slices of most MIG-capable GPUs; a few products have four and four.
COMPUTE_SLICES = 7
MEMORY_SLICES = 8


class Product(Wire):
    """One GPU product, named as GPU feature discovery names it."""

    product: str
    capability: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]$")]
    """CUDA compute capability, which decides which kernels run."""
    memory_mib: Annotated[int, Field(alias="memoryMiB")]
    bandwidth_gbs: Annotated[float, Field(alias="bandwidthGBs")]
    """Memory bandwidth in 1e9 bytes per second."""
    multiprocessors: int
    bf16_tflops: float
    """Dense peak in 1e12 operations per second; float16 where the product has no bfloat16."""
    fp8_tflops: float | None


class _KnownModel(ModelShape):
    model_config = ConfigDict(frozen=True)
    model: str


def _read(name: str, key: str) -> object:
    text = resources.files("tessera.domain").joinpath("data", name).read_text(encoding="utf-8")
    return json.loads(text)[key]


@constant
def products() -> Mapping[str, Product]:
    """Return all known GPU products by name."""
    entries = TypeAdapter(tuple[Product, ...]).validate_python(
        _read("accelerators.json", "products")
    )
    return {product.product: product for product in entries}


def nearest_products(name: str) -> list[str]:
    """Return the known products that a name may mean, or all of them when none is similar."""
    containing = [
        product_name for product_name in products() if name and name.lower() in product_name.lower()
    ]
    similar = difflib.get_close_matches(name, products(), cutoff=0.4)
    return list(dict.fromkeys([*containing, *similar])) or sorted(products())


@constant
def models() -> Mapping[str, ModelShape]:
    """Return the shapes of all known models by their name on the hub."""
    entries = TypeAdapter(tuple[_KnownModel, ...]).validate_python(_read("models.json", "models"))
    return {entry.model: entry for entry in entries}
