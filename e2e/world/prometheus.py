"""The world's Prometheus: a real one, configured to scrape as a PodMonitor would."""

import json
import re
from pathlib import Path

from tessera.resources.namespace_objects import ENGINE_METRICS, SCRAPE_LIMITS
from world.api import Json
from world.folders import SCRAPE_TOKEN
from world.slots import Slot, free_port

OPERATOR = "app.kubernetes.io/name=tessera-operator"
ENGINE = (
    "app.kubernetes.io/component=engine,tessera.dev/service,tessera.dev/variant,"
    "tessera.dev/leaving!=tried"
)
GATEWAY = "app.kubernetes.io/name=tessera-gateway"
EXPORTER = "app.kubernetes.io/name=dcgm-exporter"
META = "__meta_kubernetes_pod"
NAMESPACE = "__meta_kubernetes_namespace"


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
    # JSON is YAML. A PodMonitor scrapes pods of its own namespace, which its job names.
    def own_job(name: str) -> Json:
        return {"source_labels": [NAMESPACE], "target_label": "job", "replacement": f"$1/{name}"}

    operator = {
        "scheme": "https",
        "tls_config": {"insecure_skip_verify": True},
        "authorization": {"credentials_file": str(kubeconfig.parent / SCRAPE_TOKEN)},
    }
    engines = {
        "honor_timestamps": False,
        "metric_relabel_configs": [_keep("__name__", ENGINE_METRICS)],
        **{_snake_case(name): limit for name, limit in SCRAPE_LIMITS.items()},
    }
    return {
        "global": dict.fromkeys(("scrape_interval", "scrape_timeout"), f"{scrape_seconds}s"),
        "scrape_configs": [
            _job("operator", OPERATOR, slot, kubeconfig, own_job("tessera-operator")) | operator,
            _job("gateway", GATEWAY, slot, kubeconfig, own_job("tessera-gateway")),
            _job("engines", ENGINE, slot, kubeconfig, own_job("tessera-engine")) | engines,
            # Only the exporter says which pod a sample is about, so nobody else may pass for it.
            _job("dcgm-exporter", EXPORTER, slot, kubeconfig, _keep(NAMESPACE, "gpu-operator"))
            | {"honor_labels": True},
        ],
    }


def _job(name: str, label: str, slot: Slot, kubeconfig: Path, *relabelings: Json) -> Json:
    pods = {"role": "pod", "kubeconfig_file": str(kubeconfig)}
    return {
        "job_name": name,
        "kubernetes_sd_configs": [pods | {"selectors": [{"role": "pod", "label": label}]}],
        "relabel_configs": [
            _keep(f"{META}_phase", "Running"),
            _keep(f"{META}_container_port_name", "http|metrics"),
            # KWOK's pods have addresses that do not answer.
            _keep(f"{META}_ip", re.escape(slot.pod_prefix) + ".*"),
            _label(NAMESPACE, "namespace"),
            _label(f"{META}_name", "pod"),
            _label(f"{META}_container_name", "container"),
            _label(f"{META}_node_name", "node"),
            _label(f"{META}_label_tessera_dev_service", "tessera_dev_service"),
            _label(f"{META}_label_tessera_dev_variant", "tessera_dev_variant"),
            *relabelings,
        ],
    }


def _snake_case(name: str) -> str:
    return re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def _keep(source: str, pattern: str) -> Json:
    return {"action": "keep", "source_labels": [source], "regex": pattern}


def _label(source: str, target: str) -> Json:
    return {"source_labels": [source], "target_label": target}
