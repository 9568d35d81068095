"""The CRDs as the API server needs them: structural, bounded, with constant defaults."""

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from tessera.api.batch_inference import BatchInferenceSpec
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import Duration, Wire, format_duration
from tessera.api.schema import CustomResource, crd, structural
from tessera.domain.kinds.kinds import BATCH_INFERENCES, INFERENCE_SERVICES, KINDS

CASES = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)


def schema(kind: CustomResource) -> dict[str, Any]:
    open_api_schema: dict[str, Any] = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return open_api_schema


def nodes(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")


@CASES
def test_schemas_are_structural(kind: CustomResource) -> None:
    for path, node in nodes(schema(kind)):
        assert "type" in node, path
        assert not {"$ref", "anyOf", "oneOf", "allOf", "title", "nullable"} & set(node), path


@CASES
def test_every_field_has_a_text_worth_reading(kind: CustomResource) -> None:
    for path, node in nodes(schema(kind)):
        if path and path.split(".")[1] in ("spec", "status") and not path.endswith("[]"):
            assert len(node.get("description", "")) >= 5, path


def without_maximum(node: Mapping[str, Any]) -> list[str]:
    """Return the paths of lists, maps, texts, durations and numbers that may grow without end."""
    maxima = {
        "array": {"maxItems"},
        "string": {"maxLength", "enum", "format"},
        "integer": {"maximum", "enum"},
        "number": {"maximum", "enum"},
        "object": {"maxProperties", "properties"},
    }
    return [
        path
        for path, child in nodes(node)
        if not (maxima.get(child["type"], {"type"}) & child.keys())
        or (is_duration(child) and "at most" not in str(child.get("x-kubernetes-validations")))
    ]


def is_duration(node: Mapping[str, Any]) -> bool:
    return "ms)?$" in f"{node.get('pattern')} {node.get('x-kubernetes-validations')}"


@CASES
def test_everything_that_a_user_writes_has_a_maximum(kind: CustomResource) -> None:
    assert not without_maximum(schema(kind)["properties"]["spec"])


def status_schema(kind: CustomResource) -> dict[str, Any]:
    """Return the schema of the status; what only people write has none."""
    status: dict[str, Any] = schema(kind)["properties"].get("status", {"type": "object"})
    return status


@CASES
def test_every_list_of_a_status_has_a_maximum(kind: CustomResource) -> None:
    status = nodes(status_schema(kind))
    assert not [path for path, node in status if node["type"] == "array" and "maxItems" not in node]


class Unbounded(Wire):
    """A field of every type, each without a maximum."""

    names: tuple[str, ...] = ()
    labels: dict[str, Literal["a"]] | None = None
    timeout: Duration = timedelta()
    count: int = 0


def test_a_field_without_a_maximum_is_found() -> None:
    paths = [".names", ".names[]", ".labels", ".timeout", ".count"]
    assert without_maximum(structural(Unbounded)) == paths


@CASES
def test_a_status_has_no_defaults(kind: CustomResource) -> None:
    assert not [path for path, node in nodes(status_schema(kind)) if "default" in node]


@CASES
def test_every_printer_column_reads_a_field_of_the_schema(kind: CustomResource) -> None:
    fields = {path for path, _ in nodes(schema(kind))} | {".metadata.creationTimestamp"}
    # A condition is read by a filter, which the schema knows as the list alone.
    assert {column.path.split("[")[0] for column in kind.columns} <= fields


@CASES
def test_every_rule_names_its_field_and_says_what_to_do(kind: CustomResource) -> None:
    for path, node in nodes(schema(kind)):
        for rule in node.get("x-kubernetes-validations", ()):
            if node["type"] == "string":  # the API server says the path, and the refused value
                assert rule["message"].startswith("must be "), path
                continue
            assert re.search(r"(?:spec|metadata)\.\w+.*(?:[:;,] | needs | must )", rule["message"])


def test_the_scaling_defaults_are_the_promised_ones() -> None:
    defaults = InferenceServiceSpec.model_validate(
        {"model": {"uri": "hf://a/b"}, "scaling": {}}
    ).model_dump(by_alias=True, mode="json")
    assert defaults["scaling"] == {
        "minReplicas": 2,
        "maxReplicas": 8,
        "queue": {"target": 4},
        "activity": {"target": "0.75"},
        "scaleUp": {"stabilizationWindow": "60s", "pods": 2, "period": "120s"},
        "scaleDown": {"stabilizationWindow": "300s"},
        "idle": None,
        "mode": "Native",
        "schedules": [],
        "policy": "Capacity",
        "paused": None,
    }


@pytest.mark.parametrize(
    "field",
    ["slo.ttftP95", "slo.itlP95", "scaling.queue.target", "scaling.minReplicas", "placement.tiers"],
)
def test_what_the_class_decides_is_not_stored(field: str) -> None:
    (node,) = [
        node
        for path, node in nodes(schema(INFERENCE_SERVICES))
        if path.endswith(f".spec.{field}") or path == f"spec.{field}"
    ]
    assert "spec.class" in node["description"]
    assert "default" not in node


def test_the_shortest_manifest_names_a_model_only() -> None:
    assert InferenceServiceSpec.model_validate({"model": {"uri": "hf://a/b"}}).replicas is None


@pytest.mark.parametrize("text", ["1s", "90s", "5m", "300s", "33ms", "1500ms", "1h"])
def test_durations_keep_their_length(text: str) -> None:
    spec = {"model": {"uri": "hf://a/b"}, "slo": {"ttftP95": text}}
    first = InferenceServiceSpec.model_validate(spec).slo.ttft_p95
    spec["slo"] = {"ttftP95": format_duration(first)}
    assert InferenceServiceSpec.model_validate(spec).slo.ttft_p95 == first


@pytest.mark.parametrize(
    "fields",
    [
        {"drain": {"timeout": "999999h"}},
        {"drain": {"timeout": "1441m"}},
        {"scaling": {"scaleDown": {"stabilizationWindow": "61m"}}},
        {"scaling": {"scaleUp": {"stabilizationWindow": "61m"}}},
        {"scaling": {"scaleUp": {"period": "61m"}}},
    ],
)
def test_durations_that_hold_devices_or_history_are_bounded(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at most"):
        InferenceServiceSpec.model_validate({"model": {"uri": "hf://a/b"}, **fields})


@pytest.mark.parametrize("text", ["", "5", "-3s", "1.5s", "s", "five"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        InferenceServiceSpec.model_validate(
            {"model": {"uri": "hf://a/b"}, "slo": {"ttftP95": text}}
        )


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        (
            "llama-3-1-8b",
            {"InferenceService", "BatchInference", "AcceleratorPool", "ModelProvider"},
        ),
        ("3llama", {"BatchInference", "AcceleratorPool", "ModelProvider"}),
        ("llama-3.1-8b", {"AcceleratorPool"}),
        ("n" * 63, {"InferenceService", "BatchInference", "AcceleratorPool"}),
        ("n" * 64, set[str]()),
    ],
)
def test_a_new_object_may_have_a_name_that_its_children_can_have(
    name: str, kinds: set[str]
) -> None:
    rules = {
        kind.kind: rule["rule"]
        for kind in KINDS
        for rule in schema(kind).get("x-kubernetes-validations", ())
        if rule.get("optionalOldSelf")
    }
    prefix, suffix = "oldSelf.hasValue() || self.metadata.name.matches('", "')"
    assert {
        kind
        for kind, text in rules.items()
        if re.search(text.removeprefix(prefix).removesuffix(suffix), name)
    } == kinds


@pytest.mark.parametrize(
    "path", ["jobs/naïve.jsonl", "my file.jsonl", "./x", ".x", "a//b", "a\n", ""]
)
def test_a_path_that_is_refused_says_what_is_allowed_in_words(path: str) -> None:
    field = schema(BATCH_INFERENCES)["properties"]["spec"]["properties"]["input"]
    (rule,) = field["x-kubernetes-validations"]
    assert "pattern" not in field, "its message would come before the rule is evaluated"
    assert "such as jobs/2026-11/questions.jsonl" in rule["message"]
    pattern = rule["rule"].removeprefix("self.matches('").removesuffix("')")
    assert not re.search(pattern.removesuffix("$") + r"\Z", path)
    assert re.search(pattern, "jobs/2026-11/questions.jsonl")
    with pytest.raises(ValidationError, match="must be a path on the claim, such as jobs/"):
        BatchInferenceSpec(claim_name="c", input=path, output="o.jsonl")


@CASES
def test_a_duration_that_is_refused_says_how_to_write_one(kind: CustomResource) -> None:
    for path, node in nodes(schema(kind)["properties"]["spec"]):
        if is_duration(node):
            assert "pattern" not in node, "its message would come before the rule is evaluated"
            (rule,) = node["x-kubernetes-validations"]
            assert rule["message"].endswith(", written like 33ms, 90s or 1h30m"), path


DIGEST = "#sha256=" + "0a" * 32


@pytest.mark.parametrize(
    "uri",
    [
        "meta-llama/Llama",
        "",
        "s3://models/../llama",
        "s3://models/.hidden",
        "s3://models//llama",
        "s3://key:secret@models/llama",
        "gs://models/llama#sha256=1234",
        "https://models.example/llama",
        f"https://user:password@models.example/llama{DIGEST}",
        f"https://models.example/llama?token=secret{DIGEST}",
        f"https://models.example/%2e%2e/llama{DIGEST}",
        f"ftp://models.example/llama{DIGEST}",
    ],
)
def test_an_address_of_a_model_that_is_refused_says_which_are_allowed_in_words(uri: str) -> None:
    properties = schema(INFERENCE_SERVICES)["properties"]["spec"]["properties"]["model"][
        "properties"
    ]
    for field, example in (
        (properties["uri"], "hf://acme/llama"),
        (properties["adapters"]["items"]["properties"]["uri"], "hf://acme/sql"),
    ):
        (rule,) = field["x-kubernetes-validations"]
        assert "pattern" not in field, "its message would come before the rule is evaluated"
        assert f"such as {example}" in rule["message"]
        pattern = rule["rule"].removeprefix("self.matches('").removesuffix("')")
        assert not re.search(pattern, uri)
        assert re.search(pattern, example)
    with pytest.raises(ValidationError, match="must be hf://organization/name, pvc://claim/path"):
        InferenceServiceSpec.model_validate({"model": {"uri": uri}})


@pytest.mark.parametrize(
    "uri",
    [
        "s3://models/llama",
        f"s3://models/llama-3.1/70b{DIGEST}",
        "gs://models",
        "az://weights/llama",
        f"http://10.0.0.1:8080/llama{DIGEST}",
        f"https://models.example/llama{DIGEST}",
    ],
)
def test_files_of_a_store_are_fetched_to_a_claim_without_being_asked_for(uri: str) -> None:
    adapters = [{"name": "sql", "uri": uri}]
    spec = InferenceServiceSpec.model_validate({"model": {"uri": uri, "adapters": adapters}})
    assert spec.model.is_fetched
