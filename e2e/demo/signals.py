"""What Prometheus has of a time: the curves of a run, and what a service does just now."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import httpx
from typing_extensions import override

from demo.cluster import Json
from demo.recorded import Curve, Curves

_SERVICE = "tessera_dev_service"
_PODS = f'max by (namespace, pod, {_SERVICE}) (vllm:num_requests_waiting{{{_SERVICE}!=""}} * 0 + 1)'
_OF_OPERATOR = "exported_namespace, service"
_UNUSED = "coldIdle|stranded"
UNUSED = "(unused)"
QUERIES = {
    "ready": f"max by ({_OF_OPERATOR}) (tessera_service_ready_replicas)",
    "waiting": f'sum by (namespace, {_SERVICE}) (vllm:num_requests_waiting{{{_SERVICE}!=""}})',
    "queued": "sum by (service) (tessera_gateway_requests_queued)",
    "in_flight": "sum by (service) (tessera_gateway_requests_in_flight)",
    "ended": "sum by (service) (tessera_gateway_requests_total)",
    "activity": (
        f"avg by (namespace, {_SERVICE}) (max by (namespace, pod) "
        f'(DCGM_FI_PROF_GR_ENGINE_ACTIVE{{pod!=""}}) '
        f"* on (namespace, pod) group_left({_SERVICE}) {_PODS})"
    ),
    "per_hour": f"max by ({_OF_OPERATOR}) (tessera_service_cost_per_hour)",
    "cost": f'sum by (tenant) (tessera_cost_total{{state!~"{_UNUSED}"}})',
    "unused": f'sum (tessera_cost_total{{state=~"{_UNUSED}"}})',
}
# Requests that arrive are counted over so many seconds.
_ARRIVALS_SECONDS = 5
# Of the newest values, which a busy machine scrapes late.
_RECENT_SECONDS = 15

Samples: TypeAlias = Mapping[str, Mapping[int, float]]
"""Values by service or tenant, and by second of the run."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What a service does just now."""

    ready: int
    queue: int
    activity: float
    arrivals: float

    @property
    def count(self) -> tuple[int, int]:
        """Return what one looks at: replicas and requests that wait."""
        return self.ready, self.queue

    @override
    def __str__(self) -> str:
        return (
            f"{self.ready} ready, {self.queue} requests wait, activity {self.activity:.2f}, "
            f"{self.arrivals:.1f} requests arrive in a second"
        )


async def read_curves(url: str, begun: float, since: float = 0.0) -> Curves:
    """Read the curves of a run that began at a Unix time, from a second of it until now."""
    now = time.time()
    window = {"start": str(begun + since), "end": str(now), "step": "1"}

    async with httpx.AsyncClient(base_url=url, timeout=30) as http:

        async def read(query: str) -> Samples:
            response = await http.get("/api/v1/query_range", params={"query": query, **window})
            response.raise_for_status()
            return _samples(response.json()["data"]["result"], begun)

        results = await asyncio.gather(*map(read, QUERIES.values()))
    return curves_of(dict(zip(QUERIES, results, strict=True)))


async def read_signals(url: str, begun: float, service: str) -> Signals:
    """Read what a service does just now."""
    curves = await read_curves(url, begun, time.time() - begun - _RECENT_SECONDS)
    return Signals(
        ready=int(_last(curves.replicas, service)),
        queue=int(_last(curves.queue, service)),
        activity=_last(curves.activity, service),
        arrivals=_last(curves.arrivals, service),
    )


def _last(curves: tuple[Curve, ...], name: str) -> float:
    return next((curve.points[-1][1] for curve in curves if curve.name == name), 0.0)


def _samples(result: list[Json], begun: float) -> Samples:
    return {
        _name(series["metric"]): {
            round(float(at) - begun): float(value) for at, value in series["values"]
        }
        for series in result
    }


def _name(labels: Mapping[str, str]) -> str:
    """Return the service or tenant of a series."""
    if "tenant" in labels:
        return labels["tenant"]
    # Series of the operator have its own namespace beside that of the service.
    namespace = labels.get("exported_namespace") or labels.get("namespace")
    if namespace:
        return f"{namespace}/{labels.get(_SERVICE) or labels['service']}"
    return labels.get("service", UNUSED)


def curves_of(samples: Mapping[str, Samples]) -> Curves:
    """Return the curves of what QUERIES have.

    Where the gateway or engines do not name a service, it has no request at that moment; one that
    the gateway never names has no arrivals.
    """
    ready = samples["ready"]

    def over_life(names: Iterable[str], value: Callable[[str, int], float]) -> tuple[Curve, ...]:
        """Return a value of services at each second at which they exist."""
        return _curves({name: {at: value(name, at) for at in ready[name]} for name in names})

    def requests(name: str, at: int) -> float:
        """Return all requests that have arrived until then."""
        counted = samples["ended"].get(name, {}).items()
        ended = max((value for time, value in counted if time <= at), default=0.0)
        return ended + sum(_value(samples[key], name, at) for key in ("queued", "in_flight"))

    return Curves(
        replicas=_curves(ready),
        queue=over_life(
            ready,
            lambda name, at: sum(_value(samples[key], name, at) for key in ("queued", "waiting")),
        ),
        activity=_curves(samples["activity"]),
        arrivals=over_life(
            ready.keys() & (samples["ended"].keys() | samples["in_flight"].keys()),
            lambda name, at: max(
                0.0,
                (requests(name, at) - requests(name, at - _ARRIVALS_SECONDS)) / _ARRIVALS_SECONDS,
            ),
        ),
        dollars_per_hour=_curves(samples["per_hour"]),
        dollars=_curves(
            {name or "(no budget)": by_time for name, by_time in samples["cost"].items()}
            | dict(samples["unused"])
        ),
    )


def _value(samples: Samples, name: str, at: int) -> float:
    return samples.get(name, {}).get(at, 0.0)


def _curves(samples: Samples) -> tuple[Curve, ...]:
    return tuple(
        Curve(name, tuple((float(at), round(value, 6)) for at, value in sorted(by_time.items())))
        for name, by_time in sorted(samples.items())
        if by_time
    )
