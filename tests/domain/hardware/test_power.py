"""Watts of GPUs, and the share of a GPU that a device computes with."""

import pytest

from tessera.domain.hardware.device import slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.hardware.gpu_models import find_gpu_model
from tessera.domain.hardware.power import (
    compute_share,
    power_range,
    power_ranges,
    replica_power,
    replica_watts,
)

UNMEASURED = {"NVIDIA-GH200-144G-HBM3e"}


def test_every_product_of_the_catalog_has_watts_where_measurements_are_known() -> None:
    assert products().keys() - power_ranges().keys() == UNMEASURED
    assert power_ranges().keys() <= products().keys()


def test_an_idle_gpu_draws_a_fraction_of_its_most() -> None:
    for product, (idle_watts, max_watts) in power_ranges().items():
        assert 0.02 * max_watts < idle_watts < 0.3 * max_watts, product


def test_watts_are_those_of_the_file() -> None:
    assert power_range("NVIDIA-H100-80GB-HBM3") == (70, 700)
    assert power_range("NVIDIA-L4") == (16, 72)


@pytest.mark.parametrize("product", ["NVIDIA-GH200-144G-HBM3e", "acme"])
def test_watts_are_not_guessed(product: str) -> None:
    assert power_range(product) is None


@pytest.mark.parametrize(
    ("product", "profile", "share"),
    [
        ("NVIDIA-H100-80GB-HBM3", "", 1),
        ("NVIDIA-H100-80GB-HBM3", "whole", 1),
        ("acme", "", 1),
        ("NVIDIA-H100-80GB-HBM3", "1g.10gb", 16 / 132),
        ("NVIDIA-H100-80GB-HBM3", "3g.40gb", 60 / 132),
        ("NVIDIA-A100-SXM4-80GB", "7g.80gb", 98 / 108),
        ("NVIDIA-A30", "2g.12gb", 28 / 56),
        ("NVIDIA-H20", "3g.48gb", 3 / 7),
        ("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", "2g.48gb", 2 / 4),
        ("NVIDIA-H20-3e", "1g.18gb", 1 / 7),
        ("acme", "3g.40gb", 3 / 7),
    ],
)
def test_a_device_computes_with_its_multiprocessors(
    product: str, profile: str, share: float
) -> None:
    assert compute_share(product, profile) == pytest.approx(share)


def test_seven_small_slices_are_at_most_their_gpu() -> None:
    for product in products():
        gpu_model = find_gpu_model(product)
        for gi_profile in gpu_model.profiles if gpu_model is not None else ():
            share = compute_share(product, gi_profile.name)
            assert 0 < share * gi_profile.max_instances <= 1


def test_a_replica_draws_what_its_devices_draw() -> None:
    h100 = products()["NVIDIA-H100-80GB-HBM3"]
    assert replica_power(whole_gpu_hardware(h100, 2)) == pytest.approx((140, 1400))
    assert replica_watts(whole_gpu_hardware(h100, 2)) == pytest.approx(1400)
    mig_slice = slice_hardware(h100, "3g.40gb")
    assert mig_slice is not None
    # Half of its memory and three of seven compute slices, with 60 of 132 multiprocessors.
    floor = 70 * (3 / 7 + 4 / 8) / 2
    assert replica_watts(mig_slice) == pytest.approx(floor + 630 * 60 / 132)
    unmeasured = products()["NVIDIA-GH200-144G-HBM3e"]
    assert replica_watts(whole_gpu_hardware(unmeasured, 1)) is None
