import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.vllm.facts import EngineFacts, Flag, known_versions, version_facts
from tessera.domain.vllm.flags import (
    PASSES_PARSER,
    FlagProblemKind,
    check,
    defaults,
    parse,
)


def _known() -> EngineFacts:
    table = version_facts("0.32.0")
    assert table is not None
    return table


TABLE = _known()


def test_the_default_version_is_known_and_others_are_not() -> None:
    assert "0.32.0" in known_versions()
    assert version_facts("0.1.0") is None


@pytest.mark.parametrize(
    ("option", "dest", "value"),
    [
        ("--enable-sleep-mode", "enable_sleep_mode", True),
        ("--no-enable-sleep-mode", "enable_sleep_mode", False),
        ("--disable-sleep-mode", "enable_sleep_mode", False),
        ("--disable_sleep_mode", "enable_sleep_mode", False),
        ("--disable-cascade-attn", "disable_cascade_attn", True),
        ("--no-disable-cascade-attn", "disable_cascade_attn", False),
        ("--enable-cascade-attn", "disable_cascade_attn", False),
        ("--disable-log-stats", "disable_log_stats", True),
        ("--async-scheduling", "async_scheduling", True),
        ("--no-async-scheduling", "async_scheduling", False),
    ],
)
def test_enable_and_disable_are_each_others_opposite_since_0_33(
    option: str, dest: str, value: bool
) -> None:
    table = version_facts("0.33.0")
    assert table is not None
    assert check([option], table) == ()
    assert parse([option], table) == {dest: value}


def test_the_model_is_the_positional_argument() -> None:
    parsed = parse(["org/model", "--port", "8000"], TABLE)
    assert parsed == {"model_tag": "org/model", "port": 8000}


@pytest.mark.parametrize(
    ("args", "dest", "value"),
    [
        (["--max-num-seqs", "64"], "max_num_seqs", 64),
        (["--max-num-seqs=64"], "max_num_seqs", 64),
        (["--max_num_seqs=64"], "max_num_seqs", 64),
        (["--max-model-len", "8k"], "max_model_len", 8000),
        (["--max-model-len", "8K"], "max_model_len", 8192),
        (["--max-model-len", "25.6k"], "max_model_len", 25_600),
        (["--max-model-len", "2M"], "max_model_len", 2 * 2**20),
        (["--max-model-len", "auto"], "max_model_len", -1),
        (["--max-model-len", "-1"], "max_model_len", -1),
        (["--enable-prefix-caching"], "enable_prefix_caching", True),
        (["--no-enable-prefix-caching"], "enable_prefix_caching", False),
        (["--no_enable_prefix_caching"], "enable_prefix_caching", False),
        (["--disable-log-stats"], "disable_log_stats", True),
        (["-tp", "2"], "tensor_parallel_size", 2),
        (["-tp=2"], "tensor_parallel_size", 2),
        (["-qfp8"], "quantization", "fp8"),
        (["-O3"], "optimization_level", "3"),
        (["-O", "3"], "optimization_level", "3"),
        (["-O=3"], "optimization_level", "3"),
        (["--served-model-name", "a", "b"], "served_model_name", ("a", "b")),
        (["--middleware", "x", "--middleware", "y"], "middleware", ["x", "y"]),
        (["--quantization", "None"], "quantization", None),
        (["--moe-backend", "Deep-GEMM"], "moe_backend", "deep_gemm"),
        (["--hf-overrides", '{"a": 1}'], "hf_overrides", {"a": 1}),
        (["--hf-overrides", "module.function"], "hf_overrides", "module.function"),
        (
            ["--speculative-config", '{"method": "ngram"}'],
            "speculative_config",
            {"method": "ngram"},
        ),
        (["-sc.num_speculative_tokens", "3"], "speculative_config", {"num_speculative_tokens": 3}),
        (
            ["--speculative_config.method=ngram", "--speculative-config.a.b", "x"],
            "speculative_config",
            {"method": "ngram", "a": {"b": "x"}},
        ),
        (["-cc.sizes+", "1", "-cc.sizes+", "2"], "compilation_config", {"sizes": [1, 2]}),
    ],
)
def test_values_are_read_as_the_engine_reads_them(
    args: list[str], dest: str, value: object
) -> None:
    assert check(args, TABLE) == ()
    assert parse(args, TABLE) == {dest: value}


@pytest.mark.parametrize(
    ("args", "kind", "said"),
    [
        (["--max-num-seq", "4"], FlagProblemKind.ABBREVIATED, "--max-num-seqs"),
        (["--kv-cache", "4"], FlagProblemKind.AMBIGUOUS, "--kv-cache-dtype"),
        (["--max-num-sequences", "4"], FlagProblemKind.UNKNOWN, "did you mean --max-num-seqs?"),
        (["--frobnicate"], FlagProblemKind.UNKNOWN, "vllm serve 0.32.0 has no option --frobnicate"),
        (
            ["--disable-sleep-mode"],
            FlagProblemKind.UNKNOWN,
            "has no option --disable-sleep-mode, but 0.33.0 has; remove it, or set "
            "spec.engine.version to such a version",
        ),
        (["--num-scheduler-steps", "8"], FlagProblemKind.REMOVED, "remove it"),
        (["--disable-log-requests"], FlagProblemKind.REMOVED, "--enable-log-requests"),
        (["--device", "cuda"], FlagProblemKind.REMOVED, "remove it"),
        (["--swap-space", "4"], FlagProblemKind.RENAMED, "spec.engine.kvOffload"),
        (["--speculative_model", "x"], FlagProblemKind.RENAMED, "spec.engine.speculation"),
        (["--guided-decoding-backend=x"], FlagProblemKind.RENAMED, "structuredOutputsBackend"),
        (["--port"], FlagProblemKind.MISSING_VALUE, "--port VALUE"),
        (["--port", "--headless"], FlagProblemKind.MISSING_VALUE, "--port VALUE"),
        (["--served-model-name"], FlagProblemKind.MISSING_VALUE, "--served-model-name"),
        (["--enforce-eager=true"], FlagProblemKind.UNEXPECTED_VALUE, "'true'"),
        (["a", "b"], FlagProblemKind.UNEXPECTED_ARGUMENT, "a is named already"),
        (["--port", "http"], FlagProblemKind.BAD_VALUE, "--port http: expected a whole number"),
        (["--max-num-seqs", "8k"], FlagProblemKind.BAD_VALUE, "--max-num-seqs 8k"),
        (["--max-model-len", "2.5K"], FlagProblemKind.BAD_VALUE, "write k or a whole one"),
        (["--max-model-len", "long"], FlagProblemKind.BAD_VALUE, "8k or 8K"),
        (["--gpu-memory-utilization", "most"], FlagProblemKind.BAD_VALUE, "expected a number"),
        (["--dtype", "int4"], FlagProblemKind.BAD_VALUE, "bfloat16"),
        (["--speculative-config", "{method}"], FlagProblemKind.BAD_VALUE, "expected JSON"),
        (["--port.number", "1"], FlagProblemKind.UNKNOWN, "only JSON flags"),
        (
            ["--speculative-config.method"],
            FlagProblemKind.MISSING_VALUE,
            "--speculative-config.method VALUE",
        ),
        (
            ["--gpu-memory-utilization", "1.5"],
            FlagProblemKind.OUT_OF_RANGE,
            "above 0 and at most 1",
        ),
        (
            ["--max-num-seqs", "-1"],
            FlagProblemKind.OUT_OF_RANGE,
            "--max-num-seqs -1: must be at least 1",
        ),
        (["--shutdown-timeout=-5"], FlagProblemKind.OUT_OF_RANGE, "at least 0"),
    ],
)
def test_a_wrong_argument_is_named_with_what_to_do(
    args: list[str], kind: FlagProblemKind, said: str
) -> None:
    [problem] = check(args, TABLE)
    assert problem.kind is kind
    assert said in problem.message


def test_every_wrong_argument_is_reported_in_order() -> None:
    args = ["org/model", "--swap-space", "4", "--max-num-seqs=0", "--task", "generate", "--dtype=x"]
    kinds = [problem.kind for problem in check(args, TABLE)]
    assert kinds == [
        FlagProblemKind.RENAMED,
        FlagProblemKind.OUT_OF_RANGE,
        FlagProblemKind.RENAMED,
        FlagProblemKind.BAD_VALUE,
    ]


def test_what_the_parser_lets_pass_still_has_its_value() -> None:
    args = ["--max-num-seq", "4", "--gpu-memory-utilization", "1.5", "--port", "x"]
    assert parse(args, TABLE) == {"max_num_seqs": 4, "gpu_memory_utilization": 1.5}
    passing = [problem.kind in PASSES_PARSER for problem in check(args, TABLE)]
    assert passing == [True, True, False]


def test_defaults_are_distinguished_from_what_was_given() -> None:
    assert parse([], TABLE) == {}
    assert defaults(TABLE)["gpu_memory_utilization"] == 0.92
    assert "max_num_seqs" not in defaults(TABLE)


def _numbers(flag: Flag) -> st.SearchStrategy[str]:
    low = flag.ge if flag.ge is not None else 0 if flag.gt is None else flag.gt + 0.5
    high = flag.le if flag.le is not None else low + 100 if flag.lt is None else flag.lt - 0.5
    if flag.type == "float":
        return st.floats(low, min(high, low + 100)).map(str)
    return st.integers(math.ceil(low), int(high)).map(str)


def _texts(flag: Flag) -> st.SearchStrategy[str]:
    """Valid values of a flag as texts."""
    if flag.choices is not None:
        return st.sampled_from([str(choice) for choice in flag.choices])
    if flag.type in ("json", "jsonOrText"):
        return st.sampled_from(["{}", '{"a": 1}'])
    if flag.type in ("int", "float", "size", "sizeOrAuto"):
        return _numbers(flag)
    return st.text("abc/._", min_size=1)


@st.composite
def _usage(draw: st.DrawFn) -> Sequence[str]:
    """One flag of the table with a valid value, written in one of the allowed ways."""
    flag = draw(st.sampled_from([flag for flag in TABLE.flags if flag.options]))
    option = draw(st.sampled_from(flag.options))
    if option.startswith("--") and draw(st.booleans()):
        option = "--" + option.removeprefix("--").replace("-", "_")
    if flag.action in ("switch", "help"):
        return [option]
    value = draw(_texts(flag))
    return [f"{option}={value}"] if draw(st.booleans()) else [option, value]


@given(_usage())
def test_every_flag_of_the_table_passes_with_a_valid_value(args: Sequence[str]) -> None:
    assert check(args, TABLE) == ()


@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_words_at_all_are_judged_without_a_crash(args: list[str]) -> None:
    assert all(problem.message for problem in check(args, TABLE))
