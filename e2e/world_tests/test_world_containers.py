"""What a container of a world finds around it, and how it is started, probed and ended."""

import json
import subprocess

import pytest

import world as worlds
from world.api import CLAIMS, VOLUMES, Json
from world.testing import (
    WorldNamespace,
    a_container,
    a_pod,
    container_status,
    eventually,
    http_get,
    termination_message,
)

pytestmark = pytest.mark.world
NEVER: Json = {"restartPolicy": "Never"}


async def test_environment_comes_from_values_pods_config_maps_and_secrets(
    namespace: WorldNamespace,
) -> None:
    await namespace.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "settings"},
            "data": {"COLOUR": "blue", "SIZE": "large"},
        }
    )
    await namespace.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "keys"},
            "stringData": {"token": "open sesame"},
        }
    )
    env = [
        {"name": "PLAIN", "value": "one"},
        {"name": "BOTH", "value": "$(PLAIN) and $(COLOUR), not $$(PLAIN)"},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
        {
            "name": "CORES",
            "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}},
        },
    ]
    container = a_container(
        env=env,
        envFrom=[{"configMapRef": {"name": "settings"}}],
        resources={"limits": {"cpu": "1500m"}},
    )

    pod = await namespace.start_pod(a_pod("web", container))

    environment = await (await http_get(pod, "/env")).json()
    expected = {
        "COLOUR": "blue",
        "SIZE": "large",
        "PLAIN": "one",
        "BOTH": "one and blue, not $(PLAIN)",
        "NAME": "web",
        "IP": pod["status"]["podIP"],
        "TOKEN": "open sesame",
        "CORES": "2",
    }
    assert {key: environment[key] for key in expected} == expected


async def test_a_process_sees_nothing_of_the_starters_environment(
    namespace: WorldNamespace,
) -> None:
    script = "env | cut -d= -f1 | sort | tr '\\n' ' ' > /dev/termination-log"

    pod = await namespace.run_pod(a_pod("clean", a_container(script), **NEVER))

    assert set(termination_message(pod).split()) <= {
        "HOME",
        "HOSTNAME",
        "PATH",
        "PWD",
        "PYTHONPATH",
        "SHLVL",
        "WORLD_SERVICES",
        "_",
        "OLDPWD",
    }


async def test_a_container_waits_for_a_config_map_that_does_not_exist_yet(
    namespace: WorldNamespace,
) -> None:
    source = {"configMapRef": {"name": "late"}}
    await namespace.create(a_pod("patient", a_container(envFrom=[source])))

    def config_map_is_missing(pod: Json) -> None:
        waiting = container_status(pod).get("state", {}).get("waiting", {})
        assert waiting.get("reason") == "CreateContainerConfigError", pod["status"]
        assert 'configmap "late" not found' in waiting["message"]

    await namespace.wait_for_pod("patient", config_map_is_missing)

    await namespace.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late"}})

    await namespace.wait_until_ready("patient")


async def test_mount_paths_lead_to_the_volumes_in_arguments_and_environment(
    namespace: WorldNamespace,
) -> None:
    await namespace.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "files"},
            "data": {"a.txt": "alpha", "b.txt": "beta"},
        }
    )
    volumes = [
        {"name": "files", "configMap": {"name": "files"}},
        {"name": "deep", "emptyDir": {"medium": "Memory"}},
        {
            "name": "info",
            "downwardAPI": {
                "items": [
                    {"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}},
                    {"path": "deep/uid", "fieldRef": {"fieldPath": "metadata.uid"}},
                ]
            },
        },
    ]
    mounts = [
        {"name": "files", "mountPath": "/etc/app", "readOnly": True},
        {"name": "deep", "mountPath": "/etc/app/deep"},
        {"name": "info", "mountPath": "/info"},
        {"name": "files", "mountPath": "/one/b", "subPath": "b.txt"},
    ]
    script = (
        "cp /etc/app/a.txt /etc/app/deep/copy;"
        "cat $WHERE/a.txt /etc/app/deep/copy /one/b /info/app /info/deep/uid > /dev/termination-log"
    )
    container = a_container(
        script, env=[{"name": "WHERE", "value": "/etc/app"}], volumeMounts=mounts
    )

    pod = await namespace.run_pod(a_pod("reader", container, volumes=volumes, **NEVER))

    assert termination_message(pod) == f"alphaalphabetareader{pod['metadata']['uid']}"


async def test_a_file_of_the_world_is_read_below_a_path_that_the_pod_mounts(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    file = world.folder / f"{namespace.name}.txt"
    file.write_text("alpha", encoding="utf-8")
    container = a_container(
        "cat $FILE > /dev/termination-log",
        env=[{"name": "FILE", "value": str(file)}],
        volumeMounts=[{"name": "scratch", "mountPath": str(world.folder.parent)}],
    )
    volumes = [{"name": "scratch", "emptyDir": {}}]

    pod = await namespace.run_pod(a_pod("reader", container, volumes=volumes, **NEVER))

    assert termination_message(pod) == "alpha"


async def test_a_changed_secret_arrives_in_a_running_container(namespace: WorldNamespace) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "key"},
        "stringData": {"word": "old"},
    }
    await namespace.create(secret)
    script = "until grep -q new /key/word; do sleep 0.1; done"
    mount = {"name": "key", "mountPath": "/key"}
    volume = {"name": "key", "secret": {"secretName": "key"}}
    container = a_container(script, volumeMounts=[mount])
    await namespace.create(a_pod("reader", container, volumes=[volume], **NEVER))
    await namespace.wait_until_ready("reader")

    path = f"/api/v1/namespaces/{namespace.name}/secrets/key"
    await namespace.api.patch(path, {"stringData": {"word": "new"}})

    await namespace.wait_until_over("reader")


async def test_a_claim_is_bound_and_keeps_its_files_from_pod_to_pod(
    namespace: WorldNamespace,
) -> None:
    await namespace.create(a_claim("models"))
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
    mount = [{"name": "models", "mountPath": "/models"}]

    writer = a_container("echo weights > /models/file", volumeMounts=mount)
    await namespace.run_pod(a_pod("writer", writer, volumes=[volume], **NEVER))
    reader = a_container("cat /models/file > /dev/termination-log", volumeMounts=mount)
    pod = await namespace.run_pod(a_pod("reader", reader, volumes=[volume], **NEVER))

    assert termination_message(pod) == "weights\n"


async def test_writes_of_a_runner_fail_while_its_volume_refuses_them(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    folder = world.folder / "claims" / await bound_volume(namespace, "data")
    script = (
        "import os, pathlib\n"
        "try: os.write(os.open('/data/file', os.O_CREAT | os.O_WRONLY), b'row')\n"
        "except OSError as error: pathlib.Path('/dev/termination-log').write_text(str(error))"
    )
    container = a_container(
        image="tessera/batch:1",
        command=["python3", "-c", script],
        args=[],
        volumeMounts=[{"name": "data", "mountPath": "/data"}],
    )
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}

    messages = []
    for name, error in (("read-only", "EROFS"), ("full", "ENOSPC"), ("well", None)):
        world.fail_writes(folder, error)
        pod = await namespace.run_pod(a_pod(name, container, volumes=[volume], **NEVER))
        messages.append(container_status(pod)["state"]["terminated"].get("message", ""))

    assert "Read-only file system" in messages[0]
    assert "No space left on device" in messages[1]
    assert (messages[2], (folder / "file").read_text()) == ("", "row")


async def test_a_deleted_claim_takes_its_volume_along(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    volume = await bound_volume(namespace, "scratch")

    await namespace.api.delete(CLAIMS.path(namespace.name, "scratch"))

    async def volume_is_gone() -> None:
        volumes = (await namespace.api.get(VOLUMES.path()))["items"]
        assert volume not in [entry["metadata"]["name"] for entry in volumes]
        assert not (world.folder / "claims" / volume).exists()

    await eventually(volume_is_gone)


@pytest.mark.smoke
async def test_a_service_account_may_do_what_its_role_binding_says(
    namespace: WorldNamespace,
) -> None:
    script = (
        "kubectl get configmaps > /dev/null || exit 3;"
        "kubectl auth whoami -o jsonpath='{.status.userInfo.username}' > /dev/termination-log"
    )
    spec = NEVER | {"automountServiceAccountToken": True}
    before = await namespace.run_pod(a_pod("before", a_container(script), **spec))
    assert container_status(before)["state"]["terminated"]["exitCode"] == 3

    await namespace.create(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "viewers"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "view",
            },
            "subjects": [
                {"kind": "ServiceAccount", "name": "default", "namespace": namespace.name}
            ],
        }
    )

    after = await namespace.run_pod(a_pod("after", a_container(script), **spec))
    assert container_status(after)["state"]["terminated"]["exitCode"] == 0
    assert termination_message(after) == f"system:serviceaccount:{namespace.name}:default"


def kubectl_logs(world: worlds.World, namespace: WorldNamespace, pod: str, *options: str) -> str:
    command = [str(world.binary("kubectl")), "logs", pod, "-n", namespace.name, *options]
    env = {"KUBECONFIG": str(world.kubeconfig), "HOME": str(world.folder)}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=True, timeout=120
    ).stdout


async def test_kubectl_shows_logs_of_this_start_and_the_one_before(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    mount = [{"name": "state", "mountPath": "/state"}]
    script = (
        "if [ -e /state/ran ]; then echo again; echo still; sleep 1000; fi;"
        "touch /state/ran; echo once; exit 1"
    )
    volumes = [{"name": "state", "emptyDir": {}}]
    await namespace.create(
        a_pod("talker", a_container(script, volumeMounts=mount), volumes=volumes)
    )
    await namespace.wait_for_restart("talker")

    async def log_is_complete() -> None:
        assert kubectl_logs(world, namespace, "talker") == "again\nstill\n"

    await eventually(log_is_complete)
    assert kubectl_logs(world, namespace, "talker", "--tail=1") == "still\n"
    assert kubectl_logs(world, namespace, "talker", "--previous") == "once\n"


async def test_kubectl_follows_a_log_to_its_end(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    script = "echo one; sleep 1; echo two"
    await namespace.create(a_pod("talker", a_container(script), restartPolicy="Never"))

    def container_is_created(pod: Json) -> None:
        assert container_status(pod).get("containerID"), pod["status"]

    await namespace.wait_for_pod("talker", container_is_created)

    assert kubectl_logs(world, namespace, "talker", "--follow") == "one\ntwo\n"


async def test_the_audit_log_says_who_wrote_what(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    await namespace.start_pod(a_pod("web"))

    async def writes_are_logged() -> None:
        *lines, _ = world.audit_log.read_text().split("\n")
        entries = [json.loads(line) for line in lines if namespace.name in line]
        writes = {
            (entry["user"]["username"], entry["verb"], entry["objectRef"].get("subresource", ""))
            for entry in entries
            if entry["objectRef"].get("name") == "web"
        }
        assert ("system:world:kubelet", "patch", "status") in writes
        assert ("system:kube-scheduler", "create", "binding") in writes

    await eventually(writes_are_logged)


async def test_what_the_kernel_kills_for_memory_says_so(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    await namespace.start_pod(a_pod("greedy"))
    world.run_out_of_memory(namespace.name, "greedy", "main")
    pod = await namespace.wait_for_restart("greedy")
    last_end = container_status(pod)["lastState"]["terminated"]
    assert (last_end["exitCode"], last_end["reason"]) == (137, "OOMKilled")

    world.kill(namespace.name, "greedy", "main")
    pod = await namespace.wait_for_restart("greedy", count=2)
    assert container_status(pod)["lastState"]["terminated"]["reason"] == "Error"


def a_claim(name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


async def bound_volume(namespace: WorldNamespace, claim: str) -> str:
    """Create a claim, and return the name of the volume to which it is bound."""
    await namespace.create(a_claim(claim))

    async def claim_is_bound() -> str:
        body = await namespace.api.get(CLAIMS.path(namespace.name, claim))
        assert body["status"].get("phase") == "Bound", body
        return str(body["spec"]["volumeName"])

    return await eventually(claim_is_bound)
