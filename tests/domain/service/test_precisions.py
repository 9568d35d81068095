"""Precisions with files of their own: read, compared, chosen by price, served and explained."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_files import ModelShape
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.explain.explain import explain
from tessera.domain.hardware.gpu_catalog import models, products
from tessera.domain.model.config import read_config
from tessera.domain.model.precision_files import with_files_of
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot, Workload
from tessera.domain.perf.footprint import resident_bytes
from tessera.domain.placement.candidates import hardware_candidates
from tessera.domain.service.preparation.shape import with_known_files
from tessera.domain.sizing import prices
from tessera.domain.sizing.precision import UnsupportedPrecision
from tessera.domain.sizing.precision_check import files_mismatch
from tessera.domain.sizing.table import smallest_serving_rows
from tessera.domain.status.service import service_status
from tessera.resources.children import service_manifests
from tests.builders import (
    A100,
    LARGE,
    MEDIUM,
    NOW,
    a_model_job,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
)
from tests.domain.model.test_config import config_of, expect_shape

CHAT = Ref("team-a", "chat")
AWQ_FILES = "hf://acme/llama-70b-awq"
COMMIT = "a" * 40
BOOK = prices.price_book(prices.ASSUMED, prices.list_prices(), NOW.date())
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
LISTED = {"variants": [{"precision": "awq-int4", "uri": AWQ_FILES}]}


def a_70b(**fields: Any) -> ObservedService:
    spec = {"precision": LISTED, "scaling": {"minReplicas": 1}, **fields}
    return a_service(spec=a_spec(LARGE, **spec))


def files(
    quantization: Mapping[str, Any] | None = AWQ, base: str = LARGE, **keys: Any
) -> ModelShape:
    """The dimensions of files of a model, read from their config.json."""
    quantized = {} if quantization is None else {"quantization_config": quantization}
    return expect_shape(read_config(config_of(base.removeprefix("hf://"), **quantized, **keys)))


def read(
    service: ObservedService, shape: ModelShape | None = None, index: int = 0, **fields: Any
) -> dict[str, Any]:
    """The Job that read the files of a variant, which found this shape."""
    assert service.spec is not None
    variant = service.spec.precision.variants[index]
    located = replace(service, spec=with_files_of(variant, service.spec, None))
    if shape is not None:
        dimensions = shape.model_dump(by_alias=True, exclude_none=True, mode="json")
        fields = {"report": {"ok": True, "shape": dimensions, "commit": COMMIT}, "exit_code": 0}
    return a_model_job("shape", located, **fields)


def fleet(*services: ObservedService, gpus: int = 8, **parts: Any) -> Snapshot:
    price = str((BOOK.hourly[A100]).rounded(4))
    return a_snapshot(
        *services,
        **{
            "pools": (a_pool("a100", price),),
            "nodes": (a_node("a100", whole=gpus),),
            **parts,
        },
    )


def status_of(snapshot: Snapshot) -> InferenceServiceStatus:
    return service_status(snapshot, plan_of(snapshot).service_plans[CHAT], None, None)


def chosen_variant(snapshot: Snapshot) -> str | None:
    choice = plan_of(snapshot).service_plans[CHAT].choice
    return choice.variant if choice is not None else None


def condition(snapshot: Snapshot, kind: str) -> tuple[str, str]:
    (entry,) = [each for each in status_of(snapshot).conditions if each.type == kind]
    return entry.reason, entry.message


def refusal(snapshot: Snapshot) -> str:
    """Return why the listed files are not used, as it is explained."""
    row: str = dict(decisions(snapshot)["precision"].numbers)["awq-int4"]
    return row.partition("; not used: ")[2]


def engine_arguments(snapshot: Snapshot) -> list[str]:
    manifests = service_manifests(plan_of(snapshot).service_plans[CHAT])
    (deployment,) = [each for each in manifests if each.body["kind"] == "Deployment"]
    arguments: list[str] = deployment.body["spec"]["template"]["spec"]["containers"][0]["args"]
    return arguments


def test_a_new_service_waits_until_the_files_of_its_precisions_are_read() -> None:
    snapshot = fleet(a_70b())
    service_plan = plan_of(snapshot).service_plans[CHAT]
    assert service_plan.preparation is not None
    job = service_plan.preparation.job_to_create
    assert job is not None
    assert (job.task, job.spec.model.uri) == ("shape", AWQ_FILES)
    assert condition(snapshot, "Accepted")[0] == "ReadingModel"
    assert service_plan.choice is None


def test_files_that_match_are_chosen_where_they_are_cheaper_and_pinned() -> None:
    snapshot = fleet(a_70b(), **read(a_70b(), files()))
    (entry,) = status_of(snapshot).precisions
    assert chosen_variant(snapshot) == "a100-2gpu-awq-int4"
    assert (entry.reason, entry.revision) == ("FilesMatch", COMMIT)


def test_engines_load_the_files_that_were_read_and_quantize_nothing() -> None:
    arguments = engine_arguments(fleet(a_70b(), **read(a_70b(), files())))
    assert arguments[0] == "acme/llama-70b-awq"
    assert f"--revision={COMMIT}" in arguments
    assert not [each for each in arguments if each.startswith("--quantization")]


def test_the_commit_stays_when_the_job_is_gone() -> None:
    status = status_of(fleet(a_70b(), **read(a_70b(), files())))
    snapshot = fleet(replace(a_70b(), status=status))
    assert f"--revision={COMMIT}" in engine_arguments(snapshot)
    preparation = plan_of(snapshot).service_plans[CHAT].preparation
    assert preparation is not None
    assert preparation.job_to_create is None


def test_the_job_of_a_variant_goes_once_the_status_has_what_it_found() -> None:
    parts = read(a_70b(), files())
    status = status_of(fleet(a_70b(), **parts))
    preparation = (
        plan_of(fleet(replace(a_70b(), status=status), **parts)).service_plans[CHAT].preparation
    )
    assert preparation is not None
    assert preparation.obsolete_jobs == (parts["model_jobs"][0].ref,)


def test_an_update_has_the_files_read_again_and_keeps_the_commit_until_then() -> None:
    status = status_of(fleet(a_70b(), **read(a_70b(), files())))
    updated = replace(a_70b(), status=status, update="2026-11-20")
    snapshot = fleet(updated)
    preparation = plan_of(snapshot).service_plans[CHAT].preparation
    assert preparation is not None
    assert preparation.job_to_create is not None
    assert f"--revision={COMMIT}" in engine_arguments(snapshot)
    running_job = replace(
        read(updated)["model_jobs"][0], ref=Ref("team-a", preparation.job_to_create.name)
    )
    reading = plan_of(fleet(updated, model_jobs=(running_job,))).service_plans[CHAT]
    assert reading.preparation is not None
    assert reading.preparation.job_to_create is None
    # Its pod is no input of the plan, so that every cycle looks for it.
    assert reading.is_moving


def test_explain_and_size_agree_on_the_dollars_of_each_precision() -> None:
    listed = {"variants": [{"precision": "fp8"}, *LISTED["variants"]]}
    service = a_70b(precision=listed)
    snapshot = fleet(service, **read(service, files(), index=1))
    rows = dict(decisions(snapshot)["precision"].numbers)
    shape = models()[LARGE.removeprefix("hf://")]
    (candidate, *_) = hardware_candidates(a_spec(LARGE), shape, offers(snapshot))
    sized = smallest_serving_rows(
        candidate.demand, [products()[A100]], (None, "fp8", "awq-int4"), BOOK
    )
    expected = {row.label: row.per_million.formatted(2) for row in sized if row.per_million}
    assert expected == {"bf16": "8.25 USD", "fp8": "5.27 USD", "awq-int4": "4.93 USD"}
    prices_explained = {name: f"{float(text.split()[0]):.2f} USD" for name, text in rows.items()}
    assert prices_explained == expected
    assert rows["awq-int4"].endswith("chosen")
    assert rows["bf16"].endswith("a replica costs more")


@pytest.mark.parametrize(("runner", "tokens"), [("Auto", "output"), ("Pooling", "input")])
def test_the_dollars_of_a_precision_are_of_the_tokens_that_its_model_is_priced_by(
    runner: str, tokens: str
) -> None:
    service = a_70b(precision={"variants": [{"precision": "fp8"}]}, engine={"runner": runner})
    explained = decisions(fleet(service))
    assert f"prices are of 1M {tokens} tokens" in explained["precision"].message
    assert explained["sizing"].numbers[-3][0] == f"{tokens} tok/s"


def decisions(snapshot: Snapshot) -> dict[str, Any]:
    return {decision.topic: decision for decision in explain(snapshot, plan_of(snapshot), CHAT)}


def offers(snapshot: Snapshot) -> list[Any]:
    return [offer for view in plan_of(snapshot).pools for offer in view.offers]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (files(None), "quantization none instead of awq or int4"),
        (files(GPTQ), "quantization gptq instead of awq or int4"),
        (files({**AWQ, "group_size": 48}), "group_size 48 instead of 128, 64, 32, -1"),
        (files(AWQ, MEDIUM), "num_hidden_layers 32 instead of 80"),
        (files(AWQ, vocab_size=128_000), "vocab_size 128000 instead of 128256"),
        (files(AWQ, "hf://Qwen/Qwen2.5-72B-Instruct"), "model_type qwen2 instead of llama"),
        (files(AWQ, max_position_embeddings=4096), "max_position_embeddings 4096 for requests of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_do_not_match_are_left_out_alone_with_the_numbers(
    shape: ModelShape, words: str
) -> None:
    snapshot = fleet(a_70b(), **read(a_70b(), shape))
    (entry,) = status_of(snapshot).precisions
    assert entry.reason == "FilesMismatch"
    assert words in refusal(snapshot)
    assert f"name files of {LARGE} in awq-int4" in refusal(snapshot)
    assert chosen_variant(snapshot) == "a100-8gpu"
    reason, message = condition(snapshot, "Accepted")
    assert reason == "PrecisionRefused"
    assert words in message


def test_overrides_hold_for_the_files_of_a_precision_too() -> None:
    service = a_70b(engine={"extraArgs": ["--hf-overrides.max_position_embeddings=131072"]})
    snapshot = fleet(service, **read(service, files(AWQ, max_position_embeddings=4096)))
    (entry,) = status_of(snapshot).precisions
    assert entry.reason == "FilesMatch"


@pytest.mark.parametrize(
    ("model", "runner", "quantized", "difference"),
    [
        (None, "Auto", None, None),
        (None, "Auto", "Classify", "pooling Classify instead of none"),
        (None, "Auto", "Embed", "pooling Embed instead of none"),
        (None, "Pooling", "Embed", None),
        ("Embed", "Auto", None, None),
        ("Embed", "Generate", "Embed", None),
        ("Score", "Auto", None, "pooling none instead of Score"),
        ("Score", "Auto", "Score", None),
    ],
)
def test_files_of_a_precision_return_what_the_model_returns(
    model: str | None, runner: str, quantized: str | None, difference: str | None
) -> None:
    shape = models()[LARGE.removeprefix("hf://")].model_copy(update={"pooling": model})
    described = shape.model_dump(by_alias=True, exclude_none=True, exclude={"model"})
    service = a_70b(model={"shape": described}, engine={"runner": runner})
    snapshot = fleet(service, **read(service, files().model_copy(update={"pooling": quantized})))
    [entry] = status_of(snapshot).precisions
    assert entry.reason == ("FilesMatch" if difference is None else "FilesMismatch")
    assert (difference or "") in refusal(snapshot)
    assert bool(refusal(snapshot)) == bool(difference)


@pytest.mark.parametrize(("words", "reason"), [(128_256, "FilesMatch"), (128_000, "FilesMismatch")])
def test_files_of_a_precision_have_the_vocabulary_of_the_draft(words: int, reason: str) -> None:
    shape = models()[LARGE.removeprefix("hf://")].model_copy(update={"vocab_size": None})
    described = shape.model_dump(by_alias=True, exclude_none=True, exclude={"model"})
    draft = {"method": "DraftModel", "model": {"uri": MEDIUM}}
    service = a_70b(model={"shape": described}, engine={"speculation": draft})
    [entry] = status_of(fleet(service, **read(service, files(vocab_size=words)))).precisions
    assert entry.reason == reason


def test_the_dollars_of_a_refused_precision_are_explained_with_the_reason() -> None:
    snapshot = fleet(a_70b(), **read(a_70b(), files(AWQ, vocab_size=128_000)))
    row = dict(decisions(snapshot)["precision"].numbers)["awq-int4"]
    assert row.startswith("4.93")
    assert "not used: config.json of" in row


def test_files_that_are_not_there_yet_are_said_and_the_service_goes_on() -> None:
    report = {"ok": False, "message": "404 Client Error: Not Found for https://hub/config.json"}
    snapshot = fleet(a_70b(), **read(a_70b(), report=report, exit_code=3))
    (entry,) = status_of(snapshot).precisions
    assert entry.reason == "FilesNotRead"
    assert "hf://acme/llama-70b-awq" in refusal(snapshot)
    assert "kubectl tessera update chat" in refusal(snapshot)
    assert chosen_variant(snapshot) == "a100-8gpu"


def test_a_new_service_waits_two_minutes_for_a_job_that_is_held_up() -> None:
    failed = read(a_70b(), report={"ok": False, "message": "503"}, exit_code=1)
    new = replace(a_70b(), created=at(-119))
    assert "503" in plan_of(fleet(new, **failed)).service_plans[CHAT].accepted.message
    assert chosen_variant(fleet(new, **failed)) is None
    snapshot = fleet(replace(new, created=at(-120)), **failed)
    (entry,) = status_of(snapshot).precisions
    assert entry.reason == "ReadingFiles"
    assert "503" in refusal(snapshot)
    assert chosen_variant(snapshot) == "a100-8gpu"


def running(variant: str, gpus: int, replicas: int = 1) -> dict[str, Any]:
    workload: Workload = a_workload(replicas, variant=variant)
    pods = tuple(
        a_pod(
            f"chat-{index}",
            variant=variant,
            node="a100-0",
            devices={"nvidia.com/gpu": gpus},
        )
        for index in range(replicas)
    )
    return {"workloads": (workload,), "pods": pods}


def test_a_running_service_changes_to_cheaper_files_once_there_is_room_beside_it() -> None:
    status = status_of(fleet(a_70b(), **read(a_70b(), files())))
    service = replace(a_70b(), status=status)
    full = fleet(service, **running("a100-8gpu", 8))
    assert chosen_variant(full) == "a100-8gpu"
    roomy = fleet(replace(service, status=status_of(full)), **running("a100-8gpu", 8))
    roomy = replace(roomy, nodes=(*roomy.nodes, a_node("a100", whole=8, name="a100-1")))
    service_plan = plan_of(roomy).service_plans[CHAT]
    assert chosen_variant(roomy) == "a100-2gpu-awq-int4"
    # 924 tokens per second of one replica in bf16 are those of three in AWQ.
    assert service_plan.scale.replicas == 3


def test_a_running_service_waits_for_its_precision_to_be_read_again() -> None:
    snapshot = fleet(a_70b(), **running("a100-2gpu-awq-int4", 2))
    assert condition(snapshot, "Accepted")[0] == "ReadingModel"
    assert chosen_variant(snapshot) is None


def test_a_running_service_goes_on_while_another_precision_is_read() -> None:
    snapshot = fleet(a_70b(), **running("a100-8gpu", 8))
    assert chosen_variant(snapshot) == "a100-8gpu"
    assert status_of(snapshot).precisions[0].reason == "ReadingFiles"


def test_a_precision_that_is_no_longer_listed_is_left() -> None:
    status = status_of(fleet(a_70b(), **read(a_70b(), files())))
    service = replace(a_70b(precision={}), status=status)
    assert chosen_variant(fleet(service, **running("a100-2gpu-awq-int4", 2))) == "a100-8gpu"
    assert status_of(fleet(service)).precisions == ()


def test_batches_and_gateways_know_what_was_read_from_the_status() -> None:
    status = status_of(fleet(a_70b(), **read(a_70b(), files())))
    spec = with_known_files(replace(a_70b(), status=status)).spec
    assert spec is not None
    assert [variant.revision for variant in spec.precision.variants] == [COMMIT]
    unread = with_known_files(a_70b()).spec
    assert unread is not None
    assert unread.precision.variants == ()


def test_another_file_of_a_variant_is_another_pod_template() -> None:
    first = fleet(a_70b(), **read(a_70b(), files()))
    other_files = {"variants": [{"precision": "awq-int4", "uri": "hf://acme/other-awq"}]}
    other = a_70b(precision=other_files)
    second = fleet(other, **read(other, files()))
    templates = [plan_of(each).service_plans[CHAT].template for each in (first, second)]
    assert templates[0] is not None
    assert templates[1] is not None
    assert templates[0].record.template_hash != templates[1].record.template_hash


def test_the_cache_fetches_the_files_of_the_chosen_precision_at_the_commit_that_was_read() -> None:
    cache = {"model": {"cache": {"type": "PersistentVolumeClaim"}}}
    parts = read(a_70b(**cache), files())
    (claim,) = plan_of(fleet(a_70b(**cache), **parts)).service_plans[CHAT].claims
    claims = {claim.ref: VolumeClaim(access_modes=("ReadWriteMany",))}
    snapshot = fleet(a_70b(**cache), claims=claims, **parts)
    service_plan = plan_of(snapshot).service_plans[CHAT]
    preparation = service_plan.preparation
    assert preparation is not None
    assert preparation.job_to_create is not None
    job = preparation.job_to_create
    assert (job.task, job.spec.model.uri, job.spec.model.revision) == ("fetch", AWQ_FILES, COMMIT)
    assert preparation.missing_files is not None
    assert AWQ_FILES in preparation.missing_files.message
    kinds = {manifest.body["kind"] for manifest in service_manifests(service_plan)}
    assert "Deployment" not in kinds


def test_files_on_a_claim_are_mounted_and_the_cache_of_the_model_is_not_used() -> None:
    on_claim = {"variants": [{"precision": "awq-int4", "uri": "pvc://weights/70b-awq"}]}
    fields = {"precision": on_claim, "model": {"cache": {"type": "PersistentVolumeClaim"}}}
    service = a_70b(**fields)
    parts = read(service, files())
    (deployment,) = [
        manifest.body
        for manifest in service_manifests(plan_of(fleet(service, **parts)).service_plans[CHAT])
        if manifest.body["kind"] == "Deployment"
    ]
    pod = deployment["spec"]["template"]["spec"]
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert claims == ["weights"]
    assert pod["containers"][0]["args"][0] == "/models/70b-awq"


@pytest.mark.parametrize(
    ("precision", "product", "runs"),
    [
        ("awq-int4", "NVIDIA-A100-SXM4-80GB", True),
        ("nvfp4", "NVIDIA-A100-SXM4-80GB", True),
        ("nvfp4", "Tesla-T4", False),
        ("fp8", "Tesla-T4", False),
        ("int8", "NVIDIA-B200", False),
    ],
)
def test_a_precision_that_hardware_does_not_run_is_no_choice(
    precision: str, product: str, *, runs: bool
) -> None:
    variant = {"precision": precision, "uri": "hf://acme/small"}
    spec = a_spec(MEDIUM, precision={"variants": [variant]})
    snapshot = a_snapshot(nodes=(a_node("a100", whole=1, product=product),))
    shape = models()[MEDIUM.removeprefix("hf://")]
    fits = [
        candidate.fit
        for candidate in hardware_candidates(spec, shape, offers(snapshot))
        if candidate.demand.precision == precision
    ]
    assert fits
    assert all(isinstance(fit, UnsupportedPrecision) is not runs for fit in fits)


def files_bytes(model: str, precision: str) -> int:
    """Return the bytes that files of a shipped model have in another precision."""
    plain = {"quantization": None, "bits_per_weight": 16, "group_size": None, "weight_bytes": None}
    return resident_bytes(models()[model].model_copy(update=plain), precision)


@given(st.sampled_from(sorted(models())), st.sampled_from(["awq-int4", "fp8"]))
def test_files_of_the_same_model_match_it(model: str, precision: Any) -> None:
    quantization = AWQ if precision == "awq-int4" else {"quant_method": "fp8"}
    shape = models()[model]
    config = {**config_of(model), "quantization_config": quantization}
    same = read_config(config, files_bytes(model, precision))
    assert isinstance(same, ModelShape)
    assert files_mismatch(precision, same, shape, 512) is None


@given(st.sampled_from(sorted(models())), st.sampled_from(sorted(models())))
def test_files_of_another_model_never_match_unless_they_have_its_dimensions(
    model: str, other: str
) -> None:
    config = {**config_of(other), "quantization_config": AWQ}
    read_shape = read_config(config, files_bytes(other, "awq-int4"))
    assert isinstance(read_shape, ModelShape)
    same = files_mismatch("awq-int4", read_shape, models()[model], 512) is None
    dimensions = {"layers", "attention_heads", "kv_heads", "head_dim", "architecture", "vocab_size"}
    first, second = (models()[name].model_dump(include=dimensions) for name in (model, other))
    assert not same or first == second


@st.composite
def any_shape(draw: st.DrawFn) -> ModelShape:
    """Files of any model, in any format or none, some with numbers that no model has."""
    model = models()[draw(st.sampled_from(sorted(models())))]
    number = st.none() | st.integers(1, 10**6)
    changes = {
        "quantization": draw(
            st.sampled_from([None, "awq", "gptq", "int4", "int8", "fp8", "nvfp4"])
        ),
        "bits_per_weight": draw(st.sampled_from([4, 8, 16])),
        "group_size": draw(st.none() | st.integers(1, 65_536)),
        "weight_bytes": draw(st.none() | st.integers(1, 10**14)),
        "vocab_size": draw(st.just(model.vocab_size) | number),
    }
    fields = model.model_dump(exclude={"model"}) | changes
    return ModelShape.model_validate(fields)


@given(st.lists(st.none() | any_shape(), min_size=3, max_size=3), st.sampled_from([1, 2, 8]))
def test_whatever_jobs_read_only_files_that_match_are_chosen(
    shapes: list[ModelShape | None], gpus: int
) -> None:
    listed = [
        {"precision": precision, "uri": f"hf://acme/{precision}"}
        for precision in ("awq-int4", "fp8", "nvfp4")
    ]
    service = a_70b(precision={"variants": listed})
    parts = [
        read(service, shape, index) if shape is not None else read(service, None, index)
        for index, shape in enumerate(shapes)
    ]
    snapshot = fleet(
        service,
        gpus=gpus,
        model_jobs=tuple(part["model_jobs"][0] for part in parts),
        pods=tuple(part["pods"][0] for part in parts),
    )
    status = status_of(snapshot)
    assert condition(snapshot, "Accepted")[0] != "PlannerError"
    choice = plan_of(snapshot).service_plans[CHAT].choice
    precision = choice.fit.precision if choice is not None else None
    chosen = [entry for entry in status.precisions if entry.precision == precision]
    assert all(entry.reason == "FilesMatch" and entry.shape in shapes for entry in chosen)
    assert "precision" in decisions(snapshot)
