"""What status, Events and `tessera top` say of a service with several variants."""

from decimal import Decimal
from itertools import pairwise

from tessera.api.meta import find_condition
from tessera.api.reasons import VariantReason
from tessera.api.service_status import InferenceServiceStatus
from tessera.cli.top.rows import service_rows
from tessera.domain.service.replica_count import history_from_status
from tessera.domain.status.events import event_notes
from tests.builders import a_node
from tests.domain.service.test_variants import fleet, resized
from tests.domain.variant_fleet import VariantFleet


def statuses(cluster: VariantFleet, seconds: int) -> list[InferenceServiceStatus]:
    """Return the statuses of so long."""
    written = [cluster.service.status]
    for _ in range(seconds // 5):
        cluster.cycle()
        written.append(cluster.service.status)
    return written


def test_each_change_of_a_variant_is_an_event_with_its_reason_and_price() -> None:
    cluster = fleet(2, reserved=2, burst=4)
    written = statuses(cluster, 90)
    resized(cluster, 3)
    written += statuses(cluster, 90)
    cluster.nodes[0] = a_node("reserved", whole=3)
    written += statuses(cluster, 300)
    notes = [
        note
        for old, new in pairwise(written)
        for note in event_notes(old, new)
        if note.action == "Variant"
    ]
    assert [(note.reason, note.message.split(":")[0]) for note in notes] == [
        ("CheaperFull", "burst-1gpu from 0 to 1 replica"),
        ("MovedToCheaper", "reserved-1gpu from 2 to 3 replicas"),
        ("Surplus", "burst-1gpu from 1 to 0 replicas"),
    ]
    prices = ["3.00 USD per hour", "1.00 USD per hour", "3.00 USD per hour"]
    assert all(price in note.message for note, price in zip(notes, prices, strict=True))


def test_a_change_stays_as_it_was_said_while_its_pods_come() -> None:
    cluster = fleet(2, reserved=2, burst=4)
    cluster.run(90)
    resized(cluster, 4)
    messages = {
        variant.message
        for status in statuses(cluster, 90)
        for variant in status.variants or ()
        if variant.name == "burst-1gpu"
    }
    assert len(messages) == 1


def test_a_variant_that_is_offered_again_is_not_said_to_be_gone() -> None:
    cluster = fleet(3, reserved=2, burst=4)
    cluster.run(90)
    assert cluster.counts() == {"reserved": 2, "burst": 1}
    pools, cluster.pools = cluster.pools, cluster.pools[:1]
    cluster.run(30)
    assert reasons(cluster)["burst-1gpu"] == VariantReason.NOT_OFFERED
    # What an operator that starts now reads refuses none of its replicas.
    assert "burst-1gpu" not in dict(history_from_status(cluster.service.status).counts)
    cluster.pools = pools
    cluster.run(30)
    assert cluster.counts() == {"reserved": 2, "burst": 1}
    assert reasons(cluster)["burst-1gpu"] != VariantReason.NOT_OFFERED


def reasons(cluster: VariantFleet) -> dict[str, VariantReason | None]:
    return {each.name: each.reason for each in cluster.service.status.variants or ()}


def test_tokens_cost_what_all_variants_cost_together() -> None:
    cluster = fleet(2, reserved=2, burst=4)
    cluster.run(90)
    alone = cluster.service.status.cost
    resized(cluster, 4)
    cluster.run(90)
    status = cluster.service.status
    assert alone is not None
    assert status.cost is not None
    assert (alone.per_hour, status.cost.per_hour) == (Decimal(2), Decimal(8))
    assert status.cost.per_million_tokens == Decimal("0.0527"), "twice 0.02635, once each"
    assert alone.per_million_tokens == Decimal("0.0264")
    assert status.cost.assumed_load.endswith("of 2 reserved-1gpu, 2 burst-1gpu")
    placed = find_condition(status.conditions, "Placed")
    assert placed is not None
    assert placed.message.startswith(
        "replicas on reserved-1gpu at 1.00 USD per hour, burst-1gpu at 3.00 USD per hour; "
    )


def test_top_has_each_variant_and_their_tokens_together() -> None:
    cluster = fleet(2, reserved=2, burst=2)
    cluster.nodes[1] = a_node("burst", whole=4, product="NVIDIA-H100-80GB-HBM3")
    cluster.run(90)
    (alone,) = service_rows(cluster.snapshot(), None, {}, None)
    assert alone.variants is None
    resized(cluster, 4)
    cluster.run(90)
    (row,) = service_rows(cluster.snapshot(), None, {}, None)
    reserved, burst = row.variants or ()
    assert (reserved.name, reserved.ready_replicas) == ("reserved-1gpu", 2)
    assert (burst.name, burst.tier, burst.ready_replicas) == ("burst-1gpu", "OnDemand", 2)
    variants = cluster.service.status.variants or ()
    rates = [variant.tokens_per_second for variant in variants]
    assert rates[1] > 2 * rates[0]
    assert row.predicted_tokens_per_second == 2 * rates[0] + 2 * rates[1]
