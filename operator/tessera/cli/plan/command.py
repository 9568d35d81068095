"""`tessera plan`: the planned MIG layouts of pools, or of a demand without a cluster."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from types import SimpleNamespace

from tessera.api.meta import format_duration
from tessera.api.mig import MigPlan, Unit
from tessera.api.text import counted
from tessera.cli.cluster import Json, Reader, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.fleet import FleetInputs, read_fleet
from tessera.cli.output import Output
from tessera.cli.plan import demand as plan_demand
from tessera.cli.pool_layouts import (
    GpuLayoutChange,
    PoolSnapshot,
    layout_changes,
    pool_snapshots,
)
from tessera.cli.text import format_age, format_time, indent_lines, table
from tessera.domain.hardware.gpu_layouts import Layout
from tessera.domain.mig.layout_changes import repartition_rank
from tessera.domain.observed.node_layout import APPROVAL

# The exit code when a service is not served completely.
UNMET = plan_demand.UNMET
_DEMAND_OPTIONS = ("demand", "throughput", "gpu")
_OTHER_OPTIONS = ("current", "moves_per_gpu", "svg")


def run(arguments: SimpleNamespace) -> Output:
    """Return the plans, with exit code 3 when a service is not served completely."""
    options = [
        name for name in (*_DEMAND_OPTIONS, *_OTHER_OPTIONS) if getattr(arguments, name) is not None
    ]
    if not options:
        return _plan_in_cluster(arguments)
    first_option = f"--{options[0].replace('_', '-')}"
    if arguments.pool is not None:
        raise CommandError(
            f"POOL plans in a cluster and {first_option} without one: give one of them"
        )
    if missing := [f"--{name}" for name in _DEMAND_OPTIONS if name not in options]:
        raise CommandError(f"{first_option} plans without a cluster and needs {', '.join(missing)}")
    return plan_demand.run(arguments)


@cluster_command
async def _plan_in_cluster(reader: Reader, arguments: SimpleNamespace) -> Output:
    return render_plans(await read_fleet(reader, None), arguments.pool, arguments.output)


def render_plans(fleet: FleetInputs, name: str | None, output_format: str) -> Output:
    """Return the plans of all pools with spec.mig, or of the named one.

    Raises CommandError if there is none.
    """
    pools = pool_snapshots(fleet, name)
    managed_pools = [pool for pool in pools if pool.mig is not None]
    if not managed_pools:
        raise CommandError(_unmanaged_message(pools))
    plans = [plan for pool in managed_pools for _, plan in _labeled_plans(pool)]
    return Output.of(
        output_format,
        _report_lines(fleet, managed_pools),
        lambda: {"pools": [*map(_pool_json, managed_pools)], "notes": list(fleet.read_errors)},
        exit_code=UNMET if any(plan.unmet for plan in plans) else 0,
    )


def _report_lines(fleet: FleetInputs, pools: Sequence[PoolSnapshot]) -> Iterator[str]:
    yield from (f"Note: {note}" for note in fleet.read_errors)
    for number, pool in enumerate(pools):
        if number or fleet.read_errors:
            yield ""
        yield from _pool_lines(pool, fleet.at)


def _unmanaged_message(pools: Sequence[PoolSnapshot]) -> str:
    if not pools:
        return "no AcceleratorPool exists; create one for the GPU nodes (examples/00-pools.yaml)"
    which = (
        f"AcceleratorPool/{pools[0].name} has no" if len(pools) == 1 else "no AcceleratorPool has"
    )
    return (
        f"{which} spec.mig. To get a plan that waits for your approval: "
        f"kubectl patch acceleratorpool {pools[0].name} --type=merge "
        '-p \'{"spec":{"mig":{"mode":"Propose"}}}\''
    )


def _labeled_plans(pool: PoolSnapshot) -> Iterator[tuple[str, MigPlan]]:
    if pool.status.target is not None:
        yield "target", pool.status.target
    if pool.status.proposed is not None:
        yield "proposed", pool.status.proposed


def approval_command(pool: PoolSnapshot) -> str | None:
    """Return the command that approves the proposed plan; None if no plan waits for approval."""
    proposed = pool.status.proposed
    if proposed is None or pool.adoption_time is not None:
        return None
    return f"kubectl annotate acceleratorpool {pool.name} {APPROVAL}={proposed.name} --overwrite"


def _pool_lines(pool: PoolSnapshot, at: datetime) -> Iterator[str]:
    yield pool.state_line
    if pool.mig is not None:
        yield f"  mode {pool.mig.mode}, backend {pool.mig.backend}"
    if pool.view.startable is not None:
        yield f"  {pool.view.startable.text}"
    for mig_node in pool.nodes:
        if mig_node.inconsistency is not None:
            yield f"  Node {mig_node.name} is skipped: {mig_node.inconsistency}"
    for label, plan in _labeled_plans(pool):
        yield from indent_lines(_plan_lines(pool, label, plan), "  ")
    if pool.status.units:
        yield "  Repartitioning now:"
        yield from (f"    {_unit_line(unit, at)}" for unit in pool.status.units)
    if pool.adoption_time is not None:
        units = ", after the current units are finished" if pool.status.units else ""
        yield (
            "  The proposed plan only reduces the cost: the best plan then is adopted at "
            f"{format_time(pool.adoption_time)} UTC if all plans until then save{units}."
        )
    if command := approval_command(pool):
        yield from ("  The proposed plan waits for your approval:", f"    {command}")


def _plan_lines(pool: PoolSnapshot, label: str, plan: MigPlan) -> Iterator[str]:
    currency = pool.currency or ""
    saved = plan.per_hour_before - plan.per_hour_after
    direction = "less" if saved >= 0 else "more"
    title = "Proposed plan" if label == "proposed" else "Plan"
    yield f"{title} {plan.name} of {format_time(plan.at)} UTC:"
    yield (
        f"  {plan.gpus_before} -> {counted(plan.gpus_after, 'GPU')} in use, "
        f"{plan.per_hour_before:.2f} -> {plan.per_hour_after:.2f} {currency} per hour "
        f"({abs(saved):.2f} {direction})"
    )
    yield (
        f"  lower bound {plan.lower_bound:.2f} {currency} per hour (gap {plan.gap * 100:.1f} %); "
        f"{counted(plan.moves, 'replica')} to move"
    )
    for name in plan.unmet:
        yield f"  {name} gets less than it needs: the pool has too few GPUs"
    if plan.services:
        rows = [
            [
                assignment.service,
                f"{assignment.replicas}x {assignment.profile}",
                assignment.previous_profile or "-",
            ]
            for assignment in plan.services
        ]
        yield from indent_lines(table(("SERVICE", "SLICES", "PREVIOUS"), rows), "  ")
    yield from (
        f"  {change.service} moves {counted(change.moves, 'replica')} and costs "
        f"{change.per_hour_before:.2f} -> {change.per_hour_after:.2f} {currency} per hour"
        for change in plan.changes
    )
    yield from (
        f"  reason for {assignment.service}: {assignment.message}"
        for assignment in plan.services
        if assignment.message
    )
    yield from indent_lines(_change_lines(pool, layout_changes(pool, plan)), "  ")


def _change_lines(pool: PoolSnapshot, gpu_changes: Sequence[GpuLayoutChange]) -> Iterator[str]:
    if not gpu_changes:
        yield "Every GPU has its planned layout."
        return
    done, total = pool.status.done, pool.status.total
    progress = f", {done} of {total} as planned" if total else ""
    max_concurrent = pool.mig.max_concurrent if pool.mig is not None else 1
    yield (
        f"{counted(len(gpu_changes), 'GPU')} to repartition{progress}; at most "
        f"{counted(max_concurrent, 'node')} at a time, in this order as capacity allows:"
    )
    for number, (node, group) in enumerate(
        groupby(_in_rollout_order(pool, gpu_changes), key=attrgetter("node")), start=1
    ):
        yield f"  {number}. {node}"
        for change in group:
            before, after = change.descriptions
            yield f"     GPU {change.gpu}: {before} -> {after}"
            if change.leaving_pods:
                yield f"       displaced: {', '.join(_leaving_pods(pool, change))}"


def _in_rollout_order(
    pool: PoolSnapshot, gpu_changes: Sequence[GpuLayoutChange]
) -> Sequence[GpuLayoutChange]:
    """Return the changes in the rollout's order: started nodes, then those with few evictions."""
    started_nodes = pool.status.busy_nodes
    pods_by_node: dict[str, set[object]] = {}
    for change in gpu_changes:
        pods_by_node.setdefault(change.node, set()).update(change.leaving_pods)
    return sorted(
        gpu_changes,
        key=lambda gpu_change: (
            gpu_change.node not in started_nodes,
            repartition_rank(len(pods_by_node[gpu_change.node]), gpu_change.node),
            gpu_change.gpu,
        ),
    )


def _leaving_pods(pool: PoolSnapshot, change: GpuLayoutChange) -> Iterator[str]:
    for pod in change.leaving_pods:
        owner = pool.owner_of(pod)
        managed = pod in pool.service_of_pod
        yield f"{pod.name} of {owner}" if managed else f"{owner} (not managed by Tessera)"


def _unit_line(unit: Unit, at: datetime) -> str:
    gpus = ", ".join(map(str, unit.gpus))
    attempt = f", attempt {unit.attempt}" if unit.attempt > 1 else ""
    waiting_for = f": {unit.message}" if unit.message else ""
    return (
        f"{unit.node} GPU {gpus}: {unit.phase} since "
        f"{format_age(at - unit.since)}{attempt}{waiting_for}"
    )


def _pool_json(pool: PoolSnapshot) -> Json:
    mig, condition, startable = pool.mig, pool.layout_condition, pool.view.startable
    new_nodes = (
        {
            "existing": startable.existing,
            "maxNodes": startable.max_nodes,
            "expectedStart": format_duration(startable.expected_start),
        }
        if startable is not None
        else None
    )
    return {
        "name": pool.name,
        "mode": mig.mode if mig is not None else None,
        "backend": mig.backend if mig is not None else None,
        "currency": pool.currency,
        "nodesOnDemand": new_nodes,
        "layoutReady": condition and condition.model_dump(include={"status", "reason", "message"}),
        "target": _plan_json(pool, pool.status.target),
        "proposed": _plan_json(pool, pool.status.proposed),
        "units": [unit.model_dump(mode="json", by_alias=True) for unit in pool.status.units],
        "done": pool.status.done,
        "total": pool.status.total,
        "approvalCommand": approval_command(pool),
        "adoptionTime": pool.adoption_time.isoformat() if pool.adoption_time is not None else None,
        "skippedNodes": {
            mig_node.name: mig_node.inconsistency
            for mig_node in pool.nodes
            if mig_node.inconsistency is not None
        },
    }


def _plan_json(pool: PoolSnapshot, plan: MigPlan | None) -> Json | None:
    if plan is None:
        return None
    fields: Json = plan.model_dump(mode="json", by_alias=True, exclude={"nodes"})
    fields["changes"] = [
        {
            "node": change.node,
            "gpu": change.gpu,
            "before": _layout_json(change.before),
            "after": _layout_json(change.after),
            "displacedPods": [str(pod) for pod in change.leaving_pods],
        }
        for change in _in_rollout_order(pool, layout_changes(pool, plan))
    ]
    return fields


def _layout_json(layout: Layout) -> list[Json]:
    return [{"profile": profile, "start": start} for start, profile in layout]
