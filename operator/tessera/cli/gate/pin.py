"""`tessera gate pin`: digest and counts of a suite, for `spec.suite` of its gate."""

from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from tessera.api.text import counted
from tessera.batch_runner.errors import BatchError
from tessera.batch_runner.gate.suite import read_suite
from tessera.cli.cluster import Reader, check_status, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.files import read_text, writable_file
from tessera.cli.output import Output
from tessera.domain.kinds.kinds import QUALITY_GATES


def run(arguments: SimpleNamespace) -> Output:
    """Write digest and counts into the gate or its manifest, or print them as a patch."""
    if arguments.gate is not None and arguments.manifest is not None:
        raise CommandError("choose --gate, which patches the object, or --manifest, not both")
    if arguments.gate is not None:
        return patch_gate(arguments)
    pin = read_pin(arguments.suite)
    if arguments.manifest is None:
        return Output(yaml.safe_dump({"spec": {"suite": pin}}, sort_keys=False))
    path = writable_file("--manifest", arguments.manifest)
    text = read_text("--manifest", arguments.manifest)
    try:
        path.write_text(pinned_manifest(text, pin), encoding="utf-8")
    except (ValueError, yaml.YAMLError) as error:
        raise CommandError(f"--manifest {arguments.manifest}: {error}") from error
    return Output(f"{arguments.manifest}: {_summary(pin)}\n")


def read_pin(name: str) -> dict[str, Any]:
    """Return digest and counts of the suite in a file; CommandError if it cannot judge."""
    try:
        suite = read_suite(Path(name).expanduser())
    except BatchError as error:
        raise CommandError(str(error)) from error
    return {"digest": suite.digest, "prompts": suite.counts}


@cluster_command
async def patch_gate(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Patch the gate."""
    return await pin_gate(reader, arguments.gate, read_pin(arguments.suite))


async def pin_gate(reader: Reader, name: str, pin: dict[str, Any]) -> Output:
    """Patch a gate; the API server refuses fewer prompts, and another digest, without a right."""
    subject, path = f"QualityGate/{name}", QUALITY_GATES.path(reader.namespace, name)
    body = await reader.get(path)
    if body is None:
        raise CommandError(
            f"{subject} not found in {reader.namespace}; tessera gate show lists all"
        )
    before = body.get("spec", {}).get("suite", {}).get("prompts", {})
    # A merge leaves what is not named.
    suite = {**pin, "prompts": {**dict.fromkeys(before), **pin["prompts"]}}
    version = body["metadata"].get("resourceVersion")
    patch = {"metadata": {"resourceVersion": version}, "spec": {"suite": suite}}
    status, answer = await reader.patch(path, patch)
    if status == HTTPStatus.CONFLICT:
        raise CommandError(f"{subject} was changed meanwhile; run the command again")
    check_status(status, answer, f"patch {subject}", subject)
    return Output(f"{subject}: {_summary(pin)}\n")


def pinned_manifest(text: str, pin: dict[str, Any]) -> str:
    """Return the text of a manifest with the pin in the suite of its only QualityGate.

    The rest stays as it is, comments too. ValueError says why there is no place for it.
    """
    suites = [
        suite
        for document in yaml.compose_all(text, yaml.CSafeLoader)
        if (kind := _child(document, "kind")) is not None
        and kind.value == QUALITY_GATES.kind
        and isinstance(suite := _child(_child(document, "spec"), "suite"), yaml.MappingNode)
    ]
    if len(suites) != 1:
        raise ValueError(f"has {counted(len(suites), 'QualityGate')} with spec.suite, not 1")
    (suite,) = suites
    if suite.flow_style:
        begin, end = suite.start_mark.index, suite.end_mark.index
        value = yaml.load(text[begin:end], yaml.CSafeLoader) | pin
        return text[:begin] + _flow(value) + text[end:]
    replaced = {
        line
        for key, value in suite.value
        if key.value in pin
        for line in range(key.start_mark.line, _last_line(value) + 1)
    }
    place = min(replaced, default=suite.start_mark.line)
    indent = " " * suite.start_mark.column
    entries = [f"{indent}{name}: {_flow(value)}\n" for name, value in pin.items()]
    lines = [*enumerate(text.splitlines(keepends=True))]
    before = [line for number, line in lines if number < place]
    after = [line for number, line in lines if number >= place and number not in replaced]
    return "".join([*before, *entries, *after])


def _flow(value: Any) -> str:
    """Return a value in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _last_line(node: yaml.Node) -> int:
    """Return the last line of a node: the end of a block lies behind the comments after it."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _last_line(node.value[-1][1])
    return node.end_mark.line


def _child(node: yaml.Node | None, name: str) -> Any:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)


def _summary(pin: dict[str, Any]) -> str:
    prompts = sum(pin["prompts"].values())
    strata = counted(len(pin["prompts"]), "stratum", "strata")
    return f"pinned {counted(prompts, 'prompt')} in {strata}, digest {pin['digest'][:12]}"
