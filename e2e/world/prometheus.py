"""The world's Prometheus: a real one, configured to scrape as a PodMonitor would."""

import json
import re
from pathlib import Path

from world.api import Json
from world.slots import Slot, free_port

TESSERA = "app.kubernetes.io/part-of=tessera"
EXPORTER = "app.kubernetes.io/name=dcgm-exporter"
META = "__meta_kubernetes_pod"


def prometheus(
    binaries: Path, folder: Path, slot: Slot, kubeconfig: Path, *, scrape_seconds: int
) -> tuple[list[str], int]:
    """The command line, and the port."""
    port = free_port(slot.control)
    config = folder / "prometheus.yaml"
    config.write_text(json.dumps(configuration(slot, kubeconfig, scrape_seconds), indent=2))
    arguments = [
        str(binaries / "prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        "--storage.tsdb.retention.time=1d",
        f"--web.listen-address={slot.control}:{port}",
        "--log.level=warn",
    ]
    return arguments, port


def configuration(slot: Slot, kubeconfig: Path, scrape_seconds: int) -> Json:
    # JSON is YAML.
    return {
        "global": dict.fromkeys(("scrape_interval", "scrape_timeout"), f"{scrape_seconds}s"),
        "scrape_configs": [
            _job("tessera", TESSERA, slot, kubeconfig, honor_labels=False),
            # Only the exporter says which pod a sample is about.
            _job("dcgm-exporter", EXPORTER, slot, kubeconfig, honor_labels=True),
        ],
    }


def _job(name: str, label: str, slot: Slot, kubeconfig: Path, *, honor_labels: bool) -> Json:
    pods = {"role": "pod", "kubeconfig_file": str(kubeconfig)}
    return {
        "job_name": name,
        "honor_labels": honor_labels,
        "kubernetes_sd_configs": [pods | {"selectors": [{"role": "pod", "label": label}]}],
        "relabel_configs": [
            _keep(f"{META}_phase", "Running"),
            _keep(f"{META}_container_port_name", "http|metrics"),
            # KWOK's pods have addresses that do not answer.
            _keep(f"{META}_ip", re.escape(slot.pod_prefix) + ".*"),
            _label(f"{META.removesuffix('_pod')}_namespace", "namespace"),
            _label(f"{META}_name", "pod"),
            _label(f"{META}_container_name", "container"),
            _label(f"{META}_node_name", "node"),
            _label(f"{META}_label_tessera_dev_service", "tessera_dev_service"),
            _label(f"{META}_label_tessera_dev_variant", "tessera_dev_variant"),
        ],
    }


def _keep(source: str, pattern: str) -> Json:
    return {"action": "keep", "source_labels": [source], "regex": pattern}


def _label(source: str, target: str) -> Json:
    return {"source_labels": [source], "target_label": target}
