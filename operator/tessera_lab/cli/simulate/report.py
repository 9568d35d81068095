"""Results as a table, JSON or CSV."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from pydantic.alias_generators import to_camel

from tessera.api.text import counted
from tessera.cli.output import Output
from tessera.cli.text import cell, table
from tessera.domain.hardware.power import power_range
from tessera_lab.cli.simulate.run import PolicyResult
from tessera_lab.cli.simulate.scenario import Scenario
from tessera_lab.fleet.energy import FleetEnergy
from tessera_lab.fleet.policies.product import OURS

_HOUR = 3600.0
# Hours of a window on average.
_WINDOW_HOURS = {"Hour": 1.0, "Day": 24.0, "Week": 168.0, "Month": 730.5}


def output(scenario: Scenario, results: Sequence[PolicyResult], form: str) -> Output:
    """Return the results as table, JSON or CSV."""
    return Output.of(
        form,
        _lines(scenario, results),
        partial(_body, scenario, results),
        partial(_csv, results),
    )


def _lines(scenario: Scenario, results: Sequence[PolicyResult]) -> Iterator[str]:
    """Return the policies side by side, with what the numbers mean."""
    file = scenario.file
    heads = [
        "POLICY",
        "SLO",
        "IN TIME",
        "WINDOWS",
        "TTFT P95",
        "REPLICAS",
        file.currency,
        "KWH",
        "J/TOKEN",
        "BEST RESERVED",
        "CHANGES",
        "BROKEN STREAMS",
    ]
    rows = [_row(result) for result in results]
    yield from (*_head(scenario), "", *table(heads, rows, str.rjust), "")
    yield from notes(scenario, results)


def _row(result: PolicyResult) -> list[str]:
    course, score = result.course, result.score
    best = "-"
    if result.best_cost is not None:
        best = f"{result.best_reserved}: {result.best_cost:.2f}"
    return [
        result.name,
        "kept" if score.sufficient else "missed",
        f"{score.share:.2%}",
        f"{score.window_share:.2%}",
        _seconds(result.ttft_p95),
        f"{_mean_replicas(result):.2f}",
        f"{result.cost:.2f}",
        *_energy_cells(result.energy),
        best,
        str(course.changes),
        str(course.broken_streams + course.lost_streams),
    ]


def _energy_cells(energy: FleetEnergy | None) -> tuple[str, str]:
    if energy is None:
        return "-", "-"
    return f"{energy.total.kwh:.2f}", cell(energy.total.per_token, "{:.2f}")


def _head(scenario: Scenario) -> Iterator[str]:
    trace, file, fleet = scenario.trace, scenario.file, scenario.fleet
    prices = file.prices
    yield (f"Trace {trace.name}: {counted(len(trace), 'request')} in {trace.seconds / _HOUR:.2f} h")
    yield (
        f"InferenceService/{file.objects.service.ref} on {file.choice.offer.hardware.product} "
        f"({file.choice.variant}), {fleet.min_replicas} to "
        f"{counted(fleet.max_replicas, 'replica')}, ready after {fleet.start_up.mean:.0f} s"
    )
    yield (
        f"A replica costs {prices.on_demand:.2f} {file.currency} per hour on demand, "
        f"{prices.reserved:.2f} reserved, {prices.spot:.2f} on spot"
    )


def notes(scenario: Scenario, results: Sequence[PolicyResult]) -> Iterator[str]:
    """Yield what limits the numbers."""
    yield from scenario.notes
    goal = results[0].goal
    since = f", from {goal.ignore_before:.0f} s on" if goal.ignore_before else ""
    yield (
        f"SLO: {goal.share:.0%} of requests with TTFT <= {_seconds(goal.objective)} of all, and in "
        f"{goal.window_share:.0%} of the windows of {goal.window / 60:.0f} min{since}."
    )
    yield from _energy_notes(scenario, results)
    yield from _budget_notes(scenario, results)
    for result in results:
        if result.course.refused:
            longest = counted(scenario.fleet.replica.max_model_len, "token")
            yield (
                f"{result.name}: {counted(result.course.refused, 'request')} refused as longer "
                f"than {longest}, and counted as missed"
            )
        if result.course.interrupted:
            yield (
                f"Interrupted: {result.name} was simulated for {result.course.seconds / _HOUR:.2f} "
                f"of {scenario.trace.seconds / _HOUR:.2f} h; its row is of that time"
            )
    if missing := [policy.name for policy in scenario.policies[len(results) :]]:
        yield f"Not simulated: {', '.join(missing)}"


def _energy_notes(scenario: Scenario, results: Sequence[PolicyResult]) -> Iterator[str]:
    product = scenario.file.choice.offer.hardware.product
    watts = power_range(product)
    if watts is None:
        yield f"Energy is not counted: no watts are known of {product}."
        return
    yield (
        f"KWH and J/TOKEN of all GPUs by a model: {watts.idle_watts:g} W of an idle {product}, and "
        f"up to {watts.max_watts:g} W by the time in which its engines step."
    )
    shares = [
        f"{result.name} {energy.service.kwh:.2f} kWh, {cell(energy.service.per_token, '{:.2f}')} J "
        "per output token"
        for result in results
        if (energy := result.energy) and energy.service.millijoules < energy.total.millijoules
    ]
    if shares:
        yield (
            f"InferenceService/{scenario.file.objects.service.ref} used of it: "
            f"{'; '.join(shares)}. The rest is of free and stranded parts of GPUs."
        )


def _budget_notes(scenario: Scenario, results: Sequence[PolicyResult]) -> Iterator[str]:
    budget = scenario.file.budget
    if budget is None or budget.spec is None:
        return
    for result in results:
        if result.held_seconds:
            yield (
                f"TenantBudget/{budget.name} held {result.name} for "
                f"{result.held_seconds / 60:.1f} min below the replicas that it asked for."
            )
    if budget.spec.currency != scenario.file.currency:
        return
    for _, limit in budget.spec.cost_limits:
        hours = _WINDOW_HOURS[limit.window]
        above = [
            f"{result.name} {rate * hours:.0f}"
            for result in results
            if (rate := _hourly_cost(result)) * hours > limit.amount
        ]
        if above:
            yield (
                f"TenantBudget/{budget.name}: {limit.window.lower()} limit {limit.amount} "
                f"{budget.spec.currency}. At this load the replicas cost more: {', '.join(above)}. "
                f"It holds {OURS} alone."
            )


def _hourly_cost(result: PolicyResult) -> float:
    return result.cost / max(1.0, result.course.paid_seconds) * _HOUR


def _mean_replicas(result: PolicyResult) -> float:
    return result.course.replica_seconds / max(1.0, result.course.paid_seconds)


def _seconds(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "none"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _body(scenario: Scenario, results: Sequence[PolicyResult]) -> dict[str, Any]:
    """Return everything, with the fleet once per simulated minute."""
    trace, file, fleet = scenario.trace, scenario.file, scenario.fleet
    return {
        "trace": {"name": trace.name, "requests": len(trace), "seconds": trace.seconds},
        "service": str(file.objects.service.ref),
        "variant": file.choice.variant,
        "product": file.choice.offer.hardware.product,
        "minReplicas": fleet.min_replicas,
        "maxReplicas": fleet.max_replicas,
        "startUpSeconds": fleet.start_up.mean,
        "currency": file.currency,
        "replicaHour": _camel_case(asdict(file.prices)),
        "ttftObjectiveSeconds": fleet.replica.ttft,
        "seed": scenario.seed,
        "interrupted": any(result.course.interrupted for result in results),
        "notes": [*notes(scenario, results)],
        "policies": [
            {
                **_fields(result),
                "samples": [_camel_case(asdict(sample)) for sample in result.course.samples],
            }
            for result in results
        ],
    }


def _camel_case(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {to_camel(name): value for name, value in fields.items()}


def _csv(results: Sequence[PolicyResult]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return a row per policy."""
    rows = [_fields(result) for result in results]
    return [*rows[0]], rows


def _fields(result: PolicyResult) -> dict[str, Any]:
    course, score = result.course, result.score
    return {
        "policy": result.name,
        "sloKept": score.sufficient,
        "requests": score.requests,
        "inTime": score.in_time,
        "inTimeShare": round(score.share, 6),
        "windows": score.windows,
        "windowsInTime": score.windows_in_time,
        "windowShare": round(score.window_share, 6),
        "ttftP95Seconds": round(result.ttft_p95, 4) if math.isfinite(result.ttft_p95) else None,
        "simulatedSeconds": course.seconds,
        "replicaHours": round(course.replica_seconds / _HOUR, 4),
        "cost": round(result.cost, 4),
        **_energy_fields(result.energy),
        "bestReserved": result.best_reserved,
        "bestCost": None if result.best_cost is None else round(result.best_cost, 4),
        "heldByBudgetSeconds": result.held_seconds,
        "changes": course.changes,
        "brokenStreams": course.broken_streams,
        "lostStreams": course.lost_streams,
        "refused": course.refused,
    }


def _energy_fields(energy: FleetEnergy | None) -> dict[str, float | None]:
    """Return the energy of all GPUs, and the service's own part of it."""
    sums = {
        "energy": energy.total if energy is not None else None,
        "serviceEnergy": energy.service if energy is not None else None,
    }
    fields = dict[str, float | None]()
    for name, part in sums.items():
        per_token = part.per_token if part is not None else None
        fields[f"{name}Kwh"] = round(part.kwh, 6) if part is not None else None
        fields[f"{name}JoulesPerOutputToken"] = (
            round(per_token, 4) if per_token is not None else None
        )
    return fields
