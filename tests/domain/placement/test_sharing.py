"""Variants that may serve together without the gateway."""

from dataclasses import replace
from functools import cache

import pytest

from tessera.domain.hardware.pools import discover
from tessera.domain.perf.sources import OFF_TOLERANCE
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.placement import place
from tessera.domain.placement.sharing import may_share_service
from tests.builders import NOW, a_node, a_pool, a_spec


@cache
def any_choice() -> HardwareChoice:
    views = discover([a_pool()], [a_node(whole=8)], NOW.date())
    choice = place(
        a_spec(), views, namespace="team-a", current=None, min_replicas=1, used_devices={}
    ).choice
    assert choice is not None
    return choice


def a_choice(pool: str, rate: float) -> HardwareChoice:
    choice = any_choice()
    limits = replace(choice.fit.limits, tokens_per_second=rate)
    return replace(
        choice, offer=replace(choice.offer, pool=pool), fit=replace(choice.fit, limits=limits)
    )


@pytest.mark.parametrize("rate", [1000 / (1 + OFF_TOLERANCE), 1000, 1000 * (1 + OFF_TOLERANCE)])
def test_variants_of_about_equal_speed_share_a_service(rate: float) -> None:
    choices = a_choice("a", 1000), a_choice("b", rate)
    assert may_share_service(choices) is None
    assert may_share_service(choices[:1]) is None


def test_of_variants_that_differ_the_message_has_the_fastest_and_the_slowest() -> None:
    slow, medium, fast = (
        a_choice(name, rate) for name, rate in (("a", 800), ("b", 900), ("c", 1000))
    )
    assert may_share_service((slow, medium)) is None
    assert may_share_service((medium, fast)) is None
    for order in ((slow, medium, fast), (fast, medium, slow)):
        message = may_share_service(order)
        assert message is not None
        assert f"{fast.variant} carries 1000 tokens" in message
        assert f"{slow.variant} 800" in message
