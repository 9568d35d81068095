"""GPU products and model shapes, from the data files in `domain/data` and from the installation."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated

from pydantic import Field, TypeAdapter

from tessera.api.meta import LabelValue, Wire
from tessera.api.model_files import ModelShape
from tessera.domain.incremental import Installed, constant

# Slices of most MIG-capable GPUs; a few products have four and four.
COMPUTE_SLICES = 7
MEMORY_SLICES = 8
# The device plugin adds it to the product of GPUs that pods share.
SHARED_PRODUCT = "-SHARED"


class Product(Wire):
    """One GPU product, named as GPU feature discovery names it."""

    product: Annotated[LabelValue, Field(min_length=1)]
    """Value of the node label `nvidia.com/gpu.product`."""

    capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")]
    """CUDA compute capability, such as `8.6`, which decides which kernels run."""

    memory_mib: Annotated[int, Field(alias="memoryMiB", ge=1024, le=4_194_304)]
    """Memory of the whole GPU, in MiB."""

    bandwidth_gbs: Annotated[float, Field(alias="bandwidthGBs", gt=0, le=100_000)]
    """Memory bandwidth in 1e9 bytes per second."""

    multiprocessors: Annotated[int, Field(ge=1, le=1024)]
    """Streaming multiprocessors."""

    bf16_tflops: Annotated[float, Field(gt=0, le=100_000)]
    """Dense peak in 1e12 operations per second; float16 where the product has no bfloat16."""

    fp8_tflops: Annotated[float, Field(gt=0, le=200_000)] | None = None
    """Dense peak in 8 bits; omitted before compute capability 8.9, which has none."""


class KnownModel(ModelShape):
    """The shape of a model, with its name."""

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.:/-]*$", max_length=512)]
    """What `spec.model.uri` says, without `hf://`: such as `acme/llama-8b-ft`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """GPU products by the label of their nodes, and shapes of models by their name."""

    products: Mapping[str, Product]
    models: Mapping[str, ModelShape]


def _read(name: str, key: str) -> object:
    text = resources.files("tessera.domain").joinpath("data", name).read_text(encoding="utf-8")
    return json.loads(text)[key]


@constant
def shipped() -> Catalog:
    """Return the catalog of this version of Tessera."""
    gpu_products = TypeAdapter(tuple[Product, ...]).validate_python(
        _read("accelerators.json", "products")
    )
    shapes = TypeAdapter(tuple[KnownModel, ...]).validate_python(_read("models.json", "models"))
    return Catalog(
        products={product.product: product for product in gpu_products},
        models={shape.model: shape for shape in shapes},
    )


# With the entries of the installation: see `catalog_entries.py`.
catalog = Installed(shipped)


def products() -> Mapping[str, Product]:
    """Return all known GPU products by name."""
    return catalog().products


def nearest_products(name: str) -> list[str]:
    """Return the known products that a name may mean, or all of them when none is similar."""
    containing = [
        product_name for product_name in products() if name and name.lower() in product_name.lower()
    ]
    similar = difflib.get_close_matches(name, products(), cutoff=0.4)
    return list(dict.fromkeys([*containing, *similar])) or sorted(products())


def models() -> Mapping[str, ModelShape]:
    """Return the shapes of all known models by their name on the hub."""
    return catalog().models
