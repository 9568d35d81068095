"""`tessera usage import`: the Job that adds the records of the SQLite file to the database."""

from types import SimpleNamespace
from typing import Any

from tessera.cli.cluster import Json, Reader, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.output import Output
from tessera.domain.names import APP_NAME, PART_OF, TESSERA
from tessera.resources.api_resources import CLAIMS, DEPLOYMENTS, PODS
from tessera.settings import CommandSettings

GATEWAY = "tessera-gateway"
JOB = "tessera-usage-import"
_DATABASE_URL = "TESSERA_DATABASE_URL"
_FOLDER = "/var/lib/tessera-old"
_COMMAND = ("python", "-m", "tessera.gateway.import_usage", f"{_FOLDER}/store.db")
# The Job takes these of the gateway's pod: its affinity is about gateways, its volumes are unused.
_POD_FIELDS = ("imagePullSecrets", "nodeSelector", "securityContext", "tolerations")
_CONTAINER_FIELDS = ("env", "image", "imagePullPolicy", "securityContext")
_DAY_SECONDS = 86_400


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Print the Job for kubectl."""
    namespace = CommandSettings().namespace
    return Output.of_json(await import_job(reader, namespace, arguments.claim))


async def import_job(reader: Reader, namespace: str, claim: str) -> Json:
    """Return a Job of the gateway's image that reads the claim; CommandError where it cannot run.

    The URL of the database comes from the same Secret as the gateway's.
    """
    deployment = await reader.get(DEPLOYMENTS.path(namespace, GATEWAY))
    if deployment is None:
        raise CommandError(
            f"Deployment/{GATEWAY} is not in namespace {namespace}: set TESSERA_NAMESPACE to the "
            "gateway's namespace"
        )
    pod: Json = deployment["spec"]["template"]["spec"]
    container: Json = next(each for each in pod["containers"] if each["name"] == "gateway")
    if not any(variable["name"] == _DATABASE_URL for variable in container["env"]):
        raise CommandError(
            f"Deployment/{GATEWAY} still records in its SQLite file: set gateway.database."
            "secretName of the chart first"
        )
    if await reader.get(CLAIMS.path(namespace, claim)) is None:
        raise CommandError(
            f"PersistentVolumeClaim/{claim} is not in namespace {namespace}: name the claim with "
            "the SQLite file by --claim"
        )
    for other in await reader.list_objects(PODS, namespace):
        if _uses(other, claim):
            raise CommandError(
                f"Pod/{other['metadata']['name']} uses PersistentVolumeClaim/{claim}: a gateway "
                "writes its last records when it ends, so import them after that"
            )
    return _job(namespace, claim, pod, container)


def _uses(pod: Json, claim: str) -> bool:
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed") and any(
        volume.get("persistentVolumeClaim", {}).get("claimName") == claim
        for volume in pod["spec"].get("volumes", ())
    )


def _job(namespace: str, claim: str, pod: Json, container: Json) -> dict[str, Any]:
    # Other labels than the gateway's: its Service sends requests to all pods with those.
    labels = {APP_NAME: JOB, PART_OF: TESSERA}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": JOB, "namespace": namespace, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": _DAY_SECONDS,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    **{name: pod[name] for name in _POD_FIELDS if name in pod},
                    "serviceAccountName": pod["serviceAccountName"],
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "restartPolicy": "Never",
                    "containers": [
                        {
                            **{n: container[n] for n in _CONTAINER_FIELDS if n in container},
                            "name": "import",
                            "command": list(_COMMAND),
                            "resources": {
                                "requests": {"cpu": "50m", "memory": "128Mi"},
                                "limits": {"memory": "512Mi"},
                            },
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                            "volumeMounts": [
                                {"name": "old", "mountPath": _FOLDER, "readOnly": True}
                            ],
                        }
                    ],
                    "volumes": [{"name": "old", "persistentVolumeClaim": {"claimName": claim}}],
                },
            },
        },
    }
