"""The mosaic as JSON."""

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

from tessera.cli.cluster import Json
from tessera.cli.mosaic.pool_layouts import PoolSnapshot, planned_slices
from tessera.domain.mig.fleet import FleetSlice
from tessera.domain.mig_backends.usage import SliceUsage


def pool_json(pool: PoolSnapshot) -> Json:
    """Return a pool with all its GPUs in MIG mode as JSON."""
    price, usage, plan = pool.view.price, pool.usage, pool.pending_plan
    gpu_hour_price = price.per_gpu_hour if price is not None else None
    planned = planned_slices(pool, plan) if plan is not None else {}
    slices_by_gpu: dict[tuple[str, int], list[SliceUsage]] = defaultdict(list)
    for mig_slice in pool.slices:
        slices_by_gpu[mig_slice.node, mig_slice.gpu].append(mig_slice)
    return {
        "name": pool.name,
        "reason": pool.layout_condition.reason if pool.layout_condition is not None else None,
        "placementsKnown": pool.placements_known,
        "currency": price.currency if price is not None else None,
        "perGPUHour": _amount(Decimal(1), gpu_hour_price),
        "idlePerHour": _amount(usage.idle, gpu_hour_price),
        "strandedPerHour": _amount(usage.stranded, gpu_hour_price),
        "plan": plan.name if plan is not None else None,
        "proposed": plan is not None and plan is pool.status.proposed,
        "gpus": [
            {
                "node": mig_node.name,
                "gpu": mig_gpu.index,
                "uuid": mig_gpu.uuid or None,
                "gpuModel": mig_node.gpu_model.name,
                "fault": mig_gpu.fault,
                "slices": [
                    _slice_json(pool, mig_slice, gpu_hour_price, start_known=mig_node.reports_pods)
                    for mig_slice in slices_by_gpu[mig_node.name, mig_gpu.index]
                ],
                "after": _planned_json(
                    planned[mig_node.name, mig_gpu.index], starts_known=mig_node.reports_pods
                )
                if planned
                else None,
            }
            for mig_node in pool.nodes
            for mig_gpu in mig_node.gpus
        ],
    }


def _planned_json(slices: Sequence[FleetSlice], *, starts_known: bool) -> list[Json]:
    return [
        {
            "profile": mig_slice.profile,
            "start": mig_slice.start if starts_known else None,
            "service": mig_slice.service,
        }
        for mig_slice in slices
    ]


def _slice_json(
    pool: PoolSnapshot, mig_slice: SliceUsage, gpu_hour_price: Decimal | None, *, start_known: bool
) -> Json:
    return {
        "profile": mig_slice.placement.profile,
        "start": mig_slice.placement.start if start_known else None,
        "state": mig_slice.state,
        "service": pool.owner_of(mig_slice.holders[0]) if mig_slice.holders else None,
        "pods": [str(pod) for pod in mig_slice.holders],
        "activity": pool.slice_load(mig_slice),
        "perHour": _amount(mig_slice.share, gpu_hour_price),
    }


def _amount(part: Decimal, gpu_hour_price: Decimal | None) -> str | None:
    return None if gpu_hour_price is None else format(round(part * gpu_hour_price, 4), "f")
