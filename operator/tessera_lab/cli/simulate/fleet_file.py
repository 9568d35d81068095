"""The service to simulate, with its hardware and its prices, from a fleet file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal

from tessera.api.accelerator_pool import (
    COUNT_LABEL,
    PRODUCT_LABEL,
    AcceleratorPoolSpec,
    Price,
    Tier,
)
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.service_status import PrecisionStatus
from tessera.api.tenant_budget import TenantBudgetStatus
from tessera.cli.errors import CommandError
from tessera.domain.hardware.device import GPU, is_gpu_resource, resource_of
from tessera.domain.hardware.node_templates import template_node
from tessera.domain.hardware.pools import discover
from tessera.domain.money import price_on
from tessera.domain.observed.snapshot import Budget, Node, ObservedService, Pool, Snapshot
from tessera.domain.perf.footprint import stored_shape
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import shape_of
from tessera_lab.cli.simulate.manifests import read_objects
from tessera_lab.fleet.instance_types import RecordedTypes
from tessera_lab.fleet.policies.product import START, FleetObjects
from tessera_lab.fleet.prices import PRICE_SETS, GpuPrices
from tessera_lab.fleet.sizing import widest_bounds

# GPUs of a node, where no label of the pool says how many.
_GPUS_OF_NODE = "8"
_FIRST_DAY = date(2000, 1, 1)
# The reason of files that were not read; planning compares what is recorded of them with the model.
_ASSUMED = "Assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFile:
    """One service, and the pool that it is placed in."""

    objects: FleetObjects
    choice: HardwareChoice
    prices: GpuPrices
    """Of one replica and hour, by tier."""
    gpu_prices: Mapping[str, GpuPrices]
    """Of one GPU and hour by product, also of the other pools in this currency."""
    missing_tiers: tuple[Tier, ...]
    """Tiers without a pool of this GPU, which are priced as others; none with a set of prices."""
    currency: str
    budget: Budget | None
    """That of the service's namespace."""
    notes: tuple[str, ...]
    types: RecordedTypes | None = None
    """The instance type by the hours before the part that is played; None where these are few."""

    @property
    def spec(self) -> InferenceServiceSpec:
        return self.objects.spec

    def by_recorded_load(self, types: RecordedTypes) -> "FleetFile":
        """Return the file with the instance type for all policies that runs after hours of load."""
        choice, decision = types.choice, types.decide(START, types.running)
        note = f"By the load before --from, taken as {START:%Y-%m-%d %H:%M} UTC: {decision.message}"
        return replace(
            self,
            choice=choice,
            prices=self.gpu_prices[choice.offer.hardware.product].times(
                float(choice.offer.tariff.weight)
            ),
            types=replace(types, choices=(choice,)),
            notes=(*self.notes, note),
        )


def read_fleet_file(path: str, name: str | None, price_set: str | None, at: datetime) -> FleetFile:
    """Return the named service, or the only one; raise CommandError where it cannot be simulated.

    The service gets the hardware that the operator would choose if nothing else ran. Prices are
    those of the pools with this hardware, or of the set.
    """
    snapshot = read_objects(path, at)
    service = _with_assumed_files(_service(path, snapshot.services, name))
    pools, notes = _pools(path, snapshot, service, at.date())
    everywhere = FleetObjects(
        service=service,
        pools=tuple(pool for pool, _ in pools),
        nodes=tuple(node for _, pool_nodes in pools for node in pool_nodes),
    )
    first_plan = everywhere.first_plan()
    choice = first_plan.placement.choice
    if choice is None:
        verdict = first_plan.placement.verdict
        problem = (
            verdict.message if first_plan.accepted.reason.is_true else first_plan.accepted.message
        )
        raise CommandError(f"--fleet {path}: InferenceService/{service.ref}: {problem}")
    chosen, nodes = next(each for each in pools if each[0].name == choice.offer.pool)
    product = choice.offer.hardware.product
    missing, currency = tuple[Tier, ...](), "USD"
    if price_set is None:
        currency = choice.offer.tariff.currency
        prices, missing = _pool_prices(everywhere, product, currency, at.date())
    else:
        prices = _set_prices(price_set, product)
    weight = float(choice.offer.tariff.weight)
    if price_set is None:
        others = _other_products(everywhere, product, currency, at.date())
    else:
        others = PRICE_SETS[price_set]
    budget = _budget(snapshot.budgets, service.ref.namespace)
    on_demand = choice.offer.tariff.prices[0].model_copy(
        update={"per_gpu_hour": Decimal(str(prices.on_demand)), "currency": currency}
    )
    objects = FleetObjects(
        service=service,
        pools=(_with_price(chosen, on_demand),),
        nodes=nodes,
        # Nothing is spent when the trace begins.
        budgets=() if budget is None else (replace(budget, status=TenantBudgetStatus()),),
    )
    return FleetFile(
        objects=objects,
        choice=choice,
        prices=prices.times(weight),
        gpu_prices={**others, product: prices},
        currency=currency,
        budget=budget,
        missing_tiers=missing,
        notes=(*notes, *_price_notes(product, missing), *_assumptions(service)),
    )


def _service(path: str, services: Sequence[ObservedService], name: str | None) -> ObservedService:
    matching = [each for each in services if name in (None, each.ref.name, str(each.ref))]
    if len(matching) != 1:
        names = ", ".join(str(each.ref) for each in services) or "none"
        wanted = "no InferenceService" if name is None else f"no InferenceService/{name}"
        problem = f"has {len(matching)}" if matching else f"has {wanted}"
        raise CommandError(
            f"--fleet {path} {problem}; choose one with --service NAMESPACE/NAME: {names}"
        )
    if matching[0].spec is None:
        raise CommandError(f"--fleet {path}: {matching[0].ref}: {matching[0].problem}")
    return matching[0]


def _with_assumed_files(service: ObservedService) -> ObservedService:
    """Return the service as if the files of its precisions were read, and were of its model."""
    spec = service.spec
    shape = shape_of(spec) if spec is not None else None
    if spec is None or shape is None:
        return service
    recorded = {entry.precision for entry in service.status.precisions}
    assumed = tuple(
        PrecisionStatus(
            precision=variant.precision,
            uri=variant.uri,
            requested_revision=variant.revision,
            reason=_ASSUMED,
            shape=stored_shape(shape, variant.precision),
        )
        for variant in spec.precision.variants
        if variant.uri is not None and variant.precision not in recorded
    )
    update = {"precisions": (*service.status.precisions, *assumed)}
    return replace(service, status=service.status.model_copy(update=update))


def _assumptions(service: ObservedService) -> Iterator[str]:
    for entry in service.status.precisions:
        if entry.reason == _ASSUMED:
            yield (
                f"the files of {entry.precision} at {entry.uri} are not read, and assumed to be of "
                "the model"
            )


def _pools(
    path: str, snapshot: Snapshot, service: ObservedService, today: date
) -> tuple[list[tuple[Pool, tuple[Node, ...]]], tuple[str, ...]]:
    """Return the pools with nodes for every replica, and notes on those that are left out."""
    pools, notes = list[tuple[Pool, tuple[Node, ...]]](), list[str]()
    assert service.spec is not None  # noqa: S101 - checked where the service was chosen
    _, copies = widest_bounds(service.spec.scaling)
    for pool in snapshot.pools:
        if pool.spec is None:
            notes.append(f"AcceleratorPool/{pool.name} is left out: {pool.problem}")
            continue
        price = price_on(pool.spec.prices, today)
        if price is None:
            notes.append(f"AcceleratorPool/{pool.name} is left out: it has no price for {today}")
            continue
        node = _typical_node(pool.spec, snapshot.nodes)
        if node is None:
            notes.append(
                f"AcceleratorPool/{pool.name} is left out: its GPUs are not known. Add "
                f"{PRODUCT_LABEL} to spec.nodeSelector, or use a tessera snapshot"
            )
            continue
        priced = _with_price(pool, price)
        names = (f"{pool.name}-{number}" for number in range(copies))
        copied = tuple(
            replace(node, name=name, labels={**node.labels, **pool.spec.node_selector})
            for name in names
        )
        pools.append((priced, copied))
    if not pools:
        raise CommandError(
            f"--fleet {path} has no AcceleratorPool to use" + "".join(f"; {note}" for note in notes)
        )
    return pools, tuple(notes)


def _with_price(pool: Pool, price: Price) -> Pool:
    """Return a pool with one price from the first day on, since a trace has no date."""
    assert pool.spec is not None  # noqa: S101 - checked where pools are chosen
    always = price.model_copy(update={"from_": _FIRST_DAY})
    return replace(pool, spec=pool.spec.model_copy(update={"prices": (always,)}))


def _typical_node(spec: AcceleratorPoolSpec, nodes: Sequence[Node]) -> Node | None:
    """Return the existing node with the most devices, else one of the template or the labels."""
    existing = [node for node in nodes if spec.node_selector.items() <= node.labels.items()]
    if existing:
        return max(existing, key=_devices)
    if spec.node_template is not None:
        return template_node(spec, spec.node_template)
    product = spec.node_selector.get(PRODUCT_LABEL)
    count = spec.node_selector.get(COUNT_LABEL, _GPUS_OF_NODE)
    if product is None or not count.isdecimal():
        return None
    allocatable = {GPU: int(count)}
    if spec.mig is not None and spec.mig.layout:
        allocatable = {
            resource_of(profile): slices * int(count) for profile, slices in spec.mig.layout.items()
        }
    return Node(name="", labels={}, schedulable=True, allocatable=allocatable)


def _devices(node: Node) -> int:
    return sum(count for name, count in node.allocatable.items() if is_gpu_resource(name))


def _pool_prices(
    objects: FleetObjects, product: str, currency: str, today: date
) -> tuple[GpuPrices, tuple[Tier, ...]]:
    """Return the lowest price of a GPU by tier; a tier without a pool costs as the next one.

    The tiers without a pool of this currency are returned too.
    """
    by_tier: dict[Tier, list[Decimal]] = {}
    for view in discover(objects.pools, objects.nodes, today):
        spec, price = view.pool.spec, view.price
        if view.product != product or spec is None or price is None:
            continue
        if price.currency == currency:
            by_tier.setdefault(spec.tier, []).append(price.per_gpu_hour)
    lowest = {tier: float(min(prices)) for tier, prices in by_tier.items()}
    tiers: tuple[Tier, ...] = ("OnDemand", "Reserved", "Spot")
    # Something has a price, since the service has been placed there.
    fallback = next(lowest[tier] for tier in ("Reserved", "OnDemand", "Spot") if tier in lowest)
    on_demand = lowest.get("OnDemand", fallback)
    return GpuPrices(
        on_demand=on_demand,
        reserved=lowest.get("Reserved", on_demand),
        spot=lowest.get("Spot", on_demand),
    ), tuple(tier for tier in tiers if tier not in lowest)


def _price_notes(product: str, missing: Sequence[Tier]) -> Iterator[str]:
    if "OnDemand" in missing:
        yield (
            f"no AcceleratorPool of {product} is of tier {', '.join(missing)}: what would run "
            "there is priced as the other tiers. Choose other prices with --prices"
        )


def _other_products(
    objects: FleetObjects, product: str, currency: str, today: date
) -> dict[str, GpuPrices]:
    names = {
        view.product
        for view in discover(objects.pools, objects.nodes, today)
        if view.product is not None and view.price is not None and view.price.currency == currency
    }
    return {
        name: _pool_prices(objects, name, currency, today)[0] for name in sorted(names - {product})
    }


def _set_prices(price_set: str, product: str) -> GpuPrices:
    prices = PRICE_SETS[price_set].get(product)
    if prices is None:
        raise CommandError(
            f"--prices {price_set} has no price of {product}, on which the service runs; it has "
            f"{', '.join(PRICE_SETS[price_set])}"
        )
    return prices


def _budget(budgets: Sequence[Budget], namespace: str) -> Budget | None:
    return next(
        (
            budget
            for budget in budgets
            if budget.spec is not None and namespace in budget.spec.tenant.namespaces
        ),
        None,
    )
