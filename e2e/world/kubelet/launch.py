"""Everything that one start of a container needs, put together."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from fakegpu.remote import SHIM, SOCKET
from world.api import CONFIG_MAPS, SECRETS, ApiError, Json
from world.kubelet.devices import told
from world.kubelet.environment import Facts, Named, expand, referred, resolve
from world.kubelet.images import SCRIPTS, Image, words
from world.kubelet.instances import Call, CoroutineInstance, Instance, start_process
from world.kubelet.paths import Rewriter, mount_path
from world.kubelet.surroundings import Host
from world.kubelet.tokens import MOUNT
from world.kubelet.volumes import contents

PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin"
TERMINATION_LOG = "/dev/termination-log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a container of a pod lives."""

    host: Host
    container: Json
    address: str
    folder: Path
    volumes: dict[str, Path]

    @property
    def name(self) -> str:
        return str(self.container["name"])

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def termination_log(self) -> Path:
        return self.folder / "termination-log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is started, ready to go."""

    arguments: tuple[str, ...]
    env: dict[str, str]
    folder: Path
    rewrite: Rewriter


async def prepare(place: Place, image: Image, pod: Json) -> Launch:
    """Environment and command line; `MissingReferenceError` when something is not there (yet)."""
    place.home.mkdir(parents=True, exist_ok=True)
    place.termination_log.touch()
    facts = Facts(
        pod=pod,
        pod_ip=place.address,
        host_ip=place.host.address,
        allocatable=place.host.allocatable(),
        sources=await _sources(place, pod),
    )
    container, machine = place.container, place.host.machine
    own = resolve(container, facts)
    rewrite = Rewriter(_mounts(place, own))
    env = {
        "PATH": f"{SCRIPTS}:{machine.tools}:{PLAIN_PATH}",
        "HOME": str(place.home),
        "HOSTNAME": pod["spec"].get("hostname") or pod["metadata"]["name"],
        **{name: rewrite(value) for name, value in image.env.items()},
        **(_driver(place.host) if image.reaches_driver else {}),
        **told(place.host.devices.of(pod["metadata"]["uid"], container["name"])),
        **{name: rewrite(value) for name, value in own.items()},
    }
    identity = rewrite.mounts.get(MOUNT)
    if identity is not None and (identity / "token").exists():
        config = machine.tokens.kubeconfig(place.folder / "kubeconfig", identity)
        env.setdefault("KUBECONFIG", str(config))
    command = [rewrite(expand(word, own)) for word in container.get("command", [])]
    arguments = [rewrite(expand(word, own)) for word in container.get("args", [])]
    line = words(image, command, arguments)
    if image.binds_host:
        line = (*line, "--host", place.address)
    folder = Path(rewrite(container["workingDir"])) if "workingDir" in container else place.home
    return Launch(arguments=line, env=env, folder=folder, rewrite=rewrite)


async def start(launch: Launch, image: Image, place: Place, log: Path) -> Instance:
    if image.serve is None:
        return await start_process(
            launch.arguments,
            env=launch.env,
            folder=launch.folder,
            log=log,
            sessions=place.host.machine.sessions,
            home=str(place.home),
        )
    call = Call(
        arguments=launch.arguments,
        host=place.address,
        env=launch.env,
        node=place.host.node.name,
        stop=asyncio.Event(),
    )
    return CoroutineInstance(image.serve, call, log)


def _driver(host: Host) -> dict[str, str]:
    """How a process finds the GPUs of its node."""
    return {SOCKET: str(host.driver), "PYTHONPATH": f"{SHIM}:{SHIM.parents[1]}"}


def _mounts(place: Place, env: dict[str, str]) -> dict[str, Path]:
    found = {}
    for mount in place.container.get("volumeMounts", []):
        inside = mount.get("subPath") or expand(mount.get("subPathExpr", ""), env)
        target = place.volumes[mount["name"]] / inside
        if not target.exists():
            target.mkdir(parents=True)
        found[mount_path(mount["mountPath"])] = target
    last_words = place.container.get("terminationMessagePath", TERMINATION_LOG)
    return found | {last_words: place.termination_log}


async def _sources(place: Place, pod: Json) -> dict[Named, dict[str, str] | None]:
    namespace = pod["metadata"]["namespace"]
    return {
        (kind, name): await _source(place, kind, namespace, name)
        for kind, name in sorted(set(referred(place.container)))
    }


async def _source(place: Place, kind: str, namespace: str, name: str) -> dict[str, str] | None:
    resource = SECRETS if kind == "Secret" else CONFIG_MAPS
    try:
        found = await place.host.machine.api.get(resource.path(namespace, name))
    except ApiError as error:
        if error.status == 404:
            return None
        raise
    return {key: value.decode(errors="replace") for key, value in contents(found).items()}
