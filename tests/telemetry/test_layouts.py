"""The metrics of layouts."""

from datetime import timedelta
from decimal import Decimal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tessera.api.accelerator_pool import AcceleratorPoolSpec, Price
from tessera.api.mig import Mig, MigPlan, MigStatus, Phase, Unit
from tessera.api.pool_reasons import Discovered, LayoutReady, PoolAccepted
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.hardware.pools import PoolView
from tessera.domain.mig_backends.nodes import GpuInstance, MigGpu, MigNode
from tessera.domain.observed.snapshot import Pool
from tessera.domain.repartition.actions import PoolActions
from tessera.telemetry.layouts import (
    PHASES,
    PoolLayoutState,
    RepartitionOutcome,
    repartition_outcomes,
)
from tessera.telemetry.telemetry import Telemetry
from tests.builders import NOW
from tests.mig_builders import A100, a_gpu

CHAT = Ref("team-a", "chat-0")


def a_unit(node: str = "n", phase: Phase = "Draining", attempt: int = 1) -> Unit:
    return Unit(node=node, gpus=(0,), phase=phase, since=NOW, attempt=attempt)


def a_pool_layout(
    *units: Unit,
    reason: LayoutReady = LayoutReady.REPARTITIONING,
    displaced: frozenset[Ref] = frozenset(),
) -> PoolLayoutState:
    """Build a pool of two GPUs at 2 USD: 7x 1g.10gb with one in use, and 3g.40gb."""
    price = Price.model_validate({"from": "2026-01-01", "perGPUHour": "2"})
    spec = AcceleratorPoolSpec(node_selector={"a": "b"}, prices=(price,), mig=Mig(backend="Agent"))
    layouts = (a_gpu("0", *(f"1g.10gb@{at}" for at in range(7))), a_gpu("1", "3g.40gb@4"))
    gpus = [
        MigGpu(
            index=index,
            instances=tuple(GpuInstance(placement=gpu_slice.placement) for gpu_slice in gpu.slices),
        )
        for index, gpu in enumerate(layouts)
    ]
    occupied = GpuInstance(placement=gpus[0].instances[0].placement, holders=(CHAT,))
    first = MigGpu(index=0, instances=(occupied, *gpus[0].instances[1:]))
    plan = MigPlan(
        name="p",
        at=NOW,
        gpus_before=2,
        gpus_after=2,
        per_hour_before=Decimal(4),
        per_hour_after=Decimal(4),
        lower_bound=Decimal(4),
        gap=Decimal("0.025"),
    )
    return PoolLayoutState(
        view=PoolView(
            pool=Pool(ref=Ref("", "a100"), generation=1, spec=spec),
            accepted=StatusVerdict(PoolAccepted.VALID, ""),
            discovered=StatusVerdict(Discovered.DEVICES_FOUND, ""),
            price=price,
        ),
        nodes=(
            MigNode(name="n", gpu_model=A100, ready=True, gpus=(first, gpus[1]), reports_pods=True),
        ),
        actions=PoolActions(
            verdict=StatusVerdict(reason, ""),
            status=MigStatus(target=plan, units=units),
            displaced=displaced,
        ),
    )


def scrape(telemetry: Telemetry) -> dict[str, dict[tuple[str, ...], float]]:
    """Return values by metric and by labels, except that of the pool."""
    series: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(telemetry.exposition().decode()):
        for sample in family.samples:
            labels = sample.labels
            if labels.pop("pool", "") == "a100":
                series.setdefault(sample.name, {})[tuple(labels.values())] = sample.value
    return series


def test_slices_what_is_stranded_the_gap_and_the_units_are_exported() -> None:
    telemetry = Telemetry()
    telemetry.record_layouts([a_pool_layout(a_unit(), displaced=frozenset({CHAT}))], ())
    series = scrape(telemetry)
    assert series["tessera_slices"] == {
        ("1g.10gb", "displaced"): 1,
        ("1g.10gb", "idle"): 6,
        ("3g.40gb", "idle"): 1,
    }
    assert series["tessera_stranded_cost_per_hour"][("USD",)] == pytest.approx(4 - 1.875 - 0.928571)
    assert series["tessera_idle_slices_cost_per_hour"][("USD",)] == pytest.approx(
        1.607143 + 0.928571
    )
    assert series["tessera_layout_gap_ratio"] == {(): 0.025}
    units = series["tessera_repartition_units"]
    assert units == {(phase,): float(phase == "Draining") for phase in PHASES}
    assert series["tessera_pool_layout_ready"] == {("Repartitioning",): 0}


def test_a_pool_that_is_as_planned_is_1_and_a_deleted_one_has_no_series() -> None:
    telemetry = Telemetry()
    telemetry.record_layouts([a_pool_layout(reason=LayoutReady.AS_PLANNED)], ())
    assert scrape(telemetry)["tessera_pool_layout_ready"] == {("AsPlanned",): 1}
    telemetry.record_layouts([], ())
    assert scrape(telemetry) == {}


def test_repartitions_are_counted_once_when_they_end() -> None:
    telemetry = Telemetry()
    applying = a_unit(phase="Partitioning")
    cycles = [
        (a_unit(), a_unit("m")),
        (applying, a_unit("m")),
        (a_unit(phase="Partitioning", attempt=2),),
        (a_unit(phase="Verifying", attempt=2),),
        (),
        (),
    ]
    for units in cycles:
        telemetry.record_layouts([a_pool_layout(*units)], ())
    assert scrape(telemetry)["tessera_repartitions_total"] == {
        ("Agent", "succeeded"): 1,
        ("Agent", "failed"): 1,
        ("Agent", "canceled"): 1,
    }


def test_a_repartition_that_is_canceled_at_its_deadline_is_counted_once() -> None:
    canceled = a_unit(phase="Canceled")
    assert repartition_outcomes((a_unit(),), (canceled,)) == {RepartitionOutcome.CANCELED: 1}
    assert repartition_outcomes((canceled,), (canceled,)) == {}
    assert repartition_outcomes((canceled,), ()) == {}


def test_a_unit_that_continues_has_no_outcome() -> None:
    later = a_unit().model_copy(update={"since": NOW + timedelta(seconds=5)})
    assert repartition_outcomes((a_unit(),), (later,)) == {}
    assert repartition_outcomes((), (a_unit(),)) == {}
    assert repartition_outcomes((a_unit(phase="Verifying"),), ()) == {
        RepartitionOutcome.SUCCEEDED: 1
    }
