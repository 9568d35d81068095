"""The reference page of the flags of `vllm serve` by class; a flag without a class ends it."""

from collections.abc import Iterator

from tessera.domain.vllm.facts import Flag, known_versions, version_facts
from tessera.domain.vllm.flag_classes import FlagClass, flag_rules

PAGE = "docs/reference/flags.md"
_HEAD = """\
# Flags of vLLM

What Tessera does with each flag of `vllm serve` in `spec.engine.extraArgs`, of all
[versions that it knows](../tasks/engine-versions.md). A flag of a new version gets its class with
the version's table: `make lint-code` fails without.
"""
_CLASSES = {
    FlagClass.NEUTRAL: (
        "Neutral",
        "Passed on. Memory, limits and price are right with them; where one changes the speed, the "
        "measured speed of the service contains it.",
        "About",
    ),
    FlagClass.COUNTED: (
        "Counted",
        "Passed on. Sizing, placement and price are computed with their values.",
        "What is counted",
    ),
    FlagClass.SET: ("Set", "Refused, with the name of the field, or of what sets them.", "Set by"),
    FlagClass.REFUSED: (
        "Refused",
        "Refused, since memory, capacity and price would be computed for another engine, or no "
        "client would reach the model. A service that runs with one keeps running, see "
        "[serve](../tasks/serve.md#engine-options).",
        "Why, and what to do instead",
    ),
}


def page() -> str:
    """Return the page."""
    flags = _flags()
    known = {*flags, *(name for name in flag_rules() if name.partition(".")[0] in flags)}
    if missing := sorted(set(flags) - set(flag_rules())):
        raise SystemExit(f"flag-classes.json: no class of {', '.join(missing)}")
    if unknown := sorted(set(flag_rules()) - known):
        raise SystemExit(f"flag-classes.json: no table has {', '.join(unknown)}")
    return _HEAD + "".join(line for each in FlagClass for line in _section(each, flags))


def _flags() -> dict[str, Flag]:
    """The flags of all tables by destination, the newest table first."""
    tables = [facts for version in known_versions() if (facts := version_facts(version))]
    return {flag.dest: flag for table in tables for flag in table.flags}


def _section(flag_class: FlagClass, flags: dict[str, Flag]) -> Iterator[str]:
    by_note: dict[str, list[str]] = {}
    for name, rule in flag_rules().items():
        if rule.flag_class is flag_class:
            by_note.setdefault(rule.note, []).append(_written(name, flags))
    title, text, head = _CLASSES[flag_class]
    yield f"\n## {title}\n\n{text}\n\n| {head} | Flags |\n| --- | --- |\n"
    for note, names in by_note.items():
        yield f"| {note} | {', '.join(names)} |\n"


def _written(name: str, flags: dict[str, Flag]) -> str:
    destination, dot, key = name.partition(".")
    return f"`{flags[destination].name}{dot}{key}`"
