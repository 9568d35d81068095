"""What a replica sustains follows how its prompts vary, and who is late behind a gateway."""

import itertools
from dataclasses import replace

import pytest

from tessera.domain.hardware.device import slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.sizing.scheduler_limits import Demand, SustainedLoad, sustained_load
from tessera.domain.sizing.sizing import ReplicaFit, size
from tests.builders import H100
from tests.domain.sizing.test_sizing import B8, demand

WANTED = demand(B8)


def sustained(
    variation: float, wanted: Demand = WANTED, profile: str | None = None, replicas: int = 1
) -> SustainedLoad:
    product = products()[H100]
    hardware = slice_hardware(product, profile) if profile else whole_gpu_hardware(product, 1)
    assert hardware is not None
    fit = size(wanted, hardware)
    assert isinstance(fit, ReplicaFit)
    return sustained_load(
        replace(wanted, prompt_variation=variation),
        fit.step,
        fit.memory.kv_tokens,
        fit.limits,
        replicas=replicas,
        servers=replicas,
    )


def test_long_requests_of_another_kind_cost_more_than_their_variation() -> None:
    steps = [sustained(each).tokens_per_second for each in (1.0, 1.5, 2.0, 2.5, 3.0)]
    losses = [1 - after / before for before, after in itertools.pairwise(steps)]
    assert losses[2] > 1.2 * losses[1] > 0
    assert sustained(20.0).tokens_per_second > 0


@pytest.mark.parametrize("replicas", [1, 2, 8])
def test_less_is_sustained_the_more_prompts_vary(replicas: int) -> None:
    rates = [sustained(each / 4, replicas=replicas).tokens_per_second for each in range(9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_replicas_behind_a_gateway_lose_less_by_it_than_one() -> None:
    losses = [
        1
        - sustained(1.0, replicas=each).tokens_per_second
        / sustained(0.0, replicas=each).tokens_per_second
        for each in (1, 2, 4)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 1.5 * losses[-1]


def test_where_more_than_a_twentieth_is_late_alone_no_rate_meets_the_slo() -> None:
    slow = replace(WANTED, ttft=WANTED.ttft / 5)
    equal, varied = sustained(0.0, slow, "3g.40gb"), sustained(1.0, slow, "3g.40gb")
    assert equal.meets_slo
    assert not varied.meets_slo
    # It is then what a full engine does.
    assert varied.tokens_per_second > equal.tokens_per_second
