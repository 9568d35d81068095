"""Nodes whose kubelets fall silent, and what the node lifecycle controller of 1.36 does then."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tessera.resources.api_resources import NODES
from tessera.resources.manifest import ObjectKey

if TYPE_CHECKING:
    from tests.floors.kube import FloorKube

# `--node-monitor-grace-period`: how long a kubelet may be silent before its pods are NotReady.
GRACE = timedelta(seconds=50)
# `tolerationSeconds` that every pod gets: how long it stays bound to a node that is unreachable.
EVICTION = timedelta(seconds=300)
_TAINT = "node.kubernetes.io/unreachable"


@dataclass(slots=True)
class NodeLifecycle:
    """The nodes that are away, and what the control plane does about their pods meanwhile."""

    kube: "FloorKube"
    away: dict[str, datetime] = field(default_factory=dict)
    """When each kubelet was heard last."""

    def leave(self, name: str) -> None:
        """Let the kubelet of a node fall silent."""
        self.away.setdefault(name, self.kube.steady)

    def come_back(self, name: str) -> None:
        """Let the kubelet report again: what was not evicted meanwhile serves on."""
        self.away.pop(name, None)
        if name not in self.kube.nodes() or self.kube.node(name).kubelet_ready:
            return
        self._write(name, "True", tainted=False)
        for key, pod in list(self.kube.pods()):
            if pod.node == name and pod.service.name and not pod.terminating:
                self.kube.ready(key, up=pod.containers_ready)

    def run(self) -> None:
        """Mark nodes, taint them, and evict their pods, whichever is due."""
        for name, since in list(self.away.items()):
            if name not in self.kube.nodes():
                del self.away[name]
                continue
            silent = self.kube.steady - since
            if silent >= GRACE and self.kube.node(name).kubelet_ready:
                self.kube.node_losses(name)
                self._write(name, "Unknown", tainted=True)
                self._mark_pods(name)
            if silent >= GRACE + EVICTION:
                self._evict_pods(name)

    def _write(self, name: str, ready: str, *, tainted: bool) -> None:
        key = ObjectKey(NODES.plural, "", name)
        taints = [
            taint
            for taint in self.kube.objects[key]["spec"].get("taints", ())
            if taint["key"] != _TAINT
        ]
        effects = ("NoSchedule", "NoExecute") if tainted else ()
        taints += [{"key": _TAINT, "effect": effect} for effect in effects]
        self.kube.set(key, "spec", taints=taints)
        self.kube.condition(key, "Ready", ready)

    def _mark_pods(self, name: str) -> None:
        for key, pod in list(self.kube.pods()):
            if pod.node == name and pod.service.name and pod.ready_since is not None:
                self.kube.condition(key, "Ready", "False")

    def _evict_pods(self, name: str) -> None:
        """Mark pods for deletion; they end when their kubelet hears of it."""
        for key, pod in list(self.kube.pods()):
            if pod.node == name:
                self.kube.begin_deletion(key)
