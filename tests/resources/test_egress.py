"""What engines fetch and where they connect to: by their flags, and by their NetworkPolicy."""

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.api.engine_egress import EngineEgress
from tessera.api.reasons import Accepted
from tessera.api.ref import Ref
from tessera.api.template_version import Platform, PodTemplateVersion
from tessera.domain.config import Config
from tessera.domain.placement.checks import check
from tessera.domain.vllm import flags as vllm_flags
from tessera.domain.vllm.facts import known_versions, version_facts
from tessera.resources import children
from tessera.resources.defaults import newest_version
from tessera.resources.model_job import model_job_manifest
from tessera.resources.runner import RunnerImage
from tests.builders import a_service, a_snapshot, a_spec, plan_of
from tests.resources.engine_objects import SPECS, plan_service

HUB = "https://hub.mirror.svc"
PROXY = "http://proxy.example:3128"


def engine_container(builder_version: int, **spec: Any) -> dict[str, Any]:
    snapshot = a_snapshot(a_service(spec=a_spec(**spec)))
    plan = plan_of(snapshot, config=Config(builder_version=builder_version))
    (body,) = [
        manifest.body
        for manifest in children.service_manifests(plan.service_plans[Ref("team-a", "chat")])
        if manifest.kind.kind == "Deployment"
    ]
    container: dict[str, Any] = body["spec"]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize("version", known_versions())
@pytest.mark.parametrize(
    ("listed", "allowed"),
    [
        (None, ("media.invalid",)),
        ([], ("media.invalid",)),
        (["a.example"], ("a.example",)),
        (["a.example", "cdn.b.example"], ("a.example", "cdn.b.example")),
    ],
)
def test_an_engine_fetches_media_from_listed_hosts_alone_and_follows_no_redirect(
    listed: list[str] | None, allowed: tuple[str, ...], version: str
) -> None:
    engine = {"version": version, "extraArgs": ["--max-logprobs=5"]}
    if listed is not None:
        engine["allowedMediaDomains"] = listed
    container = engine_container(newest_version(), engine=engine)
    table = version_facts(version)
    assert table is not None
    assert vllm_flags.check(container["args"], table) == ()
    flags = vllm_flags.parse(container["args"], table)
    assert (flags["allowed_media_domains"], flags["max_logprobs"]) == (allowed, 5)
    assert {"name": "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "value": "0"} in container["env"]


def test_an_upgrade_leaves_engines_that_run_as_they_are() -> None:
    before = engine_container(1)
    assert not [arg for arg in before["args"] if "media" in arg]
    assert not [variable for variable in before["env"] if "MEDIA" in variable["name"]]


@pytest.mark.parametrize("version", [known_versions()[-1], "0.99.0"])
def test_a_flag_or_variable_of_ones_own_is_refused_with_the_field(version: str) -> None:
    for arguments in (
        ["--allowed-media-domains", "a.example", "b.example"],
        ["--allowed_media_domains=a.example"],
    ):
        (denial,) = check(a_spec(engine={"version": version, "extraArgs": arguments}), {})
        assert denial.reason is Accepted.RESERVED_FLAG
        assert "it is set by spec.engine.allowedMediaDomains" in denial.message
    variable = {"name": "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "value": "1"}
    (denial,) = check(a_spec(podTemplate={"env": [variable]}), {})
    assert "redirects lead away from" in denial.message


@pytest.mark.parametrize(
    "host",
    [
        "*.example.org",
        "10.0.0.7",
        "169.254.169.254",
        "[::1]",
        "::1",
        "2130706433",
        "0x7f.1",
        "Example.org",
        "example.org:8080",
        "https://example.org",
        "example.org/a",
        "a@example.org",
        "example.org.",
        "-a.example",
        "",
        "a" * 300,
    ],
)
def test_a_media_host_is_a_whole_name(host: str) -> None:
    with pytest.raises(ValidationError):
        a_spec(engine={"allowedMediaDomains": [host]})


def test_the_list_of_media_hosts_has_a_bound() -> None:
    names = [f"a{number}.example" for number in range(33)]
    assert a_spec(engine={"allowedMediaDomains": names[:32]}).engine.allowed_media_domains
    with pytest.raises(ValidationError):
        a_spec(engine={"allowedMediaDomains": names})


@dataclass(frozen=True, slots=True)
class Target:
    """What an engine may want to reach."""

    address: str
    port: int
    namespace: str | None = None
    """Of a pod; None for what is none."""
    protocol: str = "TCP"


def egress_policy(egress: EngineEgress, platform: Platform | None = None) -> dict[str, Any]:
    (shared,) = children.namespace_owners(plan_service(SPECS["slice"]).service_plans, {})
    manifests = shared.manifests(
        operator_namespace="tessera-system",
        ingress_namespaces=("tessera-system",),
        monitor_labels=None,
        egress=egress,
        platform=platform or Platform(),
    )
    (body,) = [each.body for each in manifests if each.name == "tessera-engine-egress"]
    return dict(body["spec"])


def admits(policy: dict[str, Any], target: Target) -> bool:
    """Return what a network plugin does that takes pods for no addresses, as Cilium."""
    return any(
        ("ports" not in rule or {"port": target.port, "protocol": target.protocol} in rule["ports"])
        and ("to" not in rule or any(_is_peer(peer, target) for peer in rule["to"]))
        for rule in policy["egress"]
    )


def _is_peer(peer: dict[str, Any], target: Target) -> bool:
    if "namespaceSelector" in peer:
        wanted = peer["namespaceSelector"].get("matchLabels", {}).values()
        return target.namespace is not None and set(wanted) <= {target.namespace}
    address = ip_address(target.address)
    outside = [ip_network(each) for each in peer["ipBlock"].get("except", ())]
    return (
        target.namespace is None
        and address in ip_network(peer["ipBlock"]["cidr"])
        and not any(address in network for network in outside)
    )


NAMES = Target("10.96.0.10", 53, "kube-system", "UDP")
NAMES_OF_NODE = Target("169.254.20.10", 53, protocol="UDP")
PUBLIC_HUB = Target("18.155.1.2", 443)
PUBLIC_HUB_6 = Target("2600:9000::1", 443)
API_SERVER = Target("10.0.0.1", 6443)
METADATA = Target("169.254.169.254", 80)
METADATA_6 = Target("fd00:ec2::254", 80)
METADATA_BY_NAT64 = Target("64:ff9b::a9fe:a9fe", 80)
METADATA_BY_LOCAL_NAT64 = Target("64:ff9b:1::a9fe:a9fe", 8080)
METADATA_OF_GOOGLE_6 = Target("fd20:ce::254", 80)
METADATA_OF_ALIBABA = Target("100.100.100.200", 80)
WIRE_SERVER_OF_AZURE = Target("168.63.129.16", 80)
NODE = Target("192.168.1.4", 10250)
DATABASE = Target("10.4.1.9", 5432, "data")
MIRROR = Target("10.4.1.8", 443, "mirror")
PRIVATE_PROXY = Target("10.20.0.5", 3128)
STORAGE = Target("10.20.0.6", 9000)
COLLECTOR = Target("10.4.2.2", 4318, "monitoring")
ALL = {
    NAMES,
    NAMES_OF_NODE,
    PUBLIC_HUB,
    PUBLIC_HUB_6,
    API_SERVER,
    METADATA,
    METADATA_6,
    METADATA_BY_NAT64,
    METADATA_BY_LOCAL_NAT64,
    METADATA_OF_GOOGLE_6,
    METADATA_OF_ALIBABA,
    WIRE_SERVER_OF_AZURE,
    NODE,
    DATABASE,
    MIRROR,
    PRIVATE_PROXY,
    STORAGE,
    COLLECTOR,
}
USUAL = {NAMES, NAMES_OF_NODE, PUBLIC_HUB, PUBLIC_HUB_6}


@pytest.mark.parametrize(
    ("values", "platform", "reached"),
    [
        ({}, {}, USUAL),
        ({}, {"hubEndpoint": HUB}, USUAL | {MIRROR}),
        ({}, {"hubEndpoint": "http://hub.mirror.svc"}, USUAL),
        ({}, {"httpsProxy": PROXY}, USUAL | {PRIVATE_PROXY}),
        ({"networks": ["10.20.0.0/16"]}, {}, USUAL | {PRIVATE_PROXY, STORAGE}),
        ({"namespaces": ["monitoring"]}, {}, USUAL | {COLLECTOR}),
        ({"restricted": False}, {}, ALL),
    ],
)
def test_engines_of_services_reach_names_and_public_addresses_and_what_is_listed(
    values: dict[str, Any], platform: dict[str, Any], reached: set[Target]
) -> None:
    policy = egress_policy(EngineEgress(**values), Platform.model_validate(platform))
    assert {target for target in ALL if admits(policy, target)} == reached
    assert policy["policyTypes"] == ["Egress"]
    # In pods of batches the runner asks the API server.
    (selected,) = policy["podSelector"]["matchExpressions"]
    assert selected == {"key": "tessera.dev/batch", "operator": "DoesNotExist"}


def test_the_jobs_that_fetch_models_reach_what_engines_reach() -> None:
    """Whoever writes a service names the store that they ask."""
    model = {"store": {"endpoint": "http://169.254.169.254"}}
    service = a_service(spec=a_spec("s3://models/own", model=model))
    service_plan = plan_of(a_snapshot(service)).service_plans[service.ref]
    assert service_plan.preparation is not None
    job = service_plan.preparation.job_to_create
    assert job is not None
    image, template = RunnerImage("tessera/batch"), PodTemplateVersion()
    body = model_job_manifest(service_plan.service, job, None, image, template).body
    labels = body["spec"]["template"]["metadata"]["labels"]
    selector = egress_policy(EngineEgress())["podSelector"]
    assert selector["matchLabels"].items() <= labels.items()
    assert "tessera.dev/batch" not in labels


@pytest.mark.parametrize(
    "values",
    [
        {"networks": ["10.0.0.0"]},
        {"networks": ["10.0.0.0/33"]},
        {"networks": ["1.2/8"]},
        {"networks": ["example.org/8"]},
        {"namespaces": ["*"]},
        {"networks": ["10.0.0.0/8"] * 65},
    ],
)
def test_what_is_no_network_or_namespace_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EngineEgress.model_validate(values)
