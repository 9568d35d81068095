"""Plots of a simulation in one SVG file: demand, replicas, cost and misses over the hours."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from tessera.cli.plots import Plot, PlotSeries, svg_file
from tessera_lab.cli.simulate.run import PolicyResult
from tessera_lab.cli.simulate.scenario import Scenario
from tessera_lab.fleet.course import Course, Lifetime, cost

_HOUR = 3600.0
# Points of a line, so that none is thinned out.
_BINS = 300


def render_svg(scenario: Scenario, results: Sequence[PolicyResult]) -> str:
    """Return the plots below one another."""
    plots = [plot for plot in _plots(scenario, results) if any(each.points for each in plot.series)]
    return svg_file(plots)


def _plots(scenario: Scenario, results: Sequence[PolicyResult]) -> Iterator[Plot]:
    trace, objective = scenario.trace, scenario.fleet.replica.ttft
    width = max(60.0, math.ceil(trace.seconds / _BINS / 60) * 60.0)
    yield _plot("Demand", "requests per second", [("", _rates(trace.arrivals, width))])
    replicas = [(result.name, _replicas(result)) for result in results]
    if len(results) == 1:
        desired = [(s.at / _HOUR, float(s.desired)) for s in results[0].course.samples]
        ready = [(s.at / _HOUR, float(s.ready)) for s in results[0].course.samples]
        replicas = [("paid", _replicas(results[0])), ("desired", desired), ("ready", ready)]
    yield _plot("Replicas", "replicas", replicas)
    yield _plot(
        "Cost",
        f"{scenario.file.currency} so far",
        [(result.name, _costs(scenario, result)) for result in results],
    )
    yield _plot(
        f"Requests with TTFT above {objective:g} s, by 5 minutes of their arrival",
        "percent",
        [(result.name, _misses(scenario, result)) for result in results],
    )


def _plot(title: str, unit: str, lines: Sequence[tuple[str, list[tuple[float, float]]]]) -> Plot:
    series = [PlotSeries(name=name, points=points) for name, points in lines]
    return Plot(title=title, x_label="hours", y_label=unit, series=series)


def _rates(arrivals: Sequence[float], width: float) -> list[tuple[float, float]]:
    counts = Counter(int(arrival // width) for arrival in arrivals)
    return [
        ((number + 0.5) * width / _HOUR, counts[number] / width)
        for number in range(max(counts) + 1)
    ]


def _replicas(result: PolicyResult) -> list[tuple[float, float]]:
    return [(sample.at / _HOUR, float(sample.nodes)) for sample in result.course.samples]


def _costs(scenario: Scenario, result: PolicyResult) -> list[tuple[float, float]]:
    end = result.course.seconds
    moments = [end * number / _BINS for number in range(_BINS + 1)]
    prices, purchase = scenario.file.prices, scenario.fleet.purchase
    return [
        (moment / _HOUR, cost(_until(result.course, moment), prices, purchase))
        for moment in moments
    ]


def _until(course: Course, moment: float) -> Course:
    """Return what had been paid until a moment."""
    lifetimes = [
        Lifetime(lifetime.tier, lifetime.begin, min(lifetime.end, moment), size=lifetime.size)
        for lifetime in course.lifetimes
        if lifetime.begin < moment
    ]
    return Course(paid_seconds=moment, lifetimes=lifetimes)


def _misses(scenario: Scenario, result: PolicyResult) -> list[tuple[float, float]]:
    goal = replace(result.goal, ignore_before=0.0)
    served = zip(scenario.trace.arrivals, result.course.ttft, strict=True)
    counts = goal.by_window(takewhile(lambda request: request[0] < result.course.seconds, served))
    return [
        ((number + 0.5) * goal.window / _HOUR, 100.0 * (requests - in_time) / requests)
        for number, (requests, in_time) in sorted(counts.items())
    ]
