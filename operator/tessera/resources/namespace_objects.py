"""Objects that the services and batches of one namespace share, deleted with the last of them."""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from kubernetes import client

from tessera.api.engine_egress import EngineEgress
from tessera.api.template_version import Platform
from tessera.domain import names
from tessera.domain.batch.names import BATCH_ACCOUNT, BATCH_LABEL, BATCH_ROLE, RUNNER_PORT
from tessera.domain.quality.names import GATE_ACCOUNT, GATE_ENGINES, GATE_LABEL
from tessera.domain.vllm.metrics import PREFIX
from tessera.resources.api_resources import (
    NETWORK_POLICIES,
    POD_MONITORS,
    ROLE_BINDINGS,
    SERVICE_ACCOUNTS,
)
from tessera.resources.manifest import (
    ObjectManifest,
    Owner,
    labels,
    manifest,
    owner_reference,
    wire_format,
)

_NAMESPACE_LABEL = "kubernetes.io/metadata.name"
ENGINE_METRICS = f"{PREFIX}.*"
# Several times what a large engine exports; a page beyond them is not read at all.
SCRAPE_LIMITS: Mapping[str, int | str] = {
    "sampleLimit": 20_000,
    "labelLimit": 64,
    "labelNameLengthLimit": 256,
    "labelValueLengthLimit": 1024,
    "bodySizeLimit": "8MB",
}
_Networks = Mapping[str, Sequence[str]]
# Where nodes of a cloud get their metadata, keys and certificates among them: at addresses of the
# link and those of Alibaba, Azure (its WireServer), AWS and Google.
_METADATA: _Networks = {
    "0.0.0.0/0": ["100.100.100.200/32", "168.63.129.16/32", "169.254.0.0/16"],
    "::/0": ["64:ff9b::a9fe:0/112", "fd00:ec2::254/128", "fd20:ce::254/128", "fe80::/10"],
}
# Without those of pods, nodes, private networks, and the metadata of clouds. GKE gives pods
# 240.0.0.0/4, and 64:ff9b::/96 and 64:ff9b:1::/48 lead to addresses of IPv4.
_PUBLIC: _Networks = {
    "0.0.0.0/0": [
        "10.0.0.0/8",
        "100.64.0.0/10",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "240.0.0.0/4",
    ],
    "::/0": ["64:ff9b::/96", "64:ff9b:1::/48", "fc00::/7", "fe80::/10"],
}
_PORTS = {"http": 80, "https": 443}
_GATE_JOBS = client.V1LabelSelector(
    match_expressions=[client.V1LabelSelectorRequirement(key=GATE_LABEL, operator="Exists")]
)
# All owners of a shared object in the namespace; never empty.
Owners = Sequence[Owner]


def service_account(owners: Owners, name: str) -> ObjectManifest:
    """Return a ServiceAccount, of engines or of runners.

    That of engines has no permissions; of both no token is mounted, save explicitly into runners.
    """
    return manifest(SERVICE_ACCOUNTS, _metadata(owners, name), automountServiceAccountToken=False)


def engine_network_policy(
    owners: Owners, ingress_namespaces: Sequence[str], closed: Sequence[str] = ()
) -> ObjectManifest:
    """Allow traffic to engines only from their own namespace and the `ingress_namespaces`.

    Services that are `closed` have a policy of their own.
    """
    peers = [
        client.V1NetworkPolicyPeer(pod_selector=client.V1LabelSelector()),
        *(_namespace_peer(namespace) for namespace in ingress_namespaces),
    ]
    return _engine_policy(owners, names.ENGINE_ACCOUNT, peers, "NotIn", closed)


def closed_network_policy(
    owners: Owners,
    closed: Sequence[str],
    *,
    operator_namespace: str,
    ingress_namespaces: Sequence[str],
) -> ObjectManifest:
    """Allow traffic to engines of services with `spec.access.direct: false`.

    Only gateways, the operator and the namespaces that scrape metrics reach them.
    """
    processes = client.V1LabelSelectorRequirement(
        key=names.APP_NAME, operator="In", values=["tessera-gateway", "tessera-operator"]
    )
    own = _namespace_peer(operator_namespace).namespace_selector
    peers = [
        client.V1NetworkPolicyPeer(
            namespace_selector=own,
            pod_selector=client.V1LabelSelector(match_expressions=[processes]),
        ),
        *(_namespace_peer(name) for name in ingress_namespaces if name != operator_namespace),
    ]
    return _engine_policy(owners, names.CLOSED_ENGINES, peers, "In", closed)


def _engine_policy(
    owners: Owners,
    name: str,
    peers: Sequence[client.V1NetworkPolicyPeer],
    operator: str,
    services: Sequence[str],
) -> ObjectManifest:
    chosen = client.V1LabelSelectorRequirement(
        key=names.SERVICE_LABEL, operator=operator, values=list(services)
    )
    engines = client.V1LabelSelector(
        match_labels={names.COMPONENT: names.ENGINE},
        match_expressions=[chosen] if services else None,
    )
    return _network_policy(_metadata(owners, name), engines, peers, names.PORT)


def engine_egress_policy(
    owners: Owners, egress: EngineEgress, platform: Platform
) -> ObjectManifest:
    """Limit what the engines of services and the Jobs of their models connect to.

    Pods of batches have no such limit: in them the runner asks the API server.
    """
    of_no_batch = client.V1LabelSelectorRequirement(key=BATCH_LABEL, operator="DoesNotExist")
    engines = client.V1LabelSelector(
        match_labels={names.COMPONENT: names.ENGINE}, match_expressions=[of_no_batch]
    )
    rules = _egress_rules(egress, platform) if egress.restricted else [_egress_rule()]
    spec = client.V1NetworkPolicySpec(pod_selector=engines, policy_types=["Egress"], egress=rules)
    return manifest(NETWORK_POLICIES, _metadata(owners, names.ENGINE_EGRESS), spec=spec)


def _egress_rules(
    egress: EngineEgress, platform: Platform
) -> list[client.V1NetworkPolicyEgressRule]:
    """Return what engines need: names, the public hub or a mirror of it, and what is listed."""
    others = [
        *_address_peers({network: () for network in egress.networks}),
        *(_namespace_peer(name) for name in egress.namespaces),
    ]
    rules = [
        _names_rule(),
        _egress_rule([*_address_peers(_PUBLIC), *others]),
    ]
    urls = (platform.hub_endpoint, platform.https_proxy)
    if ports := {_port_of(url) for url in urls if url is not None}:
        every_pod = client.V1NetworkPolicyPeer(namespace_selector=client.V1LabelSelector())
        peers = [every_pod, *_address_peers(_METADATA)]
        rules.append(_egress_rule(peers, [("TCP", port) for port in sorted(ports)]))
    return rules


def _names_rule() -> client.V1NetworkPolicyEgressRule:
    # A cache of names may be on the node, at an address of its own.
    return _egress_rule(ports=[("UDP", 53), ("TCP", 53)])


def _egress_rule(
    peers: Sequence[client.V1NetworkPolicyPeer] = (), ports: Sequence[tuple[str, int]] = ()
) -> client.V1NetworkPolicyEgressRule:
    """Return a rule for these peers and ports; without any it is for all."""
    policy_ports = [
        client.V1NetworkPolicyPort(protocol=protocol, port=port) for protocol, port in ports
    ]
    return client.V1NetworkPolicyEgressRule(to=list(peers) or None, ports=policy_ports or None)


def _address_peers(networks: _Networks) -> list[client.V1NetworkPolicyPeer]:
    """Return the addresses of networks, each without some parts."""
    return [
        client.V1NetworkPolicyPeer.model_validate(
            {"ipBlock": {"cidr": network, **({"except": parts} if parts else {})}}
        )
        for network, parts in networks.items()
    ]


def _port_of(url: str) -> int:
    place = urlsplit(url)
    return place.port or _PORTS[place.scheme]


def pod_monitor(owners: Owners, monitor_labels: Mapping[str, str]) -> ObjectManifest:
    """Return the PodMonitor for the engines' metrics: of a page only what engines export.

    Prometheus may select it by `monitor_labels`, beside those that all objects have.
    Whose samples they are, the labels of the pod say and never the page.
    """
    identity = (names.SERVICE_LABEL, names.VARIANT_LABEL)
    endpoint = {
        "port": "http",
        "path": "/metrics",
        "interval": "15s",
        "honorLabels": False,
        "honorTimestamps": False,
        "metricRelabelings": [
            {"action": "keep", "sourceLabels": ["__name__"], "regex": ENGINE_METRICS}
        ],
    }
    spec = {
        # A label that the pod lacks would come from the page.
        "selector": {
            "matchLabels": {names.COMPONENT: names.ENGINE},
            "matchExpressions": [
                *({"key": label, "operator": "Exists"} for label in identity),
                {"key": names.LEAVING_LABEL, "operator": "NotIn", "values": [names.TRIED]},
            ],
        },
        "podTargetLabels": list(identity),
        "podMetricsEndpoints": [endpoint],
        **SCRAPE_LIMITS,
    }
    metadata = _metadata(owners, names.ENGINE_ACCOUNT)
    metadata.labels = {**monitor_labels, **(metadata.labels or {})}
    return manifest(POD_MONITORS, metadata, spec=spec)


def batch_role_binding(batches: Owners, role: str = BATCH_ROLE) -> ObjectManifest:
    """Allow runners to read batches in their namespace: the status has the fencing attempt."""
    metadata = _metadata(batches, BATCH_ACCOUNT)
    subject = client.RbacV1Subject(
        kind="ServiceAccount", name=BATCH_ACCOUNT, namespace=metadata.namespace
    )
    role_ref = client.V1RoleRef(
        api_group="rbac.authorization.k8s.io", kind="ClusterRole", name=role
    )
    return manifest(ROLE_BINDINGS, metadata, roleRef=role_ref, subjects=[wire_format(subject)])


def batch_network_policy(batches: Owners, operator_namespace: str) -> ObjectManifest:
    """Allow the operator to read the runners' progress."""
    runner = client.V1LabelSelectorRequirement(key=BATCH_LABEL, operator="Exists")
    runners = client.V1LabelSelector(match_expressions=[runner])
    peers = [_namespace_peer(operator_namespace)]
    return _network_policy(_metadata(batches, BATCH_ACCOUNT), runners, peers, RUNNER_PORT)


def gate_network_policy(
    gates: Owners, operator_namespace: str, gateway: str | None = None
) -> ObjectManifest:
    """Let Jobs of gates reach engines of their namespace and nothing else, not even names.

    With the URL of a `gateway` its pods and names are all that they reach.

    Only the operator reaches them, for their progress.
    """
    ingress = _ingress([_namespace_peer(operator_namespace)], RUNNER_PORT)
    engines = client.V1LabelSelector(match_labels={names.COMPONENT: names.ENGINE})
    rules = [
        _egress_rule([client.V1NetworkPolicyPeer(pod_selector=engines)], [("TCP", names.PORT)])
    ]
    if gateway is not None:
        gateways = client.V1NetworkPolicyPeer(
            namespace_selector=_namespace_peer(operator_namespace).namespace_selector,
            pod_selector=client.V1LabelSelector(match_labels={names.APP_NAME: "tessera-gateway"}),
        )
        rules = [_names_rule(), _egress_rule([gateways], [("TCP", _port_of(gateway))])]
    spec = client.V1NetworkPolicySpec(
        pod_selector=_GATE_JOBS,
        policy_types=["Ingress", "Egress"],
        ingress=[ingress],
        egress=rules,
    )
    return manifest(NETWORK_POLICIES, _metadata(gates, GATE_ACCOUNT), spec=spec)


def gate_engines_policy(gates: Owners, closed: Sequence[str]) -> ObjectManifest:
    """Let Jobs of gates ask engines of services that otherwise only gateways reach.

    The label of such Jobs is Tessera's, which users may not set.
    """
    peers = [client.V1NetworkPolicyPeer(pod_selector=_GATE_JOBS)]
    return _engine_policy(gates, GATE_ENGINES, peers, "In", closed)


def _namespace_peer(namespace: str) -> client.V1NetworkPolicyPeer:
    namespace_selector = client.V1LabelSelector(match_labels={_NAMESPACE_LABEL: namespace})
    return client.V1NetworkPolicyPeer(namespace_selector=namespace_selector)


def _network_policy(
    metadata: client.V1ObjectMeta,
    pods: client.V1LabelSelector,
    peers: Sequence[client.V1NetworkPolicyPeer],
    port: int,
) -> ObjectManifest:
    """Allow traffic to a port of the pods only from the peers."""
    rule = _ingress(peers, port)
    spec = client.V1NetworkPolicySpec(pod_selector=pods, policy_types=["Ingress"], ingress=[rule])
    return manifest(NETWORK_POLICIES, metadata, spec=spec)


def _ingress(
    peers: Sequence[client.V1NetworkPolicyPeer], port: int
) -> client.V1NetworkPolicyIngressRule:
    ports = [client.V1NetworkPolicyPort(port=port, protocol="TCP")]
    # Built from wire names: the model silently drops its own name for `from`.
    return client.V1NetworkPolicyIngressRule.model_validate({"from": list(peers), "ports": ports})


def _metadata(owners: Owners, name: str) -> client.V1ObjectMeta:
    """Return metadata owned by all owners, so that the object is deleted with the last one."""
    namespace = owners[0].ref.namespace
    return client.V1ObjectMeta(
        name=name,
        namespace=namespace,
        labels=labels(name, namespace),
        owner_references=[
            owner_reference(owner, controller=False)
            for owner in sorted(owners, key=lambda entry: (entry.ref, entry.uid))
        ],
    )
