"""Whatever a budget says, the ready replicas of a service within its floor are granted."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.domain.config import Config
from tests.builders import a_budget, a_node, a_pool, a_service, a_spec
from tests.domain.variant_fleet import VariantFleet
from tests.properties import applies, examples

_TIERS = ("Reserved", "OnDemand")
# Budgets that come to a service that runs, and None for one that goes, where some are required.
_BUDGETS: dict[str, dict[str, Any] | None] = {
    "wide": {"amount": "9000.00", "window": "Month"},
    "used up": {"amount": "0.01", "window": "Month"},
    "tier": {"limits": [{"window": "Day", "amount": "0.01", "tier": "OnDemand"}]},
    "gpus": {"amount": "9000.00", "gpus": "1"},
    "other currency": {"amount": "9000.00", "currency": "EUR"},
    "closed": None,
}


@st.composite
def pools(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw one to three pools, of whole GPUs or slices."""
    names = ("first", "second", "third")[: draw(st.integers(1, 3))]
    return [
        {
            "name": name,
            "tier": draw(st.sampled_from(_TIERS)),
            "price": draw(st.sampled_from(("1.00", "2.00", "3.00"))),
            "whole": draw(st.integers(0, 3)),
            "slices": draw(st.sampled_from((0, 0, 1, 3))),
        }
        for name in names
    ]


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Draw what happens one after the other, each with the seconds until the next."""
    kinds = {
        "budget": st.sampled_from(sorted(_BUDGETS)),
        "floor": st.integers(1, 4),
        "edit": st.integers(1, 9),
        "rename": st.integers(0, 2),
        "price": st.tuples(st.integers(0, 2), st.sampled_from(("0.50", "9.00"))),
    }
    chosen = ["budget", *draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=4))]
    return [(kind, draw(kinds[kind])) for kind in chosen]


def _spec(floor: int, edit: int = 0) -> Any:
    return a_spec(
        scaling={"minReplicas": floor, "maxReplicas": 8},
        podTemplate={"annotations": {"edit": str(edit)}},
    )


class GrantedFleet:
    """A service on pools that change, and its budget."""

    def __init__(self, drawn: list[dict[str, Any]], floor: int) -> None:
        self.drawn, self.floor, self.edits = drawn, floor, 0
        self.granted = 0
        """In the last cycle."""
        config = Config(gateways=True, require_budget=True)
        self.fleet = VariantFleet(
            service=a_service(spec=_spec(floor)),
            pools=(),
            nodes=[],
            config=config,
            start=timedelta(seconds=10),
        )
        self.set_pools()
        self.set_budget("wide")

    def set_pools(self) -> None:
        self.fleet.pools = [
            a_pool(each["name"], each["price"], tier=each["tier"]) for each in self.drawn
        ]
        self.fleet.nodes = [
            a_node(
                each["name"],
                whole=each["whole"],
                slices={"1g.10gb": each["slices"]} if each["slices"] else None,
                name=f"node-{index}",
            )
            for index, each in enumerate(self.drawn)
        ]

    def set_budget(self, name: str) -> None:
        fields = _BUDGETS[name]
        self.fleet.fields = {"budgets": () if fields is None else (a_budget(**fields),)}

    def change(self, kind: str, value: Any) -> None:
        if kind == "budget":
            self.set_budget(value)
        elif kind == "price":
            index, price = value
            self.drawn[index % len(self.drawn)]["price"] = price
            self.set_pools()
        elif kind == "rename":
            self.drawn[value % len(self.drawn)]["name"] += "-new"
            self.set_pools()
        else:
            self.floor, self.edits = (value, self.edits) if kind == "floor" else (self.floor, value)
            spec = _spec(self.floor, self.edits)
            self.fleet.service = replace(self.fleet.service, spec=spec)

    def watch(self, seconds: float) -> int:
        """Run for so long; return in how many cycles something ready was within the floor."""
        cases, end = 0, self.fleet.now.total_seconds() + seconds
        while self.fleet.now.total_seconds() < end:
            ready = [
                pod.variant
                for pod in self.fleet.pods.values()
                if pod.takes_requests and pod.draining_since is None
            ]
            service_plan = self.fleet.cycle()
            # With an extra one for a rollout elsewhere, which is beside what is desired.
            granted = {
                each.choice.variant: max(each.desired, each.replicas)
                for each in service_plan.variants
            }
            # Those of previous variants are committed beside the grants, within the floor.
            stays = sum(
                min(granted.get(variant, len(ready)), ready.count(variant))
                for variant in set(ready)
            )
            # A rollout surges by one that no budget granted, and that goes with its end.
            within = min(self.floor, len(ready), self.granted)
            assert stays >= within, (granted, ready, service_plan.scale.reason)
            cases += within > 0
            self.granted = sum(each.desired for each in service_plan.variants)
        return cases


@applies(5)
@settings(max_examples=examples(100), suppress_health_check=list(HealthCheck))
@given(pools(), st.integers(1, 4), changes(), st.integers(1, 15))
def test_what_is_ready_within_the_floor_is_granted_whatever_the_budget_says(
    drawn: list[dict[str, Any]], floor: int, steps: list[tuple[str, Any]], pause: int
) -> None:
    granted = GrantedFleet(drawn, floor)
    granted.watch(60)
    for kind, value in steps:
        granted.change(kind, value)
        granted.watch(5 * pause)
    granted.watch(120)
