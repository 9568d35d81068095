"""The CEL rules of the CRDs on parsed objects, where no API server applies them."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from tessera.api.accelerator_pool import COUNT_LABEL, PRODUCT_LABEL, AcceleratorPoolSpec
from tessera.api.meta import DnsSubdomain
from tessera.api.model_files import gibibytes
from tessera.api.tenant_budget import (
    EACH,
    LIMIT_RULES,
    MAX_LIMITS_PER_REQUEST,
    TenantBudgetSpec,
)
from tessera.domain.hardware.node_templates import template_labels
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS

KINDS = {kind.kind: kind.model for kind in (ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS)}
_NAME_RULE = re.compile(r"oldSelf\.hasValue\(\) \|\| self\.metadata\.name\.matches\('(.+)'\)")
_MAX_CACHE_GIB, _MAX_KEY_LENGTH = 16 * 1024, 317
_SUBDOMAIN = TypeAdapter[str](DnsSubdomain)


def _distinct(values: Iterator[object]) -> bool:
    listed = [*values]
    return len(set(listed)) == len(listed)


def _has_template_label(spec: AcceleratorPoolSpec, label: str) -> bool:
    """Return whether selector and labels have the value that a new node has, if they have any."""
    template = spec.node_template
    if template is None:
        return True
    expected = template_labels(spec, template)[label]
    return all(
        labels.get(label, expected) == expected for labels in (spec.node_selector, template.labels)
    )


def _most_matches(spec: TenantBudgetSpec) -> int:
    """Return how many limits of basis Charge hold for one request at most."""
    charges = spec.charge_limits
    parts = Counter(limit.for_.part for _, limit in charges if limit.for_ is not None)

    def most(kind: str) -> int:
        named = (count for part, count in parts.items() if part[0] == kind and part[1] != EACH)
        return parts[kind, EACH] + max(named, default=0)

    senders = max(most("key"), most("user"))
    return len(charges) - parts.total() + senders + sum(map(most, ("team", "service", "model")))


_LIMIT_PREDICATES: tuple[Callable[[TenantBudgetSpec], bool], ...] = (
    lambda spec: _distinct(map(spec.content_of, spec.limits)),
    lambda spec: _distinct(map(spec.name_of, spec.limits)),
    lambda spec: all(limit.tier is None for _, limit in spec.charge_limits),
    lambda spec: all(limit.for_ is None for _, limit in spec.cost_limits),
    lambda spec: _most_matches(spec) <= MAX_LIMITS_PER_REQUEST,
)

# By the text of the rule; those of durations and addresses are checked by their types.
PREDICATES: Mapping[str, Callable[[Any], bool]] = {
    "!has(self.model.revision) || self.model.uri.startsWith('hf://')": lambda spec: (
        spec.model.revision is None or spec.model.uri.startswith("hf://")
    ),
    "!has(self.model.cache) || !has(self.model.cache.type) || self.model.cache.type == 'None' || "
    "!(self.model.uri.startsWith('pvc://') || self.model.uri.startsWith('oci://'))": lambda spec: (
        spec.model.cache.type == "None" or not spec.model.uri.startswith(("pvc://", "oci://"))
    ),
    "!has(self.model.shape) || !has(self.model.shape.activeParameters) || "
    "self.model.shape.activeParameters <= self.model.shape.parameters": lambda spec: (
        spec.model.shape is None
        or spec.model.shape.active_parameters is None
        or spec.model.shape.active_parameters <= spec.model.shape.parameters
    ),
    "!has(self.access) || !has(self.access.aliases) || !has(self.model.adapters) || "
    "!self.model.adapters.exists(a, a.name in self.access.aliases)": lambda spec: (
        not any(adapter.name in spec.access.aliases for adapter in spec.model.adapters)
    ),
    "!has(self.strategy) || self.strategy != 'Gated' || has(self.gateRef)": lambda rollout: (
        rollout.strategy != "Gated" or rollout.gate_ref is not None
    ),
    "!has(self.size) || quantity(self.size).compareTo(quantity('16Ti')) <= 0": lambda cache: (
        cache.size is None or gibibytes(cache.size) <= _MAX_CACHE_GIB
    ),
    "!has(self.labels) || self.labels.all(key, size(key) <= 317)": lambda template: all(
        len(key) <= _MAX_KEY_LENGTH for key in template.labels
    ),
    "!has(self.annotations) || self.annotations.all(key, size(key) <= 317)": lambda template: all(
        len(key) <= _MAX_KEY_LENGTH for key in template.annotations
    ),
    "has(self.uri) || self.precision == 'fp8'": lambda variant: (
        variant.uri is not None or variant.precision == "fp8"
    ),
    "self.method == 'NGram' || has(self.model)": lambda speculation: (
        speculation.method == "NGram" or speculation.model is not None
    ),
    "self.method != 'NGram' || !has(self.model)": lambda speculation: (
        speculation.method != "NGram" or speculation.model is None
    ),
    "!has(self.revision) || (has(self.uri) && self.uri.startsWith('hf://'))": lambda variant: (
        variant.revision is None or str(variant.uri).startswith("hf://")
    ),
    "!has(self.variants) || self.variants.all(v, "
    "self.variants.exists_one(w, w.precision == v.precision))": lambda precision: _distinct(
        variant.precision for variant in precision.variants
    ),
    "!has(self.precision) || !has(self.precision.variants) || "
    "self.precision.variants.all(v, !has(v.uri) || v.uri != self.model.uri)": lambda spec: all(
        variant.uri != spec.model.uri for variant in spec.precision.variants
    ),
    "!has(self.minReplicas) || self.minReplicas > 0 || has(self.idle)": lambda scaling: (
        scaling.min_replicas > 0 or scaling.idle is not None
    ),
    "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas": lambda scaling: (
        scaling.min_replicas <= scaling.max_replicas
    ),
    "double(self.target) > 0.0 && double(self.target) <= 1.0": lambda activity: (
        0 < activity.target <= 1
    ),
    "has(self.value) != has(self.valueFrom)": lambda variable: (
        (variable.value is None) != (variable.value_from is None)
    ),
    "self.prices.all(p, p.currency == self.prices[0].currency)": lambda spec: (
        len({price.currency for price in spec.prices}) == 1
    ),
    "self.prices.all(p, self.prices.exists_one(q, q.from == p.from))": lambda spec: _distinct(
        price.from_ for price in spec.prices
    ),
    "!has(self.nodeTemplate) || !has(self.nodeTemplate.labels) || "
    "self.nodeTemplate.labels.all(k, !(k in self.nodeSelector) || "
    "self.nodeSelector[k] == self.nodeTemplate.labels[k])": lambda spec: (
        spec.node_template is None
        or all(
            spec.node_selector.get(key, value) == value
            for key, value in spec.node_template.labels.items()
        )
    ),
    "!has(self.nodeTemplate) || ((!('nvidia.com/gpu.product' in self.nodeSelector) || "
    "self.nodeSelector['nvidia.com/gpu.product'] == self.nodeTemplate.product) && "
    "(!has(self.nodeTemplate.labels) || "
    "!('nvidia.com/gpu.product' in self.nodeTemplate.labels) || "
    "self.nodeTemplate.labels['nvidia.com/gpu.product'] == "
    "self.nodeTemplate.product))": lambda spec: _has_template_label(spec, PRODUCT_LABEL),
    "!has(self.nodeTemplate) || ((!('nvidia.com/gpu.count' in self.nodeSelector) || "
    "self.nodeSelector['nvidia.com/gpu.count'] == string(self.nodeTemplate.gpus)) && "
    "(!has(self.nodeTemplate.labels) || "
    "!('nvidia.com/gpu.count' in self.nodeTemplate.labels) || "
    "self.nodeTemplate.labels['nvidia.com/gpu.count'] == "
    "string(self.nodeTemplate.gpus)))": lambda spec: _has_template_label(spec, COUNT_LABEL),
    "!has(self.nodeTemplate) || !has(self.nodeTemplate.migLayout) || !has(self.mig) || "
    "!has(self.mig.layout) || size(self.nodeTemplate.migLayout) == 0 || "
    "size(self.mig.layout) == 0 || self.nodeTemplate.migLayout == self.mig.layout": lambda spec: (
        spec.node_template is None
        or spec.mig is None
        or not (spec.node_template.mig_layout and spec.mig.layout)
        or spec.node_template.mig_layout == spec.mig.layout
    ),
    "self.operator != 'Exists' || !has(self.value)": lambda toleration: (
        toleration.operator != "Exists" or toleration.value is None
    ),
    "has(self.key) || self.operator == 'Exists'": lambda toleration: (
        toleration.key is not None or toleration.operator == "Exists"
    ),
    "!has(self.tolerationSeconds) || "
    "(has(self.effect) && self.effect == 'NoExecute')": lambda toleration: (
        toleration.toleration_seconds is None or toleration.effect == "NoExecute"
    ),
    "self.mode == 'Static' || !has(self.layout) || size(self.layout) == 0": lambda mig: (
        mig.mode == "Static" or not mig.layout
    ),
    "[has(self.team), has(self.key), has(self.user), has(self.service), has(self.model)]"
    ".filter(x, x).size() == 1": lambda member: len(member.model_dump(exclude_none=True)) == 1,
    **dict(zip((rule["rule"] for rule in LIMIT_RULES), _LIMIT_PREDICATES, strict=True)),
    "self.tenant.namespaces.all(n, self.tenant.namespaces.exists_one(m, m == n))": lambda spec: (
        _distinct(iter(spec.tenant.namespaces))
    ),
    "!has(self.publishing) || self.publishing.all(g, !has(g.namespaces) || "
    "g.namespaces.all(n, n in self.tenant.namespaces))": lambda spec: all(
        name in spec.tenant.namespaces for grant in spec.publishing for name in grant.namespaces
    ),
    "double(self.weight) >= 0.01 && double(self.weight) <= 1000.0": lambda spec: (
        0.01 <= spec.weight <= 1000
    ),
    "!has(self.gpus) || double(self.gpus) > 0.0": lambda spec: spec.gpus is None or spec.gpus > 0,
}


def broken_rules(value: object) -> Iterator[str]:
    """Yield the messages of the rules that a spec or a part of it breaks."""
    if isinstance(value, BaseModel):
        for rule in rules_of(type(value)):
            predicate = PREDICATES.get(rule["rule"])
            if predicate is not None and not predicate(value):
                yield rule["message"]
        for name in type(value).model_fields:
            yield from broken_rules(getattr(value, name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from broken_rules(part)
    elif isinstance(value, tuple):
        for part in value:
            yield from broken_rules(part)


def name_fault(kind: str, name: str) -> str | None:
    """Return why an object of a kind cannot have this name; None if it can."""
    for rule in rules_of(KINDS[kind]):
        matched = _NAME_RULE.fullmatch(rule["rule"])
        if matched and not re.fullmatch(matched[1].removeprefix("^").removesuffix("$"), name):
            return rule["message"]
    try:
        _SUBDOMAIN.validate_python(name)
    except ValidationError:
        return "metadata.name: use lower-case letters, digits, hyphens and dots"
    return None


def rules_of(model: type[BaseModel]) -> list[dict[str, str]]:
    """Return the CEL rules of a type, without those of its fields' types."""
    extra = model.model_config.get("json_schema_extra")
    rules = extra.get("x-kubernetes-validations", []) if isinstance(extra, dict) else []
    return [rule for rule in rules if isinstance(rule, dict)]  # type: ignore[union-attr,misc]
