"""Classes: what a spec omits is that of its class, by the built-in or the installation's table."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import Wire
from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses


def a_spec(service_class: str, classes: ServiceClasses | None = None, **fields: Any) -> Any:
    wire = {"model": {"uri": "hf://a/b"}, "class": service_class, **fields}
    context = None if classes is None else {"classes": classes}
    return InferenceServiceSpec.model_validate(wire, context=context)


def decided(spec: InferenceServiceSpec) -> tuple[object, ...]:
    slo, scaling = spec.slo, spec.scaling
    return (
        slo.ttft_p95.total_seconds(),
        slo.itl_p95.total_seconds(),
        scaling.queue.target,
        scaling.min_replicas,
        "Spot" in spec.placement.tiers,
    )


@pytest.mark.parametrize(
    ("service_class", "defaults"),
    [
        ("Interactive", (1, 0.033, 4, 2, False)),
        ("Standard", (2.5, 0.05, 16, 2, False)),
        ("Batch", (20, 0.2, 50, 1, True)),
    ],
)
def test_a_spec_that_says_nothing_has_the_defaults_of_its_class(
    service_class: str, defaults: tuple[object, ...]
) -> None:
    assert decided(a_spec(service_class)) == defaults


def test_a_field_of_the_spec_wins_over_the_class_and_its_neighbors_do_not() -> None:
    spec = a_spec(
        "Standard",
        slo={"itlP95": "40ms"},
        scaling={"maxReplicas": 6, "queue": {"target": 9}},
        placement={"tiers": ["Spot"]},
    )
    assert decided(spec) == (2.5, 0.04, 9, 2, True)


def test_the_minimum_of_a_class_is_at_most_max_replicas() -> None:
    assert a_spec("Interactive", scaling={"maxReplicas": 1}).scaling.min_replicas == 1


def test_defaults_of_the_class_do_not_count_as_set() -> None:
    fields: dict[str, Any] = {"slo": {"itlP95": "40ms"}, "scaling": {"queue": {}}}
    spec = a_spec("Standard", **fields)
    assert spec.model_dump(mode="json", by_alias=True, exclude_unset=True) == {
        "model": {"uri": "hf://a/b"},
        "class": "Standard",
        **fields,
    }


def test_an_installation_replaces_single_fields_of_a_class() -> None:
    classes = ServiceClasses.model_validate({"Standard": {"ttftP95": "3s", "minReplicas": 1}})
    assert decided(a_spec("Standard", classes)) == (3, 0.05, 16, 1, False)
    assert classes.interactive == BUILT_IN_CLASSES.interactive
    assert a_spec("Standard", classes, slo={"ttftP95": "1s"}).slo.ttft_p95 == timedelta(seconds=1)


@pytest.mark.parametrize(
    ("classes", "field"),
    [
        ({"Background": {}}, ("Background",)),
        ({"Batch": {"ttft": "1s"}}, ("Batch", "ttft")),
        ({"Batch": {"minReplicas": 0}}, ("Batch", "minReplicas")),
        ({"Batch": {"queueTarget": 0}}, ("Batch", "queueTarget")),
        ({"Batch": {"ttftP95": "2h"}}, ("Batch", "ttftP95")),
        ({"Batch": {"ttftP95": "soon"}}, ("Batch", "ttftP95")),
        ({"Batch": {"tiers": []}}, ("Batch", "tiers")),
        ({"Interactive": {"tiers": ["Spot"]}}, ("Interactive", "tiers", 0)),
        ({"Batch": "1s"}, ("Batch",)),
    ],
)
def test_a_wrong_table_is_refused_by_its_field(
    classes: dict[str, Any], field: tuple[str | int, ...]
) -> None:
    with pytest.raises(ValidationError) as refusal:
        ServiceClasses.model_validate(classes)
    assert refusal.value.errors()[0]["loc"] == field


PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks" / "serve.md"


def cells(classes: Wire, field: str) -> str:
    tables = classes.model_dump(mode="json", by_alias=True).values()
    values = [table[field] for table in tables]
    return " | ".join(
        ", ".join(value) if isinstance(value, list) else str(value) for value in values
    )


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("`slo.ttftP95`", "ttftP95"),
        ("`slo.itlP95`", "itlP95"),
        ("`scaling.queue.target`, or [fewer](scale.md) on slow hardware", "queueTarget"),
        ("`scaling.minReplicas`, at most `maxReplicas`", "minReplicas"),
        ("`placement.tiers`", "tiers"),
    ],
)
def test_the_page_has_the_built_in_table(row: str, field: str) -> None:
    assert f"| {row} | {cells(BUILT_IN_CLASSES, field)} |" in PAGE.read_text(encoding="utf-8")
