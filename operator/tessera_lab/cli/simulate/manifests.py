"""Manifests from files, checked as `kubectl apply` would check them."""

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tessera.api.meta import API_VERSION, GROUP
from tessera.cli.errors import CommandError
from tessera.cli.fleet import FleetInputs
from tessera.cli.snapshot.file import read
from tessera.domain.budget.budgets import zone_fault
from tessera.domain.observed.snapshot import Budget, ObservedService, Pool, Snapshot
from tessera.domain.placement.checks import check, unknown_model_denial

_SUFFIXES = (".yaml", ".yml", ".json")
_PLURALS = {
    "InferenceService": "inferenceservices",
    "AcceleratorPool": "acceleratorpools",
    "TenantBudget": "tenantbudgets",
    "Node": "nodes",
}
_OWN_KINDS = (*_PLURALS, "BatchInference", "NodeLayout")
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
    """Reads dates as strings, as the API server does."""


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
    tiers = {pool.name: pool.spec.tier if pool.spec else None for pool in snapshot.pools}
    for pool in snapshot.pools:
        yield from (f"AcceleratorPool/{pool.name}: {fault}" for fault in _pool_faults(pool))
    for budget in snapshot.budgets:
        yield from (f"TenantBudget/{budget.name}: {fault}" for fault in _budget_faults(budget))
    for service in snapshot.services:
        faults = [*_service_faults(service)]
        if service.spec is not None:
            denials = [*check(service.spec, tiers), unknown_model_denial(service.spec)]
            faults += [denial.sentence for denial in denials if denial is not None]
        yield from (f"InferenceService/{service.ref}: {fault}" for fault in faults)


# Below, the rules of the CRDs on the fields that a simulation uses.


def _service_faults(service: ObservedService) -> Iterator[str]:
    if service.spec is None:
        yield service.problem or "spec: unreadable"
        return
    scaling = service.spec.scaling
    if scaling.min_replicas > scaling.max_replicas:
        yield (
            f"spec.scaling.minReplicas {scaling.min_replicas} must not exceed "
            f"spec.scaling.maxReplicas {scaling.max_replicas}"
        )
    if scaling.min_replicas == 0 and scaling.idle is None:
        yield "spec.scaling.minReplicas 0 needs spec.scaling.idle, for example idle: {after: 10m}"


def _pool_faults(pool: Pool) -> Iterator[str]:
    if pool.spec is None:
        yield pool.problem or "spec: unreadable"
        return
    prices = pool.spec.prices
    if len({price.currency for price in prices}) > 1:
        yield "spec.prices must have the same currency"
    if len({price.from_ for price in prices}) < len(prices):
        yield "spec.prices has two prices with the same first day: keep one of them"


def _budget_faults(budget: Budget) -> Iterator[str]:
    if budget.spec is None:
        yield budget.problem or "spec: unreadable"
        return
    limits = budget.spec.limits
    if len({limit.window for limit in limits}) < len(limits):
        yield "spec.limits has two limits for the same window: keep the smaller one"
    if (fault := zone_fault(budget.spec)) is not None:
        yield fault
