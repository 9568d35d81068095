"""Golden manifests, and what is true of each of them."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tessera.api.template_version import PodTemplateVersionStatus
from tessera.domain.names import (
    APP_INSTANCE,
    APP_NAME,
    APP_VERSION,
    COMPONENT,
    MANAGED_BY,
    PART_OF,
    deployment_name,
    template_deployment_name,
)
from tessera.domain.observed.snapshot import Ref
from tessera.domain.placement.pod_template import ENVIRONMENT
from tessera.domain.planning.service_plan import VariantPlan
from tessera.domain.rollout.drain import DrainPlan
from tessera.domain.service.template_version import template_digest
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.facts import version_facts
from tessera.resources import children
from tests.builders import SMALL, a_pool, a_service, a_snapshot, a_spec, a_workload, plan_of
from tests.resources.engine_objects import (
    SPECS,
    container,
    deployment,
    free_flags,
    objects,
    plan_service,
)

Golden = Callable[[str, list[Any]], None]


@pytest.mark.parametrize("name", SPECS)
def test_the_objects_of_a_service_are_as_reviewed(name: str, golden: Golden) -> None:
    golden(f"service-{name}", [dict(manifest.body) for manifest in objects(SPECS[name])])


def test_a_loader_adds_its_flags_and_requests_its_buffer() -> None:
    plain = container(a_spec(SMALL))
    loader = {"type": "RunaiStreamer", "buffer": "6Gi"}
    loading = container(a_spec(SMALL, engine={"loader": loader}))
    assert [argument for argument in loading["args"] if argument not in plain["args"]] == [
        "--load-format=runai_streamer",
        f'--model-loader-extra-config={{"memory_limit":{6 * 2**30}}}',
    ]
    before, after = (
        int(each["resources"]["requests"]["memory"].removesuffix("Mi")) for each in (plain, loading)
    )
    assert after - before == 6 * 1024


def test_the_objects_of_a_namespace_are_as_reviewed(golden: Golden) -> None:
    (shared,) = children.namespace_owners(plan_service(SPECS["slice"]).service_plans, {})
    manifests = shared.manifests(
        operator_namespace="tessera-system",
        ingress_namespaces=("tessera-system", "monitoring"),
        monitor_labels={},
    )
    golden("namespace", [dict(manifest.body) for manifest in manifests])


def test_a_pod_monitor_has_the_labels_by_which_prometheus_selects_beside_its_own() -> None:
    (shared,) = children.namespace_owners(plan_service(SPECS["slice"]).service_plans, {})
    *_, monitor = shared.manifests(
        operator_namespace="tessera-system",
        ingress_namespaces=("tessera-system",),
        monitor_labels={"release": "stack", "app.kubernetes.io/part-of": "other"},
    )
    labels = monitor.body["metadata"]["labels"]
    assert (monitor.kind.kind, labels["release"]) == ("PodMonitor", "stack")
    assert labels["app.kubernetes.io/part-of"] == "tessera"


def test_each_variant_of_a_plan_has_a_deployment_of_its_own() -> None:
    service_plan = plan_service(SPECS["slice"]).service_plans[Ref("team-a", "chat")]
    (first,) = service_plan.variants
    offer = replace(first.choice.offer, pool="burst", node_selector={"pool": "burst"})
    template = replace(first.template, choice=replace(first.choice, offer=offer))
    second = replace(first, template=template, drain=DrainPlan(replicas=5))
    both = children.service_manifests(replace(service_plan, variants=(first, second)))
    bodies = [manifest.body for manifest in both if manifest.kind.kind == "Deployment"]
    for body, variant in zip(bodies, (first, second), strict=True):
        assert body["metadata"]["name"] == f"chat-{variant.choice.variant}"
        assert body["metadata"]["labels"] == body["spec"]["template"]["metadata"]["labels"]
        assert body["spec"]["selector"]["matchLabels"] == {
            "tessera.dev/service": "chat",
            "tessera.dev/variant": variant.choice.variant,
        }
        assert body["spec"]["replicas"] == variant.replicas
        assert body["spec"]["strategy"]["rollingUpdate"] == NEVER_FEWER
        assert body["spec"]["template"]["spec"]["nodeSelector"].items() >= (
            variant.choice.offer.node_selector.items()
        )
    assert len({body["metadata"]["name"] for body in bodies}) == 2


NEVER_FEWER = {"maxSurge": 1, "maxUnavailable": 0}


def deployment_of(variant: VariantPlan) -> dict[str, Any]:
    """Return the Deployment of a service's only variant, after a decision about it."""
    service_plan = plan_service(SPECS["slice"]).service_plans[Ref("team-a", "chat")]
    manifests = children.service_manifests(replace(service_plan, variants=(variant,)))
    (body,) = (manifest.body for manifest in manifests if manifest.kind.kind == "Deployment")
    return dict(body)


def the_variant() -> VariantPlan:
    (variant,) = plan_service(SPECS["slice"]).service_plans[Ref("team-a", "chat")].variants
    return variant


def test_a_later_template_has_a_deployment_whose_selector_takes_no_pod_of_another_one() -> None:
    variant = the_variant()
    first = deployment_of(variant)
    later = deployment_of(replace(variant, older=(Ref("team-a", first["metadata"]["name"]),)))
    digest, label = variant.template.digest, "tessera.dev/template"
    assert later["metadata"]["name"] == template_deployment_name(
        "chat", variant.choice.variant, digest
    )
    assert later["metadata"]["name"] != first["metadata"]["name"]
    template_labels = later["spec"]["template"]["metadata"]["labels"]
    selector = later["spec"]["selector"]["matchLabels"]
    assert later["metadata"]["labels"] == template_labels
    assert template_labels[label] == selector[label] == digest
    assert selector.items() <= template_labels.items()
    assert label not in first["spec"]["template"]["metadata"]["labels"]
    assert first["spec"]["strategy"]["rollingUpdate"] == NEVER_FEWER
    assert later["spec"]["strategy"]["rollingUpdate"] == NEVER_FEWER
    assert later["spec"]["revisionHistoryLimit"] == 0


def test_the_template_after_a_later_one_has_the_first_name_again_which_tessera_0_1_knows() -> None:
    variant = the_variant()
    later = template_deployment_name("chat", variant.choice.variant, "0123456789abcdef")
    third = deployment_of(replace(variant, older=(Ref("team-a", later),)))
    assert third == deployment_of(variant)


@pytest.mark.parametrize("digest", ["", "0123456789abcdef"])
def test_a_deployment_that_exists_keeps_name_and_selector_while_older_ones_go(digest: str) -> None:
    """Neither may change: a selector is immutable."""
    variant = the_variant()
    name = (
        template_deployment_name("chat", variant.choice.variant, digest)
        if digest
        else deployment_name("chat", variant.choice.variant)
    )
    workload = a_workload(1, variant=variant.choice.variant, template_digest=digest)
    workload = replace(workload, ref=Ref("team-a", name))
    variant = replace(variant, template=replace(variant.template, workload=workload))
    for older in ((), (Ref("team-a", "chat-before"),)):
        body = deployment_of(replace(variant, older=older))
        assert body["metadata"]["name"] == name
        selector = body["spec"]["selector"]["matchLabels"]
        assert selector.get("tessera.dev/template", "") == digest


def test_a_deployment_says_what_its_template_was_made_from() -> None:
    variant = the_variant()
    record = deployment_of(variant)["metadata"]["annotations"]["tessera.dev/template-record"]
    read = PodTemplateVersionStatus.model_validate_json(record)
    assert read == variant.template.record
    assert template_digest(read) == variant.template.digest


def test_a_deployment_of_an_older_tessera_goes_on_in_place() -> None:
    body = deployment_of(replace(the_variant(), rolls_in_place=True))
    assert body["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_a_closed_service_is_reached_by_gateways_the_operator_and_prometheus_alone() -> None:
    spec = a_spec(access={"direct": False})
    (shared,) = children.namespace_owners(plan_service(spec).service_plans, {})
    manifests = shared.manifests(
        operator_namespace="tessera-system",
        ingress_namespaces=("tessera-system", "monitoring"),
        monitor_labels=None,
    )
    # The policy of closed services comes first: without any policy everybody would be admitted.
    closed, others, _ = (
        manifest.body for manifest in manifests if manifest.kind.kind == "NetworkPolicy"
    )
    assert closed["metadata"]["name"] == "tessera-engine-closed"
    for policy, operator in ((closed, "In"), (others, "NotIn")):
        assert policy["spec"]["podSelector"] == {
            "matchLabels": {"app.kubernetes.io/component": "engine"},
            "matchExpressions": [
                {"key": "tessera.dev/service", "operator": operator, "values": ["chat"]}
            ],
        }
    (rule,) = closed["spec"]["ingress"]
    processes, prometheus = rule["from"]
    (chosen,) = processes["podSelector"]["matchExpressions"]
    assert chosen["values"] == ["tessera-gateway", "tessera-operator"]
    namespace = {"matchLabels": {"kubernetes.io/metadata.name": "tessera-system"}}
    assert processes["namespaceSelector"] == namespace
    assert prometheus == {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    }
    assert rule["ports"] == [{"port": 8000, "protocol": "TCP"}]


@pytest.mark.parametrize("name", SPECS)
def test_every_object_has_the_recommended_labels_and_no_selector_a_version(name: str) -> None:
    (shared,) = children.namespace_owners(plan_service(SPECS[name]).service_plans, {})
    namespaced = shared.manifests(
        operator_namespace="tessera-system",
        ingress_namespaces=("tessera-system",),
        monitor_labels={},
    )
    template = deployment(SPECS[name])["spec"]["template"]
    for body in (template, *(manifest.body for manifest in (*objects(SPECS[name]), *namespaced))):
        labels, spec = body["metadata"]["labels"], body.get("spec", {})
        assert {APP_NAME, APP_INSTANCE, COMPONENT, PART_OF, MANAGED_BY} <= set(labels)
        assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,63}", value) for value in labels.values())
        assert APP_VERSION not in str([spec.get("selector"), spec.get("podSelector")])


def test_the_version_is_that_of_the_engines_also_where_a_newer_tessera_has_another() -> None:
    """The pinned default stays in the pod's labels, so an upgrade restarts no engine."""
    service_plan = plan_service(SPECS["slice"]).service_plans[Ref("team-a", "chat")]
    (variant,) = service_plan.variants
    record = variant.template.record
    values = record.effective_values.model_copy(update={"engine_version": "0.31.0"})
    record = record.model_copy(update={"effective_values": values})
    template = replace(variant.template, record=record)
    pinned = replace(service_plan, variants=(replace(variant, template=template),))
    manifests = children.service_manifests(pinned)
    (body,) = [manifest.body for manifest in manifests if manifest.kind.kind == "Deployment"]
    for metadata in (body["metadata"], body["spec"]["template"]["metadata"]):
        assert metadata["labels"][APP_VERSION] == "0.31.0"


@pytest.mark.parametrize("name", SPECS)
def test_every_engine_is_restricted(name: str) -> None:
    pod = deployment(SPECS[name])["spec"]["template"]["spec"]
    security = pod["containers"][0]["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)


@pytest.mark.parametrize("name", SPECS)
def test_every_engine_gets_flags_that_its_version_takes(name: str) -> None:
    table = version_facts("0.32.0")
    assert table is not None
    assert vllm_flags.check(container(SPECS[name])["args"], table) == ()


@pytest.mark.parametrize("name", SPECS)
def test_every_flag_that_is_set_is_reserved(name: str) -> None:
    table = version_facts("0.32.0")
    assert table is not None
    assert free_flags(container(SPECS[name])["args"], table) == set()


def test_adapters_are_loaded_by_every_engine_from_the_hub_or_their_claim() -> None:
    engine = container(SPECS["adapters"])
    table = version_facts("0.32.0")
    assert table is not None
    flags = vllm_flags.parse(engine["args"], table)
    assert list(flags["lora_modules"]) == ["sql=acme/sql-lora", "tone=/adapters/tone/tone"]
    assert (flags["enable_lora"], flags["max_loras"], flags["max_lora_rank"]) == (True, 2, 32)
    assert {"name": "adapter-tone", "mountPath": "/adapters/tone", "readOnly": True} in engine[
        "volumeMounts"
    ]


def test_the_grace_outlasts_pre_stop_and_drain() -> None:
    pod = deployment(SPECS["claim"])["spec"]["template"]["spec"]
    pre_stop = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] == pre_stop + 90 + 10
    assert "--shutdown-timeout=90" in pod["containers"][0]["args"]


@pytest.mark.parametrize(("tier", "seconds"), [("Reserved", 30), ("OnDemand", 30), ("Spot", 5)])
def test_a_replica_on_a_silent_node_is_given_up_soon_and_on_spot_sooner(
    tier: str, seconds: int
) -> None:
    spec = a_spec(SMALL, placement={"pools": ["a100"]}, **{"class": "Batch"})
    fleet_plan = plan_of(a_snapshot(a_service(spec=spec), pools=(a_pool(tier=tier),)))
    manifests = children.service_manifests(fleet_plan.service_plans[Ref("team-a", "chat")])
    (manifest,) = [manifest for manifest in manifests if manifest.kind.kind == "Deployment"]
    tolerations = manifest.body["spec"]["template"]["spec"]["tolerations"]
    silent = {
        toleration["key"]: toleration["tolerationSeconds"]
        for toleration in tolerations
        if toleration["effect"] == "NoExecute"
    }
    assert silent == {
        "node.kubernetes.io/not-ready": seconds,
        "node.kubernetes.io/unreachable": seconds,
    }


def test_the_hub_token_is_in_no_argument() -> None:
    engine = container(SPECS["tensor-parallel"])
    (token,) = [variable for variable in engine["env"] if variable["name"] == "HF_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert not any("hub" in argument for argument in engine["args"])


def test_every_variable_that_is_set_is_reserved() -> None:
    set_by_us = {variable["name"] for variable in container(SPECS["tensor-parallel"])["env"]}
    assert set_by_us <= set(ENVIRONMENT)


def test_additions_reach_the_pods_and_change_nothing_else() -> None:
    plain, own = (deployment(SPECS[name])["spec"] for name in ("slice", "own-additions"))
    assert own["selector"] == plain["selector"]
    metadata = own["template"]["metadata"]
    assert metadata["labels"] == plain["template"]["metadata"]["labels"] | {"cost-centre": "4711"}
    assert metadata["annotations"] == {"owner": "anna"}
    added = own["template"]["spec"]["containers"][0]["env"][-2:]
    assert added == [
        {"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"},
        {"name": "TRACE_KEY", "valueFrom": {"secretKeyRef": {"name": "trace", "key": "token"}}},
    ]


def test_the_environment_has_no_mig_id() -> None:
    names = {variable["name"] for spec in SPECS.values() for variable in container(spec)["env"]}
    assert not names & {"CUDA_VISIBLE_DEVICES", "VLLM_SERVER_DEV_MODE", "NVIDIA_VISIBLE_DEVICES"}


def test_equal_plans_make_equal_objects() -> None:
    first, second = plan_service(SPECS["slice"]), plan_service(SPECS["slice"])
    ref = Ref("team-a", "chat")
    assert children.service_inputs(first.service_plans[ref]) == children.service_inputs(
        second.service_plans[ref]
    )
