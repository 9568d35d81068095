"""The ladder of many small services, each a fraction of a GPU: the case for MIG slices."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from tessera.api.meta import Wire
from tessera.domain.economics.reservation import LoadCurve
from tessera.domain.hardware.device import Hardware
from tessera.domain.hardware.gpu_models import WHOLE_GPU, find_gpu_model
from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand, replicas_needed
from tessera.domain.mig.plan import plan_layouts
from tessera_lab.fleet.capacity_mix import MONTH_HOURS, mix_options
from tessera_lab.levers.case import ServiceCase
from tessera_lab.levers.lever import LeverId
from tessera_lab.levers.month import Measure, with_best_limits
from tessera_lab.levers.replica_rate import replica_rate
from tessera_lab.levers.setups import serving_hardware, setup_on

_NANOS = 10**9
_FP8 = frozenset({LeverId.QUANTIZATION})


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallServices:
    """Services with equal spans and prices."""

    cases: Mapping[str, ServiceCase]
    """By name; each has its first GPU as `baseline`. Loads of one name are equal."""
    product: str
    """The GPUs that are partitioned."""


class ServicesRung(Wire):
    """All services after a step; money in the currency of the prices."""

    title: str
    per_month: float
    mean_gpus: float
    peak_gpus: int


class ServicesLadder:
    """What all services cost, step by step; each setup is measured once for each load."""

    def __init__(self, services: SmallServices, measure: Measure | None = None) -> None:
        self._services = services
        cases = {case.load.name: case for case in services.cases.values()}
        self._measures = {name: cache(measure or _played(case)) for name, case in cases.items()}
        first = next(iter(services.cases.values()))
        self._seconds = tuple(seconds for seconds, _ in first.demand)
        self._prices, self._sliced = first.prices, first.prices[services.product]

    def climb(self) -> Iterator[ServicesRung]:
        """Yield the steps, each on those before."""
        yield self._whole_gpus("a whole GPU each, for its peak", sized=False)
        yield self._whole_gpus("the cheapest whole GPU each", sized=True)
        yield self._on_demand("MIG slices", [self._gpus(frozenset(), self._peaks())])
        yield self._on_demand("fp8", [self._gpus(_FP8, self._peaks())])
        scaled = [self._gpus(_FP8, rates) for rates in self._spans()]
        yield self._on_demand("scaling with the load", scaled)
        asleep = [self._gpus(_FP8, rates, least=0) for rates in self._spans()]
        yield self._on_demand("sleep while no request comes", asleep)
        yield self._reserved("reserved and on demand", asleep)

    def without_slices(self) -> ServicesRung:
        """Return the last step on whole GPUs, each service on those that cost it least."""
        totals = dict[str, list[int]]()
        for name, case in self._services.cases.items():
            _, product, counts = min(
                (sum(counts) * case.prices[hardware.product].on_demand, hardware.product, counts)
                for hardware, speed in self._options(case, _FP8, case.prices)
                if hardware.profile is None
                for counts in (
                    [
                        replicas_needed(_demand(name, rates[name], 0), speed)
                        for rates in self._spans()
                    ],
                )
            )
            before = totals.get(product, [0] * len(counts))
            totals[product] = [sum(pair) for pair in zip(before, counts, strict=True)]
        per_month = sum(
            min(
                option.total
                for option in mix_options(self._curve(gpus), self._prices[product], 0.0)
            )
            for product, gpus in totals.items()
        )
        gpus = [sum(counts) for counts in zip(*totals.values(), strict=True)]
        return _rung("all of it on whole GPUs", per_month, self._curve(gpus))

    def _options(
        self, case: ServiceCase, levers: Set[LeverId], products: Iterable[str]
    ) -> Iterator[tuple[Hardware, float]]:
        """Yield what keeps the SLO, with the requests per second of a replica."""
        for hardware in serving_hardware(case, levers, products):
            if hardware.devices == 1:
                setup = setup_on(case, levers, hardware)
                _, replica = with_best_limits(setup, self._measures[case.load.name])
                if replica.keeps_slo:
                    yield hardware, replica.rate

    def _whole_gpus(self, title: str, *, sized: bool) -> ServicesRung:
        per_hour, gpus = 0.0, 0
        for name, case in self._services.cases.items():
            products = case.prices if sized else (case.baseline.product,)
            peak = max(rate for _, rate in case.demand)
            price, replicas = min(
                (case.prices[hardware.product].on_demand * count, count)
                for hardware, rate in self._options(case, frozenset(), products)
                if hardware.profile is None
                for count in (replicas_needed(_demand(name, peak, 1), rate),)
            )
            per_hour, gpus = per_hour + price, gpus + replicas
        return _rung(title, per_hour * MONTH_HOURS, LoadCurve(((1.0, gpus),)))

    def _peaks(self) -> dict[str, float]:
        return {
            name: max(rate for _, rate in case.demand)
            for name, case in self._services.cases.items()
        }

    def _spans(self) -> Iterator[dict[str, float]]:
        """Yield the rates of each span: a replica starts while the span before is served."""
        ahead = {
            name: [max(pair) for pair in pairwise([*rates, rates[0]])]
            for name, case in self._services.cases.items()
            for rates in ([rate for _, rate in case.demand],)
        }
        for span in range(len(self._seconds)):
            yield {name: rates[span] for name, rates in ahead.items()}

    def _gpus(self, levers: Set[LeverId], rates: Mapping[str, float], least: int = 1) -> int:
        """Return the fewest GPUs whose slices serve all; plans are those of `tessera plan`."""
        gpu_model = find_gpu_model(self._services.product)
        assert gpu_model is not None  # noqa: S101 - the product has slices
        wanted = [
            _demand(
                name,
                rate,
                least,
                {
                    InstanceType(gpu_model.name, hardware.profile or WHOLE_GPU): speed
                    for hardware, speed in self._options(
                        self._services.cases[name], levers, (self._services.product,)
                    )
                },
            )
            for name, rate in rates.items()
        ]
        offer = GpuOffer(gpu_model=gpu_model, price=round(self._sliced.on_demand * _NANOS))
        plan = plan_layouts(wanted, [offer])
        assert not plan.unmet, plan.unmet  # noqa: S101 - each service has a whole GPU that serves it
        return plan.gpus_in_use

    def _curve(self, gpus: Sequence[int]) -> LoadCurve:
        seconds = self._seconds if len(gpus) > 1 else (sum(self._seconds),)
        return LoadCurve(tuple(zip(seconds, gpus, strict=True)))

    def _on_demand(self, title: str, gpus: Sequence[int]) -> ServicesRung:
        curve = self._curve(gpus)
        return _rung(title, MONTH_HOURS * curve.mean * self._sliced.on_demand, curve)

    def _reserved(self, title: str, gpus: Sequence[int]) -> ServicesRung:
        curve = self._curve(gpus)
        # Services answer people: nothing runs on spot nodes, so nothing is wasted.
        options = mix_options(curve, self._sliced, 0.0)
        return _rung(title, min(option.total for option in options), curve)


def _rung(title: str, per_month: float, curve: LoadCurve) -> ServicesRung:
    return ServicesRung(
        title=title,
        per_month=round(per_month, 2),
        mean_gpus=round(curve.mean, 3),
        peak_gpus=curve.peak,
    )


def _played(case: ServiceCase) -> Measure:
    return lambda setup: replica_rate(setup, case.load, case.objectives)


def _demand(
    name: str, rate: float, least: int, throughput: Mapping[InstanceType, float] | None = None
) -> ServiceDemand:
    return ServiceDemand(
        name=name, demand=rate, min_replicas=least, throughput=throughput or {}, max_types=1
    )
