"""The data files of hardware and prices."""

from datetime import date
from decimal import Decimal

import pytest

from tessera.domain.hardware.device import sized_profiles, slice_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.hardware.gpu_models import find_gpu_model
from tessera.domain.hardware.weights import billing_weight
from tessera.domain.price_files import PriceError
from tessera.domain.sizing import prices
from tessera.domain.sizing.precision import compute_capability
from tessera.domain.sizing.prices import parse_prices, price_book

DAY = date(2026, 11, 20)
ENTRY = '{"product": "NVIDIA-L40S", "from": "2026-01-01", "perGPUHour": "1.55"}'


def test_twenty_products_and_more_are_known_with_their_peaks() -> None:
    assert len(products()) >= 20
    for product in products().values():
        assert product.memory_mib > 10_000
        assert product.bf16_tflops > 0
        assert (product.fp8_tflops is None) is (compute_capability(product) < (8, 9))


@pytest.mark.parametrize(
    ("product", "profile", "multiprocessors", "gib"),
    [
        ("NVIDIA-A100-SXM4-40GB", "1g.5gb", 14, 4.75),
        ("NVIDIA-A100-SXM4-80GB", "3g.40gb", 42, 39.25),
        ("NVIDIA-H100-80GB-HBM3", "1g.20gb", 26, 19.62),
        ("NVIDIA-H100-80GB-HBM3", "3g.40gb", 60, 39.50),
        ("NVIDIA-H100-PCIe", "2g.20gb", 30, 19.62),
        ("NVIDIA-H100-NVL", "4g.47gb", 64, 46.38),
        ("NVIDIA-H200", "1g.18gb", 16, 16.0),
        ("NVIDIA-GH200-144G-HBM3e", "2g.36gb", 32, 35.25),
        ("NVIDIA-B200", "1g.23gb", 18, 20.5),
        ("NVIDIA-GB200", "2g.47gb", 38, 45.5),
        ("NVIDIA-A30", "2g.12gb", 28, 11.69),
        ("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", "1g.24gb", 46, 23.12),
    ],
)
def test_slices_have_what_the_gpus_show(
    product: str, profile: str, multiprocessors: int, gib: float
) -> None:
    gpu_model = find_gpu_model(product)
    mig_profile = gpu_model.find_profile(profile) if gpu_model is not None else None
    assert mig_profile is not None
    assert mig_profile.memory_mib is not None
    assert mig_profile.multiprocessors == multiprocessors
    assert mig_profile.memory_mib / 1024 == pytest.approx(gib, abs=0.01)


def test_no_slice_is_more_than_its_gpu() -> None:
    for product in products().values():
        for gi_profile in sized_profiles(product):
            # A whole-GPU profile may show some MiB that no engine ever saw.
            assert (gi_profile.memory_mib or 0) <= product.memory_mib * 1.001
            assert 0 < (gi_profile.multiprocessors or 0) <= product.multiprocessors


def test_a_quarter_of_an_a30_has_a_quarter_of_its_bandwidth_and_price() -> None:
    quarter = slice_hardware(products()["NVIDIA-A30"], "1g.6gb")
    assert quarter is not None
    assert quarter.bandwidth == 933e9 / 4
    assert billing_weight(quarter) == Decimal("0.25")


def test_shipped_prices_are_dated_distinct_and_of_known_products() -> None:
    shipped = prices.list_prices()
    assert {price.product for price in shipped} <= set(products())
    assert all(price.source and price.per_gpu_hour > 0 and price.from_ <= DAY for price in shipped)
    assert (
        str(price_book(prices.ASSUMED, shipped, DAY).hourly["NVIDIA-H100-80GB-HBM3"]) == "6.88 USD"
    )


def test_the_last_price_whose_day_has_come_holds() -> None:
    later = ENTRY.replace("2026-01-01", "2026-11-01").replace("1.55", "1.20")
    latest = ENTRY.replace("2026", "2027").replace("1.55", "0.90")
    parsed = parse_prices(f'{{"prices": [{ENTRY}, {later}, {latest}]}}')
    assert str(price_book("mine", parsed, DAY).hourly["NVIDIA-L40S"]) == "1.20 USD"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prices", "it is not JSON"),
        ("[]", "it has no list prices"),
        ('{"price": []}', "it has no list prices"),
        ('{"prices": []}', "it has no prices; add a price"),
        ('{"prices": [{"product": "NVIDIA-L40S", "from": "2026-01-01"}]}', "[0].perGPUHour: Field"),
        ('{"prices": [{"from": "2026-01-01", "perGPUHour": "1"}]}', "[0].product: Field required"),
        ('{"prices": [{"product": "NVIDIA-L40S", "perGPUHour": "1"}]}', "[0].from: Field required"),
        (
            f'{{"prices": [{ENTRY.replace("1.55", "-1")}]}}',
            "[0].perGPUHour: Value error",
        ),
        (f'{{"prices": [{ENTRY.replace("1.55", "dear")}]}}', "[0].perGPUHour"),
        (f'{{"prices": [{ENTRY.replace("L40S", "L40X")}]}}', "NVIDIA-L40X is unknown"),
        (f'{{"prices": [{ENTRY.replace("2026-01", "2027-01")}]}}', "no price before 2027-01-01"),
    ],
)
def test_a_refused_price_file_names_the_gap_and_how_to_fill_it(text: str, says: str) -> None:
    with pytest.raises(PriceError) as caught:
        price_book("mine", parse_prices(text), DAY)
    assert says in str(caught.value)


def test_prices_of_two_currencies_cannot_be_compared() -> None:
    other = '{"product": "NVIDIA-L4", "from": "2026-01-01", "perGPUHour": "1", "currency": "EUR"}'
    with pytest.raises(PriceError, match=r"2 currencies \(EUR, USD\)"):
        price_book("mine", parse_prices(f'{{"prices": [{ENTRY}, {other}]}}'), DAY)
