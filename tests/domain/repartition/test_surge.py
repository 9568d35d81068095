"""How many extra replicas of its previous profile a service gets while slices are created."""

from tessera.api.ref import Ref
from tessera.domain.repartition.actions import PoolService, Replica
from tessera.domain.repartition.capacity import PoolCapacity

CHAT = Ref("team", "chat")


def a_replica(name: str, profile: str) -> Replica:
    return Replica(
        pod=Ref("team", name),
        uid=name,
        node="n0",
        profile=profile,
        ready=True,
        draining=False,
        drained=False,
    )


def test_replicas_of_the_previous_profile_are_replaced_one_for_one() -> None:
    # A whole GPU holds thousands of times the context of its smallest slice.
    small = [a_replica(f"small-{number}", "1g.10gb") for number in range(4)]
    service = PoolService(
        ref=CHAT,
        replicas=(*small, a_replica("large", "7g.80gb")),
        min_capacity=4.0,
        capacity={"7g.80gb": 1.0, "1g.10gb": 0.0003},
        planned={"7g.80gb": 4},
        previous_profile="1g.10gb",
    )
    capacity = PoolCapacity((), (service,), {})
    displaced = {replica.pod for replica in small[:2]}
    assert capacity.surge_replicas(displaced, {}) == {CHAT: 2}
