"""Flags in `spec.engine.extraArgs` that sizing cannot count."""

import pytest

from tessera.api.reasons import Accepted
from tessera.domain.placement.checks import RESERVED, UNCOUNTED, check
from tessera.domain.vllm.facts import Flag, known_versions, version_facts
from tests.builders import a_spec

UNKNOWN = "0.99.0"


def flag_of(name: str) -> Flag:
    facts = version_facts(known_versions()[-1])
    assert facts is not None
    [flag] = [flag for flag in facts.flags if flag.dest == name]
    return flag


def value_of(flag: Flag) -> str:
    if flag.choices:
        return str(flag.choices[-1])
    return "{}" if flag.type in ("json", "jsonOrText") else "1"


def spellings(flag: Flag) -> list[list[str]]:
    """Return all ways to write a flag."""
    long = {option[2:] for option in flag.options if option.startswith("--")}
    options = {*flag.options, *(f"--{name.replace('-', '_')}" for name in long)}
    if flag.action == "switch":
        return [[option] for option in sorted(options)]
    value = value_of(flag)
    forms = [form for option in options for form in ([option, value], [f"{option}={value}"])]
    if flag.type == "json":
        forms += [[f"{option}.method", "x"] for option in options]
    return sorted(forms)


@pytest.mark.parametrize("version", [known_versions()[-1], UNKNOWN])
@pytest.mark.parametrize("name", UNCOUNTED)
def test_a_flag_that_changes_memory_or_speed_is_refused_however_it_is_written(
    name: str, version: str
) -> None:
    for arguments in spellings(flag_of(name)):
        denials = check(a_spec(engine={"version": version, "extraArgs": arguments}), {})
        assert [denial.reason for denial in denials] == [Accepted.RESERVED_FLAG], arguments
        [sentence] = [denial.sentence for denial in denials]
        assert f"extraArgs: remove --{name.replace('_', '-')}, which " in sentence
        assert "computed for another engine (" in sentence


def test_a_flag_has_one_reason_to_be_refused() -> None:
    assert not set(RESERVED) & set(UNCOUNTED)


def test_the_runner_is_set_by_its_field_alone() -> None:
    [denial] = check(a_spec(engine={"extraArgs": ["--runner=pooling"]}), {})
    assert "remove --runner; it is set by spec.engine.runner" in denial.sentence
