"""What engines of services connect to, by their NetworkPolicy."""

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.api.engine_egress import EngineEgress
from tessera.api.template_version import Platform
from tessera.resources import children
from tests.resources.engine_objects import SPECS, plan_service

HUB = "https://hub.mirror.svc"
PROXY = "http://proxy.example:3128"


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
        monitored=False,
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
    # Pods of batches have no such label: their runner asks the API server.
    (selected,) = policy["podSelector"]["matchExpressions"]
    assert selected == {"key": "tessera.dev/service", "operator": "Exists"}


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
