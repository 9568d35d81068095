"""The status of a pool, with the actions for its layouts."""

from datetime import datetime

from tessera.api.accelerator_pool import AcceleratorPoolStatus, SliceCount
from tessera.api.pool_reasons import LayoutReady, PoolAccepted
from tessera.api.reasons import StatusReason, StatusVerdict
from tessera.domain.hardware.pools import PoolView, format_devices
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.status.conditions import conditions, with_accepted
from tessera.domain.steps import Step, planner_error

_UNMANAGED = StatusVerdict(
    LayoutReady.NOT_MANAGED, "spec.mig is not set: existing slices are used, 0 are planned"
)


def _pool_status(view: PoolView, orders: PoolActions | None, at: datetime) -> AcceleratorPoolStatus:
    """Return the status of a pool, with the actions for its layouts if Tessera plans them."""
    pool = view.pool
    verdicts: dict[str, StatusVerdict[StatusReason]] = {
        "Accepted": view.accepted,
        "Discovered": view.discovered,
        "LayoutReady": orders.verdict if orders is not None else _UNMANAGED,
    }
    if view.nodes_provisioned is not None:
        verdicts["NodesProvisioned"] = view.nodes_provisioned
    return AcceleratorPoolStatus(
        observed_generation=pool.generation,
        conditions=conditions(verdicts, pool, at),
        product=view.product,
        nodes=view.nodes,
        ready_nodes=view.ready_nodes,
        gpus=view.gpus,
        slices=tuple(SliceCount(profile=name, count=count) for name, count in view.slices),
        allocatable=format_devices(view.gpus, view.slices),
        per_gpu_hour=view.price.per_gpu_hour if view.price else None,
        currency=view.price.currency if view.price else None,
        mig=orders.status if orders is not None else None,
        provisioning=view.provisioning,
        spot=view.spot,
    )


def _set_aside_pool(
    error: Exception, view: PoolView, _: PoolActions | None, at: datetime
) -> AcceleratorPoolStatus:
    pool = view.pool
    message = planner_error(error, "acceleratorpool", pool.name)
    update = with_accepted(pool, PoolAccepted.PLANNER_ERROR, message, at)
    return pool.status.model_copy(update=update)


pool_status = Step(_pool_status, _set_aside_pool)
