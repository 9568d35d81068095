"""The flags of etcd, API server, controller manager and scheduler."""

from dataclasses import dataclass
from pathlib import Path

from world.keys import Authority, Pair, certificate_user, kubeconfig
from world.slots import Slot, free_port

# A laptop's demo should not wait for the client-side limits of the controllers.
QUICK = ["--kube-api-qps=1000", "--kube-api-burst=2000"]

# Endpoint controllers cannot work here: the API refuses loopback addresses in endpoints, so they
# would retry for ever and write a warning on every Service. The world's proxy goes by pods.
USELESS = "endpoints-controller", "endpointslice-controller", "endpointslice-mirroring-controller"

AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  namespaces: [kube-node-lease]
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: None
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartBeats:
    """How soon a silent node is noticed; short leases are write load when nodes are many."""

    lease_seconds: int
    renew_seconds: float
    grace_seconds: int
    evict_seconds: int
    """Tolerance that pods get by default for a node that is not ready."""
    scrape_seconds: int
    """How often Prometheus looks."""


FAULTS = HeartBeats(
    lease_seconds=8, renew_seconds=2, grace_seconds=8, evict_seconds=10, scrape_seconds=1
)
# Many engines on one machine: their kubelets share a process, which may be late by many seconds.
CROWDED = HeartBeats(
    lease_seconds=60, renew_seconds=2, grace_seconds=60, evict_seconds=300, scrape_seconds=1
)
SCALE = HeartBeats(
    lease_seconds=40, renew_seconds=10, grace_seconds=40, evict_seconds=300, scrape_seconds=15
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """Where everything of one control plane is, and the command lines that make it so."""

    binaries: Path
    folder: Path
    slot: Slot
    beats: HeartBeats
    keys: Authority
    etcd_port: int
    api_port: int

    @property
    def server(self) -> str:
        return f"https://{self.slot.control}:{self.api_port}"

    @property
    def audit_log(self) -> Path:
        return self.folder / "logs" / "audit.log"

    def kubeconfig(self, name: str, user: str, group: str | None = None) -> Path:
        """Everybody writes under a name of their own, so that the audit log can tell them apart."""
        return kubeconfig(
            self.folder / name,
            server=self.server,
            authority=self.keys.own.certificate,
            user=certificate_user(self.keys.client(user.rpartition(":")[2], user, group)),
        )

    def etcd(self) -> list[str]:
        clients = f"http://{self.slot.control}:{self.etcd_port}"
        peers = f"http://{self.slot.control}:{free_port(self.slot.control)}"
        return [
            str(self.binaries / "etcd"),
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--log-level=warn",
        ]

    def api_server(self) -> list[str]:
        return [
            str(self.binaries / "kube-apiserver"),
            f"--etcd-servers=http://{self.slot.control}:{self.etcd_port}",
            f"--bind-address={self.slot.control}",
            f"--secure-port={self.api_port}",
            # A documentation address: the API server insists on one that is not loopback, and
            # would search the routes of a machine that may be offline.
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
            f"--service-cluster-ip-range={self.slot.service_range}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            f"--default-not-ready-toleration-seconds={self.beats.evict_seconds}",
            f"--default-unreachable-toleration-seconds={self.beats.evict_seconds}",
            *self._api_keys(),
            *self._audit(),
        ]

    def _api_keys(self) -> list[str]:
        serving = self.keys.server("apiserver", self.slot.control)
        proxy = self.keys.client("front-proxy", "front-proxy")
        tokens = self.keys.signer("service-accounts")
        authority = self.keys.own.certificate
        return [
            *_files("tls-cert-file", "tls-private-key-file", serving),
            f"--client-ca-file={authority}",
            f"--service-account-key-file={tokens}",
            f"--service-account-signing-key-file={tokens}",
            "--service-account-issuer=https://kubernetes.default.svc",
            *_files("proxy-client-cert-file", "proxy-client-key-file", proxy),
            f"--requestheader-client-ca-file={authority}",
            # Required: with one CA for both, anybody with a certificate could pass as the proxy.
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        ]

    def _audit(self) -> list[str]:
        policy = self.folder / "audit-policy.yaml"
        policy.write_text(AUDIT_POLICY)
        return [f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}"]

    def controller_manager(self) -> list[str]:
        user = "system:kube-controller-manager"
        config = self.kubeconfig("controller-manager.kubeconfig", user, "system:masters")
        return [
            str(self.binaries / "kube-controller-manager"),
            *self._component(config),
            f"--controllers=*,{','.join(f'-{name}' for name in USELESS)}",
            f"--root-ca-file={self.keys.own.certificate}",
            f"--service-account-private-key-file={self.folder / 'keys' / 'service-accounts.key'}",
            "--horizontal-pod-autoscaler-sync-period=2s",
            "--node-monitor-period=1s",
            f"--node-monitor-grace-period={self.beats.grace_seconds}s",
            *QUICK,
        ]

    def scheduler(self) -> list[str]:
        config = self.kubeconfig("scheduler.kubeconfig", "system:kube-scheduler")
        return [str(self.binaries / "kube-scheduler"), *self._component(config), *QUICK]

    def _component(self, config: Path) -> list[str]:
        return [
            f"--kubeconfig={config}",
            f"--bind-address={self.slot.control}",
            f"--secure-port={free_port(self.slot.control)}",
            "--leader-elect=false",
        ]


def _files(certificate: str, key: str, pair: Pair) -> list[str]:
    return [f"--{certificate}={pair.certificate}", f"--{key}={pair.key}"]
