"""What explanations of several policies say."""

from tessera.api.meta import format_duration
from tessera.api.text import counted
from tessera.domain.observed.snapshot import MIN_BUSY_ACTIVITY
from tessera.domain.scaling.state import ScaleDecision, ServiceLoad
from tessera.domain.scaling.target import ScaleTarget


def load_numbers(
    target: ScaleTarget, load: ServiceLoad, _decision: ScaleDecision, /
) -> tuple[tuple[str, str], ...]:
    """Return the metrics with their targets, and the windows."""
    spec = target.spec
    missing = "no metrics of some replicas" if load.is_read else "unknown"
    places = "in all replicas" if load.queued is None else "in all replicas and at gateways"
    waiting = missing if load.waiting is None else f"{load.waiting:.0f} {places}"
    running = missing if load.running is None else f"{load.running:.0f} in all replicas"
    activity = missing if load.activity is None else f"{load.activity:.2f}"
    activity = f"{activity} (target {spec.activity.target})"
    up, down = spec.scale_up, spec.scale_down
    gateway = ("at the gateway", f"{load.queued} waiting, {load.gateway_requests} others")
    queue_target = f"target {target.queue_target:.3g} per replica{target.queue_source}"
    return (
        *((gateway,) if load.queued is not None else ()),
        ("waiting requests", f"{waiting} ({queue_target})"),
        ("running requests", running),
        ("activity", contradiction_clause(load) if load.idle_replicas else activity),
        (
            "scale up",
            f"after {format_duration(up.stabilization_window)}, at most {up.pods} in "
            f"{format_duration(up.period)}",
        ),
        ("scale down", f"after {format_duration(down.stabilization_window)}"),
    )


def contradiction_clause(load: ServiceLoad) -> str:
    """Return why the reported activity is not used."""
    idle = counted(load.idle_replicas, "replica")
    return (
        f"activity below {MIN_BUSY_ACTIVITY:.0%} on {idle} with running requests for 5 minutes is "
        "no reading: restart the DCGM exporter on the nodes"
    )


def floor_message(target: ScaleTarget) -> str:
    """Return what would let a service at its minimum have fewer replicas."""
    if target.spec.may_sleep:
        return "in use, the service keeps 1 replica"
    return (
        f"{target.bounds_source}minReplicas below {target.spec.min_replicas} would allow fewer "
        "replicas"
    )
