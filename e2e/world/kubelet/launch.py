"""Everything that one start of a container needs, put together."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from fakedns.service_names import SERVICES
from fakegpu.remote import SHIM as DRIVER_SHIM
from fakegpu.remote import SOCKET
from fakevolume.faulty_volume import FAULTS
from world.api import CONFIG_MAPS, SECRETS, ApiError, Json
from world.folders import SHIM, service_names
from world.kubelet.devices import device_environment
from world.kubelet.environment import PodFacts, SourceRef, expand, references, resolve
from world.kubelet.host import Host
from world.kubelet.images import SCRIPTS, ImageEntry, command_line
from world.kubelet.instances import Call, ContainerInstance, CoroutineInstance, start_process
from world.kubelet.mount_paths import Rewriter, mount_path
from world.kubelet.tokens import MOUNT
from world.kubelet.volumes import contents

PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin"
TERMINATION_LOG = "/dev/termination-log"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerContext:
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


async def prepare(context: ContainerContext, image: ImageEntry, pod: Json) -> Launch:
    """Environment and command line; `MissingReferenceError` when something is not there (yet)."""
    context.home.mkdir(parents=True, exist_ok=True)
    context.termination_log.touch()
    facts = PodFacts(
        pod=pod,
        pod_ip=context.address,
        host_ip=context.host.address,
        allocatable=context.host.allocatable(),
        sources=await _sources(context, pod),
    )
    container, machine = context.container, context.host.machine
    variables = resolve(container, facts)
    rewrite = Rewriter(_mounts(context, variables))
    env = {
        "PATH": f"{SCRIPTS}:{machine.tools}:{PLAIN_PATH}",
        "HOME": str(context.home),
        "HOSTNAME": pod["spec"].get("hostname") or pod["metadata"]["name"],
        **({} if image.serve else _surroundings(context, image, pod)),
        **{name: rewrite(value) for name, value in image.env.items()},
        **device_environment(
            context.host.devices.held_by(pod["metadata"]["uid"], container["name"])
        ),
        **{name: rewrite(value) for name, value in variables.items()},
    }
    identity = rewrite.mounts.get(MOUNT)
    if identity is not None and (identity / "token").exists():
        config = machine.tokens.kubeconfig(context.folder / "kubeconfig", identity)
        env.setdefault("KUBECONFIG", str(config))
    command = [rewrite(expand(word, variables)) for word in container.get("command", [])]
    arguments = [rewrite(expand(word, variables)) for word in container.get("args", [])]
    line = command_line(image, command, arguments, context.address)
    folder = Path(rewrite(container["workingDir"])) if "workingDir" in container else context.home
    return Launch(arguments=line, env=env, folder=folder, rewrite=rewrite)


async def start(
    launch: Launch, image: ImageEntry, context: ContainerContext, log: Path
) -> ContainerInstance:
    if image.serve is None:
        return await start_process(
            launch.arguments,
            env=launch.env,
            folder=launch.folder,
            log=log,
            sessions=context.host.machine.sessions,
            home=str(context.home),
        )
    call = Call(
        arguments=launch.arguments,
        host=context.address,
        env=launch.env,
        node=context.host.node.name,
        stop=asyncio.Event(),
    )
    return CoroutineInstance(image.serve, call, log)


def _surroundings(context: ContainerContext, image: ImageEntry, pod: Json) -> dict[str, str]:
    """How the Python of a process finds Services, the GPUs of its node, and faults of volumes."""
    paths, machine = [SHIM, *image.python_path], context.host.machine
    services = service_names(machine.folder) / pod["metadata"]["namespace"]
    env = {SERVICES: str(services)}
    if image.reaches_driver:
        env[SOCKET] = str(context.host.driver)
        paths += [DRIVER_SHIM, DRIVER_SHIM.parents[1]]
    if image.writes_claims:
        env[FAULTS] = "1"
    return env | {"PYTHONPATH": ":".join(map(str, paths))}


def _mounts(context: ContainerContext, env: dict[str, str]) -> dict[str, Path]:
    mounts = {}
    for mount in context.container.get("volumeMounts", []):
        inside = mount.get("subPath") or expand(mount.get("subPathExpr", ""), env)
        target = context.volumes[mount["name"]] / inside
        if not target.exists():
            target.mkdir(parents=True)
        mounts[mount_path(mount["mountPath"])] = target
    last_words = context.container.get("terminationMessagePath", TERMINATION_LOG)
    # A home may lie under a path that pods mount, such as /tmp: what is real already stays.
    real = context.host.machine.folder
    return mounts | {last_words: context.termination_log, str(real): real}


async def _sources(context: ContainerContext, pod: Json) -> dict[SourceRef, dict[str, str] | None]:
    namespace = pod["metadata"]["namespace"]
    return {
        (kind, name): await _source(context, kind, namespace, name)
        for kind, name in sorted(set(references(context.container)))
    }


async def _source(
    context: ContainerContext, kind: str, namespace: str, name: str
) -> dict[str, str] | None:
    resource = SECRETS if kind == "Secret" else CONFIG_MAPS
    try:
        body = await context.host.machine.api.get(resource.path(namespace, name))
    except ApiError as error:
        if error.status == 404:
            return None
        raise
    return {key: value.decode(errors="replace") for key, value in contents(body).items()}
