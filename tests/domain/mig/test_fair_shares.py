"""Where GPUs are too few, tenants share them by weight."""

from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand
from tessera.domain.mig.fleet import replicas_by_service
from tessera.domain.mig.plan import plan_layouts
from tests.mig_builders import A100, a_gpu, a_service
from tests.properties import examples

SLOTS = 7
SLICE = InstanceType(A100.name, "1g.10gb")
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 3.0}


@dataclass(frozen=True)
class Wish:
    tenant: str
    replicas: int
    beyond_minimum: int = 0
    running: int = 0


wishes = st.lists(
    st.builds(
        Wish,
        tenant=st.sampled_from(sorted(WEIGHTS)),
        replicas=st.integers(1, 12),
        beyond_minimum=st.integers(0, 4),
        running=st.integers(0, 3),
    ),
    min_size=2,
    max_size=5,
)


def services_of(wishes: list[Wish]) -> list[ServiceDemand]:
    return [
        replace(
            a_service(f"s{index}", float(wish.replicas + wish.beyond_minimum), {"1g.10gb": 1.0}),
            min_replicas=wish.replicas,
            max_types=1,
            tenant=wish.tenant,
            weight=WEIGHTS[wish.tenant],
            running_replicas=wish.running,
        )
        for index, wish in enumerate(wishes)
    ]


def replicas_of(services: list[ServiceDemand], gpus: int) -> dict[str, int]:
    offer = GpuOffer(gpu_model=A100, price=1, max_gpus=gpus)
    existing = [a_gpu(f"gpu-{index}") for index in range(gpus)]
    placed = replicas_by_service(plan_layouts(services, [offer], existing).gpus)
    return {service.name: placed.get(service.name, Counter())[SLICE] for service in services}


@settings(max_examples=examples(60), deadline=None)
@given(wishes, st.integers(1, 3))
def test_no_tenant_gets_more_than_its_share_while_another_lacks_its_own(
    wishes: list[Wish], gpus: int
) -> None:
    services = services_of([replace(wish, running=0) for wish in wishes])
    replicas = replicas_of(services, gpus)
    assert sum(replicas.values()) == min(
        SLOTS * gpus, sum(int(service.demand) for service in services)
    )
    given_to = Counter[str]()
    lacking = set[str]()
    for service in services:
        given_to[service.tenant] += replicas[service.name]
        if replicas[service.name] < service.demand:
            lacking.add(service.tenant)
    for tenant in lacking:
        own = (given_to[tenant] + 1) / WEIGHTS[tenant]
        assert all((given_to[other] - 1) / WEIGHTS[other] <= own for other in given_to)


@settings(max_examples=examples(60), deadline=None)
@given(wishes, st.integers(1, 3))
def test_replicas_that_run_go_before_new_ones(wishes: list[Wish], gpus: int) -> None:
    services = services_of(wishes)
    running = {
        service.name: min(service.running_replicas, int(service.demand)) for service in services
    }
    replicas = replicas_of(services, gpus)
    if sum(running.values()) <= SLOTS * gpus:
        assert all(replicas[name] >= count for name, count in running.items())
    else:
        assert all(replicas[name] <= count for name, count in running.items())


def test_within_a_tenant_the_class_decides_and_then_the_minimum() -> None:
    services = [
        replace(a_service("batch", 6, {"1g.10gb": 1.0}, 6), class_rank=2),
        replace(a_service("chat", 5, {"1g.10gb": 1.0}, 2), class_rank=0),
        replace(a_service("code", 4, {"1g.10gb": 1.0}, 3), class_rank=0),
    ]
    assert replicas_of(services, 1) == {"batch": 2, "chat": 2, "code": 3}
