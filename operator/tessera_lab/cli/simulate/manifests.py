"""Manifests from files, checked as `kubectl apply` would check them."""

import json
from collections import defaultdict
from collections.abc import Hashable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from tessera.api.meta import API_VERSION, GROUP
from tessera.cli.errors import CommandError
from tessera.cli.fleet import FleetInputs
from tessera.cli.snapshot.file import read
from tessera.domain.budget.budgets import zone_fault
from tessera.domain.observed.snapshot import Budget, ObservedService, Pool, Snapshot
from tessera.domain.placement.checks import check, unknown_model_denial
from tessera_lab.cli.simulate.crd_rules import broken_rules, name_fault

_SUFFIXES = (".yaml", ".yml", ".json")
_PLURALS = {
    "InferenceService": "inferenceservices",
    "AcceleratorPool": "acceleratorpools",
    "TenantBudget": "tenantbudgets",
    "Node": "nodes",
}
_OWN_KINDS = (*_PLURALS, "BatchInference", "NodeLayout", "PriceList")
_NAMESPACED = "InferenceService"
_DEFAULT_NAMESPACE = "default"
_MAX_FAULTS = 5


def read_objects(path: str, at: datetime) -> Snapshot:
    """Return the objects of a file, of the files in a folder, or of a `tessera snapshot`.

    Raises CommandError for what the API server would refuse.
    """
    try:
        expanded = Path(path).expanduser()
        if expanded.is_dir():
            files = sorted(file for file in expanded.iterdir() if file.suffix in _SUFFIXES)
        else:
            files = [expanded]
        if len(files) == 1 and _is_snapshot(files[0]):
            # The API server has checked them.
            return read(str(files[0]))[0].snapshot
        objects: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for file in files:
            for kind, body in _manifests(file):
                objects[_PLURALS[kind]].append(body)
    except OSError as error:
        raise CommandError(f"--fleet {path}: {error.strerror or error}") from None
    snapshot = FleetInputs(at=at, objects=objects).snapshot
    if faults := [*_faults(snapshot)]:
        more = f"; and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
        raise CommandError(f"--fleet {path}: {'; '.join(faults[:_MAX_FAULTS])}{more}")
    return snapshot


def _is_snapshot(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(200)
    return start.startswith(b"\x1f\x8b") or b'"TesseraSnapshot"' in start


class _Loader(yaml.SafeLoader):
    """Reads dates as strings and refuses duplicate keys, as kubectl does."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key.value}", key.start_mark
                )
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if not resolver[0].endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _manifests(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects that count with their kinds; others are left out."""
    try:
        documents = [*yaml.load_all(file.read_text(encoding="utf-8-sig"), Loader=_Loader)]
        # What JSON cannot hold, the API server never gets.
        documents = json.loads(json.dumps(documents, allow_nan=False))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise CommandError(f"--fleet {file}{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise CommandError(f"--fleet {file}: not YAML: {error}") from None
    for document in documents:
        if document is None:
            continue
        is_list = isinstance(document, dict) and document.get("kind") == "List"
        items = document.get("items") if is_list else [document]
        for body in items if isinstance(items, list) else [items]:
            kind = _kind(file, body)
            if kind in _PLURALS:
                yield kind, _with_metadata(file, kind, body)


def _kind(file: Path, body: Any) -> str:
    if not isinstance(body, dict) or not isinstance(body.get("kind"), str):
        raise CommandError(f"--fleet {file}: an object has no kind: write Kubernetes manifests")
    kind, version = body["kind"], body.get("apiVersion")
    if str(version).partition("/")[0] == GROUP and (
        version != API_VERSION or kind not in _OWN_KINDS or kind == "Node"
    ):
        raise CommandError(f"--fleet {file}: no kind {kind} in {version}; use {API_VERSION}")
    is_counted = version == ("v1" if kind == "Node" else API_VERSION)
    return kind if is_counted else ""


def _with_metadata(file: Path, kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the object as the API server would return it."""
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str) or not name:
        raise CommandError(f"--fleet {file}: {kind} without metadata.name")
    unknown = sorted(body.keys() - {"apiVersion", "kind", "metadata", "spec", "status"})
    if unknown:
        raise CommandError(f"--fleet {file}: {kind}/{name}: unknown field {', '.join(unknown)}")
    defaults: dict[str, Any] = {"uid": name, "labels": {}}
    if kind == _NAMESPACED:
        defaults["namespace"] = _DEFAULT_NAMESPACE
    given = {key: value for key, value in metadata.items() if value is not None}
    return {**body, "metadata": defaults | given}


def _faults(snapshot: Snapshot) -> Iterator[str]:
    """Yield what the types, the rules of the CRDs and the operator's webhook refuse."""
    tiers = {pool.name: pool.spec.tier if pool.spec else None for pool in snapshot.pools}
    for pool in snapshot.pools:
        faults = [name_fault("AcceleratorPool", pool.name), *_spec_faults(pool)]
        yield from (f"AcceleratorPool/{pool.name}: {fault}" for fault in faults if fault)
    for budget in snapshot.budgets:
        faults = [name_fault("TenantBudget", budget.name), *_spec_faults(budget)]
        faults.append(zone_fault(budget.spec) if budget.spec is not None else None)
        yield from (f"TenantBudget/{budget.name}: {fault}" for fault in faults if fault)
    for service in snapshot.services:
        faults = [name_fault("InferenceService", service.ref.name), *_spec_faults(service)]
        if service.spec is not None:
            denials = [*check(service.spec, tiers), unknown_model_denial(service.spec)]
            faults += [denial.sentence for denial in denials if denial is not None]
        yield from (f"InferenceService/{service.ref}: {fault}" for fault in faults if fault)


def _spec_faults(observed: Pool | Budget | ObservedService) -> Iterator[str]:
    if observed.spec is None:
        yield observed.problem or "spec: unreadable"
    else:
        yield from broken_rules(observed.spec)
