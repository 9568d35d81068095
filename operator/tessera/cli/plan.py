"""`tessera plan`: how the GPUs of the pools shall be cut, or those of a demand."""

import argparse
import asyncio
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby

from tessera.api.mig import MigPlan, Unit
from tessera.cli import plan_demand
from tessera.cli.cluster import Json, reach
from tessera.cli.errors import CommandError
from tessera.cli.fleet import Fleet, fleet_of
from tessera.cli.layouts_seen import Change, SeenPool, changes, layouts_seen
from tessera.cli.text import age, indented, moment, table
from tessera.cli.told import Told
from tessera.domain.mig.layouts import Spot
from tessera.domain.repartition.facts import APPROVAL

UNMET = plan_demand.UNMET
"""The exit code when somebody is left out."""
_DEMAND = ("demand", "throughput", "gpu")
_OTHERS = ("current", "moves_per_gpu", "svg")


def run(arguments: argparse.Namespace) -> Told:
    """The plans, and 3 when somebody is left out."""
    given = [name for name in (*_DEMAND, *_OTHERS) if getattr(arguments, name) is not None]
    if not given:
        return asyncio.run(_run(arguments))
    if arguments.pool is not None:
        raise CommandError(f"POOL is for the cluster and --{_option(given[0])} for none: give one")
    if lost := [f"--{name}" for name in _DEMAND if name not in given]:
        raise CommandError(
            f"--{_option(given[0])} is without a cluster and needs {', '.join(lost)}"
        )
    return plan_demand.run(arguments)


def _option(name: str) -> str:
    return name.replace("_", "-")


async def _run(arguments: argparse.Namespace) -> Told:
    async with reach(arguments) as reader:
        fleet = await fleet_of(reader, None)
    return told(fleet, arguments.pool, arguments.output)


def told(fleet: Fleet, name: str | None, form: str) -> Told:
    """Every pool that has layouts planned, or the one of this name."""
    seen = layouts_seen(fleet, name)
    found = [pool for pool in seen if pool.mig is not None]
    if not found:
        raise CommandError(_unmanaged(seen))
    code = UNMET if any(plan.unmet for pool in found for _, plan in _plans(pool)) else 0
    if form == "json":
        fields = [_fields(pool) for pool in found]
        return Told(
            json.dumps({"pools": fields, "notes": list(fleet.unread)}, indent=2) + "\n", code
        )
    lines = [f"Note: {note}" for note in fleet.unread]
    for pool in found:
        lines += [*([""] if lines else []), *_lines(pool, fleet.at)]
    return Told("\n".join(lines) + "\n", code)


def _unmanaged(seen: Sequence[SeenPool]) -> str:
    if not seen:
        return "there is no AcceleratorPool: describe the GPU nodes first (examples/00-pools.yaml)"
    which = f"pool {seen[0].name} does not say" if len(seen) == 1 else "no AcceleratorPool says"
    return (
        f"{which} how its GPUs are to be cut. To see a plan that is not carried out before you "
        f"approve it: kubectl patch acceleratorpool {seen[0].name} --type=merge "
        '-p \'{"spec":{"mig":{"mode":"propose"}}}\''
    )


def _plans(pool: SeenPool) -> Iterator[tuple[str, MigPlan]]:
    if pool.status.target is not None:
        yield "target", pool.status.target
    if pool.status.proposed is not None:
        yield "proposed", pool.status.proposed


def approval(pool: SeenPool) -> str | None:
    """The command that lets the proposed plan be carried out, where it waits for one."""
    proposed = pool.status.proposed
    if proposed is None or pool.begins is not None:
        return None
    return f"kubectl annotate acceleratorpool {pool.name} {APPROVAL}={proposed.name} --overwrite"


def state(pool: SeenPool) -> str:
    """How the pool is laid out, in a line."""
    condition = pool.laid_out
    if condition is None:
        return f"{pool.name}: the operator has not looked at its layouts yet"
    return f"{pool.name}: {condition.reason}: {condition.message}"


def _lines(pool: SeenPool, at: datetime) -> Iterator[str]:
    yield state(pool)
    if pool.mig is not None:
        yield f"  mode {pool.mig.mode}, backend {pool.mig.backend}"
    for ground in pool.grounds:
        if ground.disagrees is not None:
            yield f"  node {ground.name} is left alone: {ground.disagrees}"
    for kind, plan in _plans(pool):
        yield from indented(_plan(pool, kind, plan), "  ")
    if pool.status.units:
        yield "  Being cut anew now:"
        yield from (f"    {_unit(unit, at)}" for unit in pool.status.units)
    if pool.begins is not None:
        work = ", once the GPUs in work are done" if pool.status.units else ""
        yield (
            "  The proposed plan serves nobody better, it only saves: it is taken at "
            f"{moment(pool.begins)} UTC if it still is the answer{work}."
        )
    if command := approval(pool):
        yield from (
            "  Nothing of the proposed plan is done before you approve it:",
            f"    {command}",
        )


def _plan(pool: SeenPool, kind: str, plan: MigPlan) -> Iterator[str]:
    currency = pool.view.price.currency if pool.view.price else ""
    saved = plan.per_hour_before - plan.per_hour_after
    word = "less" if saved >= 0 else "more"
    what = "Proposed plan" if kind == "proposed" else "Plan"
    yield f"{what} {plan.name} of {moment(plan.at)} UTC:"
    yield (
        f"  {plan.gpus_before} -> {plan.gpus_after} GPUs in use, {plan.per_hour_before:.2f} -> "
        f"{plan.per_hour_after:.2f} {currency} an hour ({abs(saved):.2f} {word})"
    )
    yield (
        f"  no plan that serves the same can cost less than {plan.bound:.2f} {currency} an hour "
        f"(gap {plan.gap * 100:.1f} %); {plan.moves} replicas move"
    )
    for name in plan.unmet:
        yield f"  {name} gets less than it needs: the pool has too few GPUs"
    if plan.services:
        rows = [
            [one.service, f"{one.replicas}x {one.profile}", one.was or "-"] for one in plan.services
        ]
        yield from indented(table(("SERVICE", "SLICES", "WAS"), rows), "  ")
    yield from (f"  why {one.service}: {one.why}" for one in plan.services if one.why)
    found = changes(pool, plan)
    if not found:
        yield "  Every GPU is cut so already."
    yield from indented(_changed(pool, found), "  ")


def _changed(pool: SeenPool, found: Sequence[Change]) -> Iterator[str]:
    if not found:
        return
    done, total = pool.status.done, pool.status.total
    progress = f", {done} of {total} are as planned" if total else ""
    at_once = pool.mig.max_concurrent if pool.mig is not None else 1
    yield (
        f"{len(found)} GPUs change{progress}; {at_once} nodes at once, in this order as far as "
        "room allows:"
    )
    for number, (node, group) in enumerate(groupby(_ordered(pool, found), key=_node), start=1):
        yield f"  {number}. {node}"
        for change in group:
            before, after = change.told
            yield f"     GPU {change.gpu}: {before} -> {after}"
            if change.leaving:
                yield f"       leaving: {', '.join(_leaver(pool, change))}"


def _ordered(pool: SeenPool, found: Sequence[Change]) -> Sequence[Change]:
    """By node as a rollout prefers them: what is begun, then where the fewest have to leave."""
    begun = {unit.node for unit in pool.status.units}
    leaving: dict[str, set[object]] = {}
    for change in found:
        leaving.setdefault(change.node, set()).update(change.leaving)
    return sorted(
        found,
        key=lambda one: (one.node not in begun, len(leaving[one.node]), one.node, one.gpu),
    )


def _node(change: Change) -> str:
    return change.node


def _leaver(pool: SeenPool, change: Change) -> Iterator[str]:
    for pod in change.leaving:
        whose = pool.whose(pod)
        yield f"{pod.name} of {whose}" if pod in pool.services else f"{whose} (not of Tessera)"


def _unit(unit: Unit, at: datetime) -> str:
    gpus = ", ".join(map(str, unit.gpus))
    attempt = f", attempt {unit.attempt}" if unit.attempt > 1 else ""
    waits = f": {unit.message}" if unit.message else ""
    return f"{unit.node} GPU {gpus}: {unit.phase} since {age(at - unit.since)}{attempt}{waits}"


def _fields(pool: SeenPool) -> Json:
    mig, condition = pool.mig, pool.laid_out
    return {
        "name": pool.name,
        "mode": mig.mode if mig is not None else None,
        "backend": mig.backend if mig is not None else None,
        "currency": pool.view.price.currency if pool.view.price else None,
        "laidOut": None
        if condition is None
        else {
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
        },
        "target": _plan_fields(pool, pool.status.target),
        "proposed": _plan_fields(pool, pool.status.proposed),
        "units": [unit.model_dump(mode="json", by_alias=True) for unit in pool.status.units],
        "done": pool.status.done,
        "total": pool.status.total,
        "approve": approval(pool),
        "begins": pool.begins.isoformat() if pool.begins is not None else None,
        "leftAlone": {
            ground.name: ground.disagrees for ground in pool.grounds if ground.disagrees is not None
        },
    }


def _plan_fields(pool: SeenPool, plan: MigPlan | None) -> Json | None:
    if plan is None:
        return None
    fields: Json = plan.model_dump(mode="json", by_alias=True, exclude={"nodes"})
    fields["changes"] = [
        {
            "node": one.node,
            "gpu": one.gpu,
            "before": [_spot(spot) for spot in one.before],
            "after": [_spot(spot) for spot in one.after],
            "leaving": [str(pod) for pod in one.leaving],
        }
        for one in _ordered(pool, changes(pool, plan))
    ]
    return fields


def _spot(spot: Spot) -> Json:
    return {"profile": spot.profile, "start": spot.start}
