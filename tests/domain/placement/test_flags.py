"""Flags in `spec.engine.extraArgs`: each has a class, and what cannot be counted is refused."""

from typing import Any

import pytest

import flags_page
from tessera.api.reasons import Accepted
from tessera.domain.placement.checks import check
from tessera.domain.vllm import flag_classes
from tessera.domain.vllm.facts import Flag, known_versions, version_facts
from tessera.domain.vllm.flag_classes import FlagClass, FlagRule, flag_rules
from tessera.domain.vllm.outdated_flags import OLD_FLAGS
from tests.builders import a_spec

UNKNOWN = "0.99.0"
REFUSED = [name for name, rule in flag_rules().items() if rule.flag_class is FlagClass.REFUSED]


def refusals(*arguments: str, version: str = "0.32.0") -> list[str]:
    denials = check(a_spec(engine={"version": version, "extraArgs": arguments}), {})
    assert {denial.reason for denial in denials} <= {Accepted.RESERVED_FLAG}
    return [denial.message for denial in denials]


def value_of(flag: Flag) -> str:
    if flag.choices:
        return str(flag.choices[-1])
    if flag.type in ("json", "jsonOrText"):
        return "{}"
    return "0" if flag.lt is not None else "1"


def spellings(flag: Flag) -> list[list[str]]:
    """Return all ways to write a flag."""
    long = {option[2:] for option in flag.options if option.startswith("--")}
    options = {*flag.options, *(f"--{name.replace('-', '_')}" for name in long)}
    if flag.action in ("switch", "help"):
        return [[option] for option in sorted(options)]
    value = value_of(flag)
    forms = [form for option in options for form in ([option, value], [f"{option}={value}"])]
    if flag.type == "json":
        forms += [[f"{option}.method", "x"] for option in options]
    return sorted(forms)


@pytest.mark.parametrize("version", known_versions())
def test_every_flag_of_a_table_has_one_class(version: str) -> None:
    facts = version_facts(version)
    assert facts is not None
    assert {flag.dest for flag in facts.flags} <= set(flag_rules())


def test_a_flag_without_a_class_and_a_class_without_a_flag_end_the_lint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = dict(flag_rules())
    for changed, message in (
        ({name: rules[name] for name in rules if name != "dtype"}, "no class of dtype"),
        ({**rules, "unheard": FlagRule(FlagClass.NEUTRAL, "")}, "no table has unheard"),
    ):
        monkeypatch.setattr(flags_page, "flag_rules", lambda changed=changed: changed)
        with pytest.raises(SystemExit, match=message):
            flags_page.page()
    with pytest.raises(ValueError, match="dtype has two classes"):
        flag_classes.parse_rules({FlagClass.NEUTRAL: {"a": ["dtype"], "b": ["dtype"]}})


@pytest.mark.parametrize("version", [*known_versions(), UNKNOWN])
def test_a_flag_that_is_counted_nowhere_is_refused_however_it_is_written(version: str) -> None:
    table = version_facts(version) or version_facts(known_versions()[-1])
    assert table is not None
    tried = 0
    for flag in table.flags:
        if flag.dest not in REFUSED:
            continue
        for arguments in spellings(flag):
            [message] = refusals(*arguments, version=version)
            assert message.startswith(f"--{flag.dest.replace('_', '-')} "), arguments
            assert "; " in message
            tried += 1
    assert tried > 400


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cpu-offload-gb=4"], "keeps weights in CPU memory"),
        (["--data-parallel-rank=0"], "set spec.replicas or spec.scaling"),
        (["--mamba-cache-dtype=float32"], "state that Mamba layers keep"),
        (["--enable-eplb"], "set spec.engine.expertParallel"),
        (["--kv-transfer-config={}"], "spec.engine.kvOffload"),
        (["--skip-mm-profiling"], "--limit-mm-per-prompt"),
        (["--ssl-keyfile=a"], "HTTP within the cluster"),
        (["--stream-interval=10"], "measured ITL"),
        (["--dtype=float32"], "write bfloat16 or float16"),
        (["--mm-processor-kwargs.device=cuda"], "runs the image processor on the GPU"),
        (["-cc.cudagraph_specialize_lora=true"], "changes which graphs are captured"),
    ],
)
def test_a_refusal_says_why_and_what_to_write(arguments: list[str], says: str) -> None:
    [message] = refusals(*arguments)
    assert says in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dtype=bfloat16"],
        ["--dtype=half"],
        ["--enforce-eager"],
        ["--attention-backend=FLASHINFER"],
        ["--max-logprobs=5"],
        ["--mm-processor-kwargs.max_pixels=1048576"],
        ["--limit-mm-per-prompt.image=2"],
        ["-cc.pass_config.fuse_allreduce_rms=true"],
        ["--trust-remote-code", "--seed=1"],
    ],
)
def test_a_neutral_or_counted_flag_is_accepted(arguments: list[str]) -> None:
    assert refusals(*arguments) == []


def test_the_advice_on_an_old_flag_leads_to_what_is_accepted() -> None:
    rules = {f"--{name.replace('_', '-')}": rule for name, rule in flag_rules().items()}
    fields: dict[str, Any] = {rule.note: rule for rule in rules.values()}
    for old in OLD_FLAGS.values():
        if old.replacement is not None and old.replacement.startswith("--"):
            assert rules[old.replacement].flag_class in (FlagClass.NEUTRAL, FlagClass.COUNTED)
        elif old.replacement is not None:
            assert old.replacement in fields


def test_the_runner_is_set_by_its_field_alone() -> None:
    assert refusals("--runner=pooling") == [
        "remove --runner; it is set by spec.engine.runner (vLLM 0.32.0)"
    ]
