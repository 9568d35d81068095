"""The mean of the same run under several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from scale.runs import Result


def mean_of(results: Sequence[Result]) -> Result:
    """Return the mean cost of a run's seeds, with the worst attainment of them.

    Its run is the first one's; the goal is kept where every seed keeps it.
    """
    first = results[0]
    return replace(
        first,
        share=min(result.share for result in results),
        window_share=min(result.window_share for result in results),
        sufficient=all(result.sufficient for result in results),
        replica_hours=fmean(result.replica_hours for result in results),
        gpu_hours=_means([result.gpu_hours for result in results]),
        paid_seconds=max(result.paid_seconds for result in results),
        usd_on_demand=_means([result.usd_on_demand for result in results]),
        usd=_means([result.usd for result in results]),
        changes_per_hour=fmean(result.changes_per_hour for result in results),
        broken_streams=sum(result.broken_streams for result in results),
        longest_wait=max(result.longest_wait for result in results),
        cpu_seconds=sum(result.cpu_seconds for result in results),
    )


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for each in values for name in each})
    return {name: fmean(each.get(name, 0.0) for each in values) for name in names}
