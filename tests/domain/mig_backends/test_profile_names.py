"""Profiles that a driver calls otherwise than the tables: 3g.39gb of R535 on an A100-80GB."""

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from tessera.domain.hardware.device import product_slices
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.hardware.gpu_layouts import SlicePlacement
from tessera.domain.hardware.pools import discover, profile_of, weight_of
from tessera.domain.mig_backends.discovery import mig_nodes
from tessera.domain.mig_backends.usage import slice_usages
from tests.builders import A100, a_node, a_pod, a_pool

ODD = "nvidia.com/mig-3g.39gb"


@pytest.mark.parametrize("mig", [None, {"mode": "Auto"}])
@pytest.mark.parametrize(
    ("slices", "resource", "replicas"),
    [
        ({"3g.39gb": 2}, ODD, 2),
        ({"3g.39gb": 2, "3g.40gb": 0}, ODD, 2),
        ({"3g.39gb": 1, "3g.40gb": 3}, "nvidia.com/mig-3g.40gb", 3),
    ],
)
def test_pods_ask_for_a_slice_by_the_name_that_most_of_them_have(
    slices: dict[str, int], resource: str, replicas: int, mig: dict[str, str] | None
) -> None:
    fields: dict[str, Any] = {} if mig is None else {"mig": mig}
    (view,) = discover(
        [a_pool(**fields)], [a_node(slices=slices, partitioned=2)], date(2026, 11, 20)
    )
    (offer,) = [candidate for candidate in view.offers if candidate.hardware.profile == "3g.40gb"]
    assert (offer.hardware.resource, offer.replicas) == (resource, replicas)
    assert not offer.needs_repartition


def test_a_slice_that_does_not_exist_any_more_is_planned_by_its_earlier_name() -> None:
    node = a_node(slices={"3g.39gb": 0, "7g.80gb": 1})
    (view,) = discover([a_pool(mig={"mode": "Auto"})], [node], date(2026, 11, 20))
    (offer,) = [candidate for candidate in view.offers if candidate.hardware.profile == "3g.40gb"]
    assert (offer.hardware.resource, offer.needs_repartition) == (ODD, True)


def test_it_costs_the_same() -> None:
    assert weight_of(A100, ODD) == weight_of(A100, "nvidia.com/mig-3g.40gb") > 0


def test_nodes_that_are_away_have_no_say_in_the_name() -> None:
    away = a_node(name="n0", slices={"3g.39gb": 5}, ready=False)
    present = a_node(name="n1", slices={"3g.40gb": 4})
    (view,) = discover([a_pool()], [away, present], date(2026, 11, 20))
    (offer,) = view.offers
    assert (offer.hardware.resource, offer.replicas) == ("nvidia.com/mig-3g.40gb", 4)


def test_it_is_billed_by_the_usual_name() -> None:
    assert profile_of(A100, ODD) == "3g.40gb"
    assert profile_of(A100, "nvidia.com/mig-9g.90gb") == "9g.90gb"


def test_every_slice_of_a_product_is_listed_once() -> None:
    for product in products().values():
        names = [hardware.name for hardware in product_slices(product)]
        assert len(set(names)) == len(names), product.product


def test_its_pods_sit_on_it() -> None:
    node = a_node(slices={"3g.39gb": 1})
    (view,) = discover([a_pool()], [node], date(2026, 11, 20))
    pod = replace(a_pod(), node=node.name, devices={ODD: 1})
    (usage,) = slice_usages(mig_nodes(view, [node], ()), [pod])
    assert (usage.placement, usage.holders) == (SlicePlacement(0, "3g.40gb"), (pod.ref,))
