"""Options of `spec.engine` on the command line of the engine and in its pod."""

from typing import Any

import pytest

from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.facts import version_facts
from tests.builders import SMALL, a_spec
from tests.resources.engine_objects import SHAPE, container, deployment

OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "tensorParallelSize": (1, {"tensor_parallel_size": 1}),
    "maxNumSeqs": (7, {"max_num_seqs": 7}),
    "maxNumBatchedTokens": (128, {"max_num_batched_tokens": 128}),
    "gpuMemoryUtilization": ("0.85", {"gpu_memory_utilization": 0.85}),
    "kvCacheDtype": ("fp8_e4m3", {"kv_cache_dtype": "fp8_e4m3"}),
    "blockSize": (32, {"block_size": 32}),
    "kvOffload": ({"size": "1Ti"}, {"kv_offloading_size": 1024.0}),
    "chunkedPrefill": (True, {"enable_chunked_prefill": True}),
    "prefixCaching": (False, {"enable_prefix_caching": False}),
    "expertParallel": (False, {"enable_expert_parallel": False}),
    "reasoningParser": ("deepseek_r1", {"reasoning_parser": "deepseek_r1"}),
    "toolCallParser": ("hermes", {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}),
    "chatTemplate": (
        {"configMapKeyRef": {"name": "templates", "key": "chat.jinja"}},
        {"chat_template": "/chat-template/template.jinja"},
    ),
    "speculation": (
        {"method": "NGram", "tokens": 3},
        {
            "speculative_config": {
                "method": "ngram",
                "num_speculative_tokens": 3,
                "prompt_lookup_max": 4,
                "prompt_lookup_min": 2,
            }
        },
    ),
    "structuredOutputsBackend": (
        "xgrammar",
        {"structured_outputs_config": {"backend": "xgrammar"}},
    ),
}


def parsed_flags(**engine: Any) -> dict[str, Any]:
    """Return the flags of an engine as its own parser reads them."""
    facts = version_facts("0.32.0")
    assert facts is not None
    arguments = container(a_spec(SMALL, engine=engine))["args"]
    assert vllm_flags.check(arguments, facts) == ()
    return dict(vllm_flags.parse(arguments, facts))


@pytest.mark.parametrize("field", OPTIONS)
def test_an_option_that_is_set_is_a_flag_that_the_engine_takes(field: str) -> None:
    value, flags = OPTIONS[field]
    parsed = parsed_flags(**{field: value})
    assert {name: parsed.get(name) for name in flags} == flags


@pytest.mark.parametrize("field", ["kvCacheDtype", "structuredOutputsBackend"])
def test_an_option_that_the_engine_chooses_is_no_flag(field: str) -> None:
    assert parsed_flags(**{field: "Auto"}) == parsed_flags()


@pytest.mark.parametrize("field", OPTIONS)
def test_an_option_changes_nothing_of_the_pod_but_what_it_names(field: str) -> None:
    plain, value = container(a_spec(SMALL)), OPTIONS[field][0]
    changed = container(a_spec(SMALL, engine={field: value}))
    differing = {key for key in plain if plain[key] != changed[key]}
    more = {"kvOffload": {"resources"}, "chatTemplate": {"env", "volumeMounts"}}
    assert differing - {"args"} == more.get(field, set())


@pytest.mark.parametrize(("gib", "more"), [("64", 120), ("4.5", 1), ("4", 0), ("0", 0)])
def test_a_larger_cache_of_media_is_memory_of_the_pod(gib: str, more: int) -> None:
    """vLLM has it in the API server and in the engine, of 4 GiB each by default."""

    def memory(*flags: str) -> int:
        spec = a_spec("hf://google/gemma-3-4b-it", engine={"extraArgs": list(flags)})
        return int(container(spec)["resources"]["requests"]["memory"].removesuffix("Mi"))

    assert memory(f"--mm-processor-cache-gb={gib}") - memory() == more * 1024


def test_offloaded_cache_is_memory_of_the_pod_and_shared_by_its_ranks() -> None:
    def memory(**engine: Any) -> tuple[int, int]:
        pod = deployment(a_spec(SMALL, engine=engine))["spec"]["template"]["spec"]
        request = pod["containers"][0]["resources"]["requests"]["memory"]
        (shm,) = [each["emptyDir"] for each in pod["volumes"] if each["name"] == "shm"]
        return int(request.removesuffix("Mi")), int(shm["sizeLimit"].removesuffix("Mi"))

    plain, offloading = memory(), memory(kvOffload={"size": "24Gi"})
    assert [after - before for before, after in zip(plain, offloading, strict=True)] == [
        24 * 1024,
        24 * 1024,
    ]


def test_a_chat_template_is_mounted_and_its_lack_stops_the_container() -> None:
    """A volume alone would leave the pod creating its container, without a word in its status."""
    spec = a_spec(SMALL, engine={"chatTemplate": OPTIONS["chatTemplate"][0]})
    pod = deployment(spec)["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "chat-template"]
    assert volume["configMap"] == {
        "name": "templates",
        "items": [{"key": "chat.jinja", "path": "template.jinja"}],
        "optional": True,
    }
    (variable,) = [
        each["valueFrom"]["configMapKeyRef"]
        for each in pod["containers"][0]["env"]
        if "configMapKeyRef" in each.get("valueFrom", {})
    ]
    assert variable == {"name": "templates", "key": "chat.jinja"}


@pytest.mark.parametrize(
    ("method", "draft", "config"),
    [
        (
            "DraftModel",
            {"uri": "hf://acme/draft", "revision": "v1"},
            {"method": "draft_model", "model": "acme/draft", "revision": "v1"},
        ),
        (
            "DraftModel",
            {"uri": "pvc://weights/draft"},
            {"method": "draft_model", "model": "/draft/draft"},
        ),
        ("Eagle", {"uri": "hf://acme/EAGLE-1B"}, {"method": "eagle", "model": "acme/EAGLE-1B"}),
        ("Eagle", {"uri": "hf://acme/EAGLE3-1B"}, {"method": "eagle3", "model": "acme/EAGLE3-1B"}),
    ],
)
def test_a_draft_is_named_to_the_engine_by_its_method(
    method: str, draft: dict[str, Any], config: dict[str, Any]
) -> None:
    # As the model itself, so that vocabulary and hidden size agree.
    shape = models()[SMALL.removeprefix("hf://")].model_dump(
        by_alias=True, exclude_none=True, exclude={"model"}
    )
    speculation = {"method": method, "tokens": 2, "model": {**draft, "shape": shape}}
    flags = parsed_flags(speculation=speculation)
    assert flags["speculative_config"] == {**config, "num_speculative_tokens": 2}


def test_the_claim_of_a_draft_is_mounted_beside_the_model() -> None:
    shape = {**SHAPE, "vocabSize": 32_000}
    draft = {"uri": "pvc://drafts/tiny", "shape": {**SHAPE, "parameters": 100_000}}
    spec = a_spec(
        "pvc://weights/tiny",
        model={"shape": shape},
        engine={"speculation": {"method": "DraftModel", "model": draft}},
    )
    pod = deployment(spec)["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "draft"]
    assert volume["persistentVolumeClaim"] == {"claimName": "drafts", "readOnly": True}
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "draft"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/draft", True)


LONG = SHAPE | {"maxPositionEmbeddings": 8192, "derivedPositions": 2048}
ALLOWED = {"name": "VLLM_ALLOW_LONG_MAX_MODEL_LEN", "value": "1"}


@pytest.mark.parametrize(("length", "allowed"), [(8192, [ALLOWED]), (2049, [ALLOWED]), (2048, [])])
def test_an_engine_is_told_of_a_context_that_yarn_extends(
    length: int, allowed: list[dict[str, str]]
) -> None:
    spec = a_spec("hf://acme/long", model={"shape": LONG}, context={"maxModelLen": length})
    engine = container(spec)
    assert f"--max-model-len={length}" in engine["args"]
    assert [each for each in engine["env"] if each["name"] == ALLOWED["name"]] == allowed


def test_a_service_may_say_itself_that_its_context_is_right() -> None:
    own = {"name": ALLOWED["name"], "value": "0"}
    template = {"env": [own]}
    spec = a_spec(
        "hf://acme/long",
        model={"shape": LONG},
        context={"maxModelLen": 8192},
        podTemplate=template,
    )
    assert [each for each in container(spec)["env"] if each["name"] == own["name"]] == [own]
