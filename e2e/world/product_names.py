"""GPU nodes beyond the catalog: names, engines and the machines that clouds sell."""

from dataclasses import dataclass

from tessera.domain.hardware.gpu_catalog import Product
from world.mig import SliceSize


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductNames:
    """One product as its driver and the clouds name it."""

    model: str
    """The name that NVML gives; labels replace its blanks by dashes."""
    family: str
    compute: str
    gke: str
    aws: str
    gcp: str
    azure: str


_AMPERE = {"family": "ampere", "compute": "8.0"}
_HOPPER = {"family": "hopper", "compute": "9.0"}
PRODUCT_NAMES = {
    "NVIDIA-A100-PCIE-40GB": ProductNames(
        model="NVIDIA A100-PCIE-40GB", gke="nvidia-tesla-a100", aws="p4d.24xlarge",
        gcp="a2-highgpu-8g", azure="Standard_ND96asr_v4", **_AMPERE,
    ),
    "NVIDIA-A100-SXM4-40GB": ProductNames(
        model="NVIDIA A100-SXM4-40GB", gke="nvidia-tesla-a100", aws="p4d.24xlarge",
        gcp="a2-highgpu-8g", azure="Standard_ND96asr_v4", **_AMPERE,
    ),
    "NVIDIA-A100-80GB-PCIe": ProductNames(
        model="NVIDIA A100 80GB PCIe", gke="nvidia-a100-80gb", aws="p4de.24xlarge",
        gcp="a2-ultragpu-8g", azure="Standard_NC96ads_A100_v4", **_AMPERE,
    ),
    "NVIDIA-A100-SXM4-80GB": ProductNames(
        model="NVIDIA A100-SXM4-80GB", gke="nvidia-a100-80gb", aws="p4de.24xlarge",
        gcp="a2-ultragpu-8g", azure="Standard_ND96amsr_A100_v4", **_AMPERE,
    ),
    "NVIDIA-H100-PCIe": ProductNames(
        model="NVIDIA H100 PCIe", gke="nvidia-h100-80gb", aws="p5.48xlarge",
        gcp="a3-highgpu-8g", azure="Standard_NC80adis_H100_v5", **_HOPPER,
    ),
    "NVIDIA-H100-80GB-HBM3": ProductNames(
        model="NVIDIA H100 80GB HBM3", gke="nvidia-h100-80gb", aws="p5.48xlarge",
        gcp="a3-highgpu-8g", azure="Standard_ND96isr_H100_v5", **_HOPPER,
    ),
    "NVIDIA-H100-NVL": ProductNames(
        model="NVIDIA H100 NVL", gke="nvidia-h100-80gb", aws="p5.48xlarge",
        gcp="a3-highgpu-8g", azure="Standard_NC80adis_H100_v5", **_HOPPER,
    ),
    "NVIDIA-H200": ProductNames(
        model="NVIDIA H200", gke="nvidia-h200-141gb", aws="p5en.48xlarge",
        gcp="a3-ultragpu-8g", azure="Standard_ND96isr_H200_v5", **_HOPPER,
    ),
}  # fmt: skip


def product_names(product: Product) -> ProductNames:
    """What is known of a product; one that is new in the catalog gets plain values."""
    plain = ProductNames(
        model=product.product.replace("-", " "), gke="nvidia-gpu", aws="p5.48xlarge",
        gcp="a3-highgpu-8g", azure="Standard_ND96isr_H100_v5", **_HOPPER,
    )  # fmt: skip
    return PRODUCT_NAMES.get(product.product, plain)


def engines(product: Product, mig_profile: SliceSize, *, media: bool) -> dict[str, int]:
    """Copy and media engines of a slice, as `nvidia-smi mig -lgip` prints them."""
    whole = mig_profile.memory_slices == 8
    compute = mig_profile.compute_slices
    if product_names(product).family == "ampere":
        decoders = 5 if whole else {1: 0, 2: 1}.get(compute, 2)
        counts = {"copy": compute, "decoder": decoders, "jpeg": int(whole), "ofa": int(whole)}
    else:
        copiers = 8 if whole else compute
        counts = {"copy": copiers, "decoder": compute, "jpeg": compute, "ofa": int(whole)}
    if media:
        counts |= {"decoder": 1, "jpeg": 1, "ofa": 1}
    return counts | {"encoder": 0}
