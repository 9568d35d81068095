"""The mosaic as JSON."""

from decimal import Decimal

from tessera.cli.cluster import Json
from tessera.cli.pool_layouts import (
    PoolSlice,
    PoolSnapshot,
    current_slices,
    planned_slices,
)
from tessera.domain.mig_backends.nodes import MigNode
from tessera.domain.mig_backends.usage import share


def pool_json(pool: PoolSnapshot) -> Json:
    """Return a pool with all its GPUs in MIG mode as JSON."""
    usage, plan, condition = pool.usage, pool.pending_plan, pool.layout_condition
    slices = current_slices(pool)
    planned = planned_slices(pool, plan) if plan is not None else {}
    return {
        "name": pool.name,
        "reason": condition.reason if condition is not None else None,
        "placementsKnown": pool.placements_known,
        "currency": pool.currency,
        "perGPUHour": _amount(pool, Decimal(1)),
        "idlePerHour": _amount(pool, usage.idle),
        "strandedPerHour": _amount(pool, usage.stranded),
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
                    _slice_json(pool, mig_node, pool_slice)
                    for pool_slice in slices.get((mig_node.name, mig_gpu.index), ())
                ],
                "after": [
                    _placement_json(mig_node, pool_slice) | {"service": pool_slice.service}
                    for pool_slice in planned[mig_node.name, mig_gpu.index]
                ]
                if planned
                else None,
            }
            for mig_node in pool.nodes
            for mig_gpu in mig_node.gpus
        ],
    }


def _placement_json(mig_node: MigNode, pool_slice: PoolSlice) -> Json:
    start, profile = pool_slice.placement
    return {"profile": profile, "start": start if mig_node.reports_pods else None}


def _slice_json(pool: PoolSnapshot, mig_node: MigNode, pool_slice: PoolSlice) -> Json:
    return _placement_json(mig_node, pool_slice) | {
        "state": pool_slice.state,
        "service": pool_slice.service,
        "pods": [str(pod) for pod in pool_slice.pods],
        "activity": pool_slice.activity,
        "perHour": _amount(pool, share(mig_node.gpu_model, pool_slice.placement.profile)),
    }


def _amount(pool: PoolSnapshot, gpus: Decimal) -> str | None:
    price = pool.hourly_price(gpus)
    return None if price is None else format(round(price, 4), "f")
