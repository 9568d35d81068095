"""What GPUs draw when idle and at most, from `data/power.json`, and which part of one computes."""

import json
from collections.abc import Mapping
from datetime import date
from importlib import resources
from typing import Annotated, NamedTuple

from pydantic import Field

from tessera.api.meta import Wire
from tessera.domain.hardware.device import Hardware
from tessera.domain.hardware.gpu_catalog import COMPUTE_SLICES, products
from tessera.domain.hardware.gpu_models import WHOLE_GPU, find_gpu_model
from tessera.domain.hardware.weights import billing_weight
from tessera.domain.incremental import constant


class PowerRange(NamedTuple):
    """What one whole GPU draws, in watts."""

    idle_watts: float
    """Without a process; a loaded model without a request draws more."""
    max_watts: float
    """The design power of its board, which short peaks may pass."""


class _PowerFile(Wire):
    class Entry(Wire):
        product: str
        idle_watts: Annotated[float, Field(gt=0)]
        max_watts: Annotated[float, Field(gt=0)]
        source: str

    source: str
    date: date
    products: tuple[Entry, ...]


@constant
def power_ranges() -> Mapping[str, PowerRange]:
    """Return what is known, by product; the file has the date and the sources."""
    text = resources.files("tessera.domain").joinpath("data", "power.json").read_text("utf-8")
    file = _PowerFile.model_validate(json.loads(text))
    return {entry.product: PowerRange(entry.idle_watts, entry.max_watts) for entry in file.products}


def power_range(product: str) -> PowerRange | None:
    """Return what one whole GPU of a product draws; None where no measurement is known."""
    return power_ranges().get(product)


def compute_share(product: str, profile: str) -> float:
    """Return which part of a GPU's multiprocessors a device has, from above 0 to 1.

    The profile is that of a MIG slice, by any of its names, and empty for a whole GPU. Where the
    multiprocessors are not known the compute slices count, and those in the name of a profile that
    no table has. All slices of a GPU together may have less than 1: some of it is in none.
    """
    if profile in ("", WHOLE_GPU):
        return 1.0
    gpu_model = find_gpu_model(product)
    gi_profile = gpu_model.find_profile(profile) if gpu_model is not None else None
    if gpu_model is None or gi_profile is None:
        slices, _, _ = profile.partition("g.")
        return min(int(slices) / COMPUTE_SLICES, 1.0) if slices.isdecimal() else 1.0
    catalog_product = products().get(product)
    if catalog_product is None or gi_profile.multiprocessors is None:
        return gi_profile.compute_slices / gpu_model.compute_slices
    return gi_profile.multiprocessors / catalog_product.multiprocessors


def replica_power(hardware: Hardware) -> PowerRange | None:
    """Return what the devices of a replica draw; None where no measurement is known.

    A slice has its billing weight of the idle watts, and its compute share of the rest.
    """
    watts = power_range(hardware.product)
    if watts is None:
        return None
    share = hardware.devices * compute_share(hardware.product, hardware.profile or "")
    floor = watts.idle_watts * float(billing_weight(hardware))
    return PowerRange(floor, floor + (watts.max_watts - watts.idle_watts) * share)


def replica_watts(hardware: Hardware) -> float | None:
    """Return what the devices of a replica draw at most, by the table alone."""
    watts = replica_power(hardware)
    return watts.max_watts if watts is not None else None
