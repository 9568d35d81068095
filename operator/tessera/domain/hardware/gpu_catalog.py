"""What is known of GPU products, MIG profiles and models, from the data files beside it."""

import difflib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter

from tessera.api.inference_service import ModelShape
from tessera.api.meta import Wire

COMPUTE_SLICES = 7
# Most products are cut into so many parts; a few into four and four.
MEMORY_SLICES = 8


class ProductMigProfile(Wire):
    """One MIG profile of a product."""

    profile: str
    compute_slices: int
    memory_slices: int
    multiprocessors: int
    memory_mib: Annotated[int, Field(alias="memoryMiB")]


class Product(Wire):
    """One GPU product, named as GPU feature discovery names it."""

    product: str
    capability: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]$")]
    """CUDA compute capability, which decides the kernels that run on it."""
    memory_mib: Annotated[int, Field(alias="memoryMiB")]
    bandwidth_gbs: Annotated[float, Field(alias="bandwidthGBs")]
    """Memory bandwidth in 1e9 bytes per second."""
    multiprocessors: int
    bf16_tflops: float
    """Dense peak in 1e12 operations per second; of float16 where there is no bfloat16."""
    fp8_tflops: float | None
    compute_slices: int = COMPUTE_SLICES
    """Into how many parts MIG cuts its multiprocessors."""
    memory_slices: int = MEMORY_SLICES
    """Into how many parts MIG cuts its memory."""
    slices: tuple[ProductMigProfile, ...]

    def mig_profile(self, profile: str) -> ProductMigProfile | None:
        return next((candidate for candidate in self.slices if candidate.profile == profile), None)


class _KnownModel(ModelShape):
    model_config = ConfigDict(frozen=True)
    model: str


def _read(name: str, key: str) -> object:
    text = resources.files("tessera.domain").joinpath("data", name).read_text(encoding="utf-8")
    return json.loads(text)[key]


@cache
def products() -> Mapping[str, Product]:
    """All known GPU products by name."""
    entries = TypeAdapter(tuple[Product, ...]).validate_python(
        _read("accelerators.json", "products")
    )
    return {product.product: product for product in entries}


def nearest_products(name: str) -> list[str]:
    """Known products that a name may mean: those that have it within, then those spelt like it."""
    containing = [
        product_name for product_name in products() if name and name.lower() in product_name.lower()
    ]
    similar = difflib.get_close_matches(name, products(), cutoff=0.4)
    return list(dict.fromkeys([*containing, *similar])) or sorted(products())


@cache
def models() -> Mapping[str, ModelShape]:
    """The shapes of all known models by their name on the hub."""
    entries = TypeAdapter(tuple[_KnownModel, ...]).validate_python(_read("models.json", "models"))
    return {entry.model: entry for entry in entries}
