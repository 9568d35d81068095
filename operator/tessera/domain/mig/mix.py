"""The mix of least cost: the slices that services use and the geometries that provide them.

It solves a configuration integer program by column generation. Services compete only for a few
instance types, so the program is decomposed: slices have prices, every service proposes its
cheapest replica pattern at these prices (a column), and the master program over all columns sets
new prices, until no service has a cheaper pattern. This gives the lower bound. An integer solution
over the columns nearly always reaches it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from tessera.domain.hardware.gpu_layouts import Geometry
from tessera.domain.hardware.gpu_models import WHOLE_GPU, GpuModel
from tessera.domain.incremental import tabulated
from tessera.domain.mig.demand import (
    GpuOffer,
    InstanceType,
    ServiceDemand,
    SunkCapacity,
    instance_types_of,
    profiles_of,
)
from tessera.domain.mig.direct_program import solve_direct
from tessera.domain.mig.geometries import maximal_fillings
from tessera.domain.mig.integer_program import Coefficients, IntegerProgram
from tessera.domain.mig.pattern_pricing import ReplicaPattern, all_patterns, cheapest_pattern

# The name of a GPU model, and its geometry.
GpuConfiguration: TypeAlias = tuple[str, Geometry]

# Share of a GPU's price; smaller differences are rounding of floats.
_PRICE_TOLERANCE = 1e-7
_MAX_ROUNDS = 60
_MAX_NODES = 300
# The same for small fleets of services with few instance types each, where a node takes less time.
_MAX_NODES_LIMITED = 20_000
# Share of the cost; demand and throughput are not known more precisely.
_ACCEPTED_GAP = 0.0005
# Sum of all services' instance types; up to here the program is also solved without decomposition.
_SMALL_FLEET = 250
# Share of a cost step that rounding of floats may take from a bound.
_STEP_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Counts of replicas and GPUs, without placements."""

    replicas: Mapping[str, ReplicaPattern]
    """Replicas of every service that is served."""
    gpus: Mapping[GpuConfiguration, int]
    cost: int
    bound: int
    """Lower bound of the cost of any mix that serves the same services."""
    unmet: tuple[str, ...]
    """Services that do not fit on the available GPUs."""

    @property
    def gap(self) -> float:
        """Return the largest possible distance from the optimum, as a share of the cost."""
        return (self.cost - self.bound) / self.cost if self.cost else 0.0


@tabulated
def gpu_geometries(gpu_model: GpuModel, profiles: tuple[str, ...]) -> tuple[Geometry, ...]:
    """Return the maximal geometries of these profiles on an empty GPU; `whole` is one of them."""
    partitions = tuple(profile for profile in profiles if profile != WHOLE_GPU)
    whole: tuple[Geometry, ...] = (((WHOLE_GPU, 1),),) if WHOLE_GPU in profiles else ()
    return (*maximal_fillings(gpu_model, partitions), *whole) if partitions else whole


class _GpuColumn(NamedTuple):
    """A column of the master program: GPUs with one geometry."""

    offer: GpuOffer
    geometry: Geometry
    price: int
    limit_row: tuple[str, str | int]
    """Name of the row that limits such GPUs, where one does."""

    @property
    def slices(self) -> Coefficients:
        """Return the entries of the slices in the rows of their instance types."""
        name = self.offer.gpu_model.name
        return [
            (("slices", InstanceType(name, profile)), count) for profile, count in self.geometry
        ]


def cheapest_mix(
    services: Iterable[ServiceDemand], offers: Iterable[GpuOffer], sunk: Sequence[SunkCapacity] = ()
) -> Mix:
    """Return the mix of least cost for all services that fit on an available GPU model.

    Where GPUs are too few for all, as many replicas of `min_replicas` as possible are served.
    """
    sorted_offers, usable = _sort_inputs(services, offers)
    served = [service for service in usable if service.throughput]
    unmet = tuple(service.name for service in usable if not service.throughput)
    if not served:
        return Mix(replicas={}, gpus={}, cost=0, bound=0, unmet=unmet)
    return _ColumnGeneration(served, sorted_offers, unmet, sunk).solve()


def feasible_mix(
    services: Iterable[ServiceDemand], offers: Iterable[GpuOffer], sunk: Sequence[SunkCapacity] = ()
) -> Mix | None:
    """Return any mix that serves all of these services; None if the search finds none."""
    sorted_offers, usable = _sort_inputs(services, offers)
    if not usable:
        return Mix(replicas={}, gpus={}, cost=0, bound=0, unmet=())
    if not all(service.throughput for service in usable):
        return None
    return _ColumnGeneration(usable, sorted_offers, (), sunk).solve_feasible()


def _sort_inputs(
    services: Iterable[ServiceDemand], offers: Iterable[GpuOffer]
) -> tuple[list[GpuOffer], list[ServiceDemand]]:
    """Return offers and services by name, the services restricted to these offers."""
    sorted_offers = sorted(offers, key=lambda offer: offer.gpu_model.name)
    wanted = sorted(
        (service for service in services if service.required_replicas),
        key=lambda service: service.name,
    )
    return sorted_offers, [restrict_to_offers(service, sorted_offers) for service in wanted]


def restrict_to_offers(service: ServiceDemand, offers: Sequence[GpuOffer]) -> ServiceDemand:
    """Return the service without instance types that are not offered or have no throughput."""
    gpu_models = {offer.gpu_model.name: offer.gpu_model for offer in offers}
    throughput = {
        instance_type: speed
        for instance_type, speed in sorted(service.throughput.items())
        if speed > 0
        and instance_type.gpu_model in gpu_models
        and (
            instance_type.profile == WHOLE_GPU
            or gpu_models[instance_type.gpu_model].find_profile(instance_type.profile)
        )
    }
    return replace(service, throughput=throughput)


class _ColumnGeneration:
    """The master program; rows are instance types, services, limited GPU models and sunk GPUs."""

    def __init__(
        self,
        services: Sequence[ServiceDemand],
        offers: Sequence[GpuOffer],
        unmet: tuple[str, ...],
        sunk: Sequence[SunkCapacity],
    ) -> None:
        self._services, self._offers, self._unmet, self._sunk = services, offers, unmet, sunk
        self._instance_types = instance_types_of(services)
        self._offer_by_model = {offer.gpu_model.name: offer for offer in offers}
        self._limited_offers = [offer for offer in offers if offer.max_gpus is not None]
        self._cost_step = math.gcd(*(offer.price for offer in offers)) or 1
        self._max_cost = sum(offer.price * (offer.max_gpus or 0) for offer in offers)
        max_cost = self._cost_step + self._max_cost
        unlimited = {offer.gpu_model.name for offer in offers if offer.max_gpus is None}
        # Leaving out a service costs more than all GPUs; None where it always fits.
        self._penalties = {
            service.name: None
            if unlimited & {instance_type.gpu_model for instance_type in service.throughput}
            else max_cost * max(1, service.min_replicas)
            for service in services
        }
        self._cost_unit = float(max(offer.price for offer in offers)) or 1.0
        self._gpu_columns = list(self._build_gpu_columns())
        # The patterns of services, in the order of their columns.
        self._replica_columns: dict[tuple[str, ReplicaPattern], None] = {}
        self._master = self._build_master()
        self._bound = 0

    def _build_gpu_columns(self) -> Iterator[_GpuColumn]:
        for offer in self._offers:
            name = offer.gpu_model.name
            profiles = profiles_of(name, self._instance_types)
            for geometry in gpu_geometries(offer.gpu_model, profiles) if profiles else ():
                yield _GpuColumn(offer, geometry, offer.price, ("limit", name))
        for index, capacity in enumerate(self._sunk):
            for geometry in capacity.geometries:
                offer = self._offer_by_model[capacity.gpu_model]
                yield _GpuColumn(offer, geometry, 0, ("sunk", index))

    def _build_master(self) -> IntegerProgram:
        program = IntegerProgram()
        for instance_type in self._instance_types:
            program.add_row(0, name=("slices", instance_type))
        for service in self._services:
            program.add_row(1, name=("service", service.name))
        for offer in self._limited_offers:
            program.add_row(-math.inf, offer.max_gpus or 0, name=("limit", offer.gpu_model.name))
        for index, capacity in enumerate(self._sunk):
            program.add_row(-math.inf, capacity.gpu_count, name=("sunk", index))
        for column in self._gpu_columns:
            entries = [*column.slices, (column.limit_row, 1)]
            program.add_column(column.price / self._cost_unit, entries)
        return program

    def solve(self) -> Mix:
        """Return the cheapest mix over the generated columns, with its lower bound."""
        self._add_first_columns()
        self._generate_columns()
        step = max(self._cost_step, _ACCEPTED_GAP * self._bound) / self._cost_unit
        target = self._bound / self._cost_unit + _PRICE_TOLERANCE
        size = sum(len(service.throughput) for service in self._services)
        limited = [service.max_types is not None for service in self._services]
        nodes = _MAX_NODES_LIMITED if all(limited) and size <= _SMALL_FLEET else _MAX_NODES
        solution = self._master.solve_integer(nodes, target=target, step=step)
        if solution is None:
            raise ArithmeticError("the solver found no integer solution")
        if all(limited):
            # All possible columns are present, so the bound of the integer search holds.
            self._raise_bound(max(solution.bound, 0.0) * self._cost_unit)
        mix = self._build_mix(solution.columns)
        if (
            mix.gap <= _ACCEPTED_GAP
            or size > _SMALL_FLEET
            or self._limited_offers
            or self._sunk
            or any(limited)
        ):
            return mix
        return self._improve(mix)

    def solve_feasible(self) -> Mix | None:
        """Return the first mix that serves every service; None if the search finds none."""
        if len(self._limited_offers) < len(self._offers):
            # Penalties do not apply where GPUs are unlimited; the cheapest mix says what fits.
            mix = self.solve()
            return None if mix.unmet else mix
        self._add_first_columns()
        self._generate_columns()
        if self._bound > self._max_cost:
            return None
        max_cost = (self._max_cost + self._cost_step / 2) / self._cost_unit
        solution = self._master.solve_integer(
            _MAX_NODES_LIMITED, target=max_cost, objective_bound=max_cost
        )
        return self._build_mix(solution.columns) if solution is not None else None

    def _add_first_columns(self) -> None:
        """Add the columns that column generation starts from."""
        shares = {
            instance_type: _initial_price(
                self._offer_by_model[instance_type.gpu_model], instance_type.profile
            )
            for instance_type in self._instance_types
        }
        self._price_services(shares, dict.fromkeys(self._penalties, math.inf))
        for service in self._services:
            if self._penalties[service.name] is not None:
                self._add_replica_column(service.name, ())
            elif self._limited_offers:
                unlimited = self._on_unlimited_models(service)
                self._add_replica_column(service.name, cheapest_pattern(unlimited, shares).pattern)
            for pattern in all_patterns(service) if service.max_types is not None else ():
                self._add_replica_column(service.name, pattern)

    def _on_unlimited_models(self, service: ServiceDemand) -> ServiceDemand:
        """Return the service on GPU models without a limit, where it always fits."""
        unlimited = {
            instance_type: speed
            for instance_type, speed in service.throughput.items()
            if self._offer_by_model[instance_type.gpu_model].max_gpus is None
        }
        return replace(service, throughput=unlimited)

    def _improve(self, mix: Mix) -> Mix:
        """Search all combinations of replicas of a small fleet for a better mix."""
        direct = solve_direct(
            self._services,
            [(column.price / self._cost_unit, column.slices) for column in self._gpu_columns],
            low=mix.bound / self._cost_unit,
            high=mix.cost / self._cost_unit,
            step=max(self._cost_step, _ACCEPTED_GAP * self._bound) / self._cost_unit,
        )
        if direct is None:
            return mix
        self._raise_bound(direct.bound * self._cost_unit)
        gpus = self._count_gpus(direct.gpus)
        cost = self._cost_of(gpus)
        if cost >= mix.cost:
            return replace(mix, bound=min(mix.cost, self._bound))
        bound = min(cost, self._bound)
        return replace(mix, replicas=direct.replicas, gpus=gpus, cost=cost, bound=bound)

    def _generate_columns(self) -> None:
        """Add columns at improving prices until the lower bound is reached."""
        unit = self._cost_unit
        for _ in range(_MAX_ROUNDS):
            relaxed = self._master.solve_relaxed()
            if relaxed is None:
                raise ArithmeticError("the solver found no dual prices")
            duals = relaxed.duals
            prices = {
                instance_type: max(duals["slices", instance_type], 0.0) * unit
                for instance_type in self._instance_types
            }
            limit_prices = {
                offer.gpu_model.name: max(-duals["limit", offer.gpu_model.name], 0.0) * unit
                for offer in self._limited_offers
            }
            column_costs = {name: duals["service", name] * unit for name in self._penalties}
            service_bounds_sum, has_new = self._price_services(prices, column_costs)
            self._raise_bound(self._safe_bound(prices, limit_prices, service_bounds_sum))
            if not has_new or self._round_bound(relaxed.value * unit) <= self._bound:
                return

    def _price_services(
        self, prices: Mapping[InstanceType, float], column_costs: Mapping[str, float]
    ) -> tuple[float, bool]:
        """Return the sum of the services' bounds, and whether any added a cheaper column."""
        service_bounds_sum, has_new = 0.0, False
        for service in self._services:
            priced = cheapest_pattern(service, prices)
            penalty = self._penalties[service.name]
            service_bounds_sum += priced.bound if penalty is None else min(priced.bound, penalty)
            if priced.cost < column_costs[service.name] - _PRICE_TOLERANCE * self._cost_unit:
                has_new |= self._add_replica_column(service.name, priced.pattern)
        return service_bounds_sum, has_new

    def _add_replica_column(self, service: str, pattern: ReplicaPattern) -> bool:
        if (service, pattern) in self._replica_columns:
            return False
        self._replica_columns[service, pattern] = None
        taken = [(("slices", instance_type), -count) for instance_type, count in pattern]
        cost = 0 if pattern else self._penalties[service] or 0
        self._master.add_column(cost / self._cost_unit, [*taken, (("service", service), 1)])
        return True

    def _safe_bound(
        self,
        slice_prices: Mapping[InstanceType, float],
        limit_prices: Mapping[str, float],
        service_bounds_sum: float,
    ) -> float:
        """Return the Lagrangian bound, scaled where the slices of a GPU cost more than the GPU."""

        def value(gpu_model: str, geometry: Geometry) -> float:
            return sum(
                slice_prices.get(InstanceType(gpu_model, profile), 0.0) * count
                for profile, count in geometry
            )

        excess = max(
            value(name, column.geometry) / (column.price + limit_prices.get(name, 0.0))
            for column in self._gpu_columns
            for name in (column.offer.gpu_model.name,)
            if column.price
        )
        limit_cost = sum(
            limit_prices[offer.gpu_model.name] * (offer.max_gpus or 0)
            for offer in self._limited_offers
        )
        sunk_value = sum(
            max(value(capacity.gpu_model, geometry) for geometry in capacity.geometries)
            * capacity.gpu_count
            for capacity in self._sunk
        )
        return service_bounds_sum / max(excess, 1.0) - limit_cost - sunk_value

    def _raise_bound(self, bound: float) -> None:
        self._bound = max(self._bound, self._round_bound(bound))

    def _round_bound(self, bound: float) -> int:
        """Round up to the next possible cost, which is a multiple of the cost step."""
        steps = (bound - _PRICE_TOLERANCE * self._cost_unit) / self._cost_step - _STEP_TOLERANCE
        return math.ceil(steps) * self._cost_step

    def _count_gpus(self, columns: Sequence[int]) -> dict[GpuConfiguration, int]:
        """Return the GPUs that are not paid in any case."""
        return {
            (column.offer.gpu_model.name, column.geometry): count
            for column, count in zip(self._gpu_columns, columns, strict=False)
            if count and column.price
        }

    def _cost_of(self, gpus: Mapping[GpuConfiguration, int]) -> int:
        return sum(self._offer_by_model[name].price * count for (name, _), count in gpus.items())

    def _build_mix(self, columns: Sequence[int]) -> Mix:
        gpus = self._count_gpus(columns)
        replicas: dict[str, ReplicaPattern] = {}
        for (name, pattern), count in zip(
            self._replica_columns, columns[len(self._gpu_columns) :], strict=True
        ):
            if count and pattern:
                replicas.setdefault(name, pattern)
        unserved = self._penalties.keys() - replicas.keys()
        cost = self._cost_of(gpus)
        lost = sum(self._penalties[name] or 0 for name in unserved)
        return Mix(
            replicas=dict(sorted(replicas.items())),
            gpus=gpus,
            cost=cost,
            bound=min(cost, max(self._bound - lost, 0)),
            unmet=tuple(sorted({*self._unmet, *unserved})),
        )


def _initial_price(offer: GpuOffer, profile: str) -> float:
    """Return a first price of a slice: its larger share of the GPU's compute or memory slices."""
    gi_profile = offer.gpu_model.find_profile(profile)
    if gi_profile is None:
        return float(offer.price)
    compute = gi_profile.compute_slices / offer.gpu_model.compute_slices
    return offer.price * max(compute, gi_profile.memory_slices / offer.gpu_model.memory_slices)
