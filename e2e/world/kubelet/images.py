"""The image table: what stands for a container image on this machine.

An image is either a process or a coroutine of the world. To add one, add a row: a pattern for
`repository:tag`, and what runs. The first row that matches counts.
"""

import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from world.folders import cache
from world.kubelet.instances import Call, Serve
from world.kubelet.stand_in import serve_stand_in
from world.kubelet.webserver import serve_http

TABLE = Path(__file__)
SCRIPTS = Path(sysconfig.get_path("scripts"))
NEXT_OPERATOR = TABLE.parents[1] / "next_operator.py"
# In the cache: operator and chart of this commit, unpacked by the scene that rolls back to them.
EARLIER_TESSERA = "tessera-48e4eabe"
RECORDING_OPERATOR = TABLE.parents[1] / "recording_operator.py"
VLLM_ENTRYPOINTS = (
    ("vllm", "serve"),
    ("python3", "-m", "vllm.entrypoints.openai.api_server"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEntry:
    """One row: the first entry point is the image's own, `command` may name any of them."""

    pattern: str
    entrypoints: tuple[tuple[str, ...], ...] = ((),)
    serve: Serve | None = None
    """The coroutine that runs; None for a process."""
    extra: tuple[str, ...] = ()
    """Arguments after those of the container."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Also paths that its program has built in, which only there are rewritten for mounts."""
    python_path: tuple[Path, ...] = ()
    """Where its Python finds modules before those that are installed."""
    binds_host: bool = False
    """Ends those of its entry points with `--host <pod address>`: nothing else keeps pods apart."""
    reaches_driver: bool = False
    """Its `pynvml` talks to the GPUs of its node."""
    writes_claims: bool = False
    """Its writes fail where the world's volumes are said to refuse them."""
    missing: str = ""
    """Why the image cannot be had."""


class UnknownEntrypointError(Exception):
    """A command that the stand-in of an image does not have."""


def table(*, exporter: Serve, vllm: Path | None) -> tuple[ImageEntry, ...]:
    operator = ImageEntry(
        pattern="*/tessera-operator:*",
        entrypoints=((str(SCRIPTS / "tessera-operator"),), ("tessera-operator",)),
        env={"PYTHONUNBUFFERED": "1"},
        binds_host=True,
    )
    agent = ImageEntry(
        pattern="*/tessera-node:*",
        entrypoints=((str(SCRIPTS / "tessera-node"),), ("tessera-node",)),
        env={
            "PYTHONUNBUFFERED": "1",
            "TESSERA_POD_RESOURCES_SOCKET": "/var/lib/kubelet/pod-resources/kubelet.sock",
            "TESSERA_LOCK_DIRECTORY": "/run/tessera",
        },
        binds_host=True,
        reaches_driver=True,
    )
    runner = ImageEntry(
        pattern="*/tessera-batch:*",
        entrypoints=((str(SCRIPTS / "tessera-batch"),), ("tessera-batch",)),
        env={"PYTHONUNBUFFERED": "1"},
        writes_claims=True,
    )
    gateway = ImageEntry(
        pattern="*/tessera-gateway:*",
        entrypoints=((str(SCRIPTS / "tessera-gateway"),), ("tessera-gateway",)),
        env={"PYTHONUNBUFFERED": "1"},
        binds_host=True,
    )
    engine = ImageEntry(
        pattern="vllm/vllm-openai:*",
        serve=_run_simulator,
        entrypoints=(*VLLM_ENTRYPOINTS, ("tessera-sim",)),
    )
    next_operator = ImageEntry(
        pattern="tessera/operator-next:*",
        entrypoints=((sys.executable, str(NEXT_OPERATOR)),),
        env={"PYTHONUNBUFFERED": "1"},
        binds_host=True,
    )
    recording_operator = replace(
        next_operator,
        pattern="tessera/operator-recording:*",
        entrypoints=((sys.executable, str(RECORDING_OPERATOR)),),
    )
    earlier_operator = replace(
        next_operator,
        pattern="tessera/operator-earlier:*",
        entrypoints=((sys.executable, "-m", "tessera.controller.main"),),
        python_path=(cache() / EARLIER_TESSERA / "operator",),
    )
    return (
        operator,
        next_operator,
        earlier_operator,
        recording_operator,
        _named(operator, "tessera/operator:*"),
        runner,
        _named(runner, "tessera/batch:*"),
        agent,
        _named(agent, "tessera/node:*"),
        gateway,
        _named(gateway, "tessera/gateway:*"),
        engine,
        _named(engine, "*/tessera-sim:*"),
        _real_vllm(vllm),
        ImageEntry(
            pattern="nvcr.io/nvidia/k8s/dcgm-exporter:*",
            entrypoints=((), ("dcgm-exporter",)),
            serve=exporter,
        ),
        ImageEntry(pattern="world/sh:*", entrypoints=(("sh", "-c"),)),
        ImageEntry(pattern="world/http:*", serve=serve_http),
        ImageEntry(pattern="world/stand-in:*", serve=serve_stand_in),
    )


def find(images: Sequence[ImageEntry], reference: str) -> ImageEntry | None:
    """The row for an image reference; a missing tag is `latest`, a digest counts as a tag."""
    name, _, digest = reference.removeprefix("docker.io/").partition("@")
    if ":" not in name.rpartition("/")[2]:
        name = f"{name}:{digest or 'latest'}"
    return next((image for image in images if fnmatchcase(name, image.pattern)), None)


def absent(reference: str) -> str:
    return f"{reference} is not in the image table of the world: {TABLE}"


def command_line(
    image: ImageEntry, command: Sequence[str], arguments: Sequence[str], host: str
) -> tuple[str, ...]:
    """The command line of a process, which may bind to a host, or the arguments of a coroutine."""
    if image.serve is None:
        line = (*(command or image.entrypoints[0]), *arguments, *image.extra)
        # Other programs of the image, such as that of a Job, have no such option.
        is_own = any(line[: len(each)] == each for each in image.entrypoints)
        return (*line, "--host", host) if image.binds_host and is_own else line
    line = (*command, *arguments) if command else (*image.entrypoints[0], *arguments)
    for entrypoint in image.entrypoints:
        if line[: len(entrypoint)] == entrypoint:
            return line[len(entrypoint) :]
    raise UnknownEntrypointError(f"{line[0]}: the stand-in for {image.pattern} has no such command")


def _named(image: ImageEntry, pattern: str) -> ImageEntry:
    return replace(image, pattern=pattern)


def _real_vllm(venv: Path | None) -> ImageEntry:
    """A real vLLM server on the CPU, small enough for a laptop."""
    pattern = "tessera.dev/vllm-cpu:*"
    if venv is None:
        return ImageEntry(
            pattern=pattern,
            missing="no vLLM on this machine: install it into a virtual environment of its own "
            "and start the world with --vllm PATH_TO_VENV",
        )
    return ImageEntry(
        pattern=pattern,
        entrypoints=((str(venv / "bin" / "vllm"), "serve"), *VLLM_ENTRYPOINTS),
        extra=("--enforce-eager", "--num-gpu-blocks-override", "64"),
        env={
            "PATH": f"{venv / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "VLLM_CPU_CI_ENV": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        },
        binds_host=True,
    )


async def _run_simulator(call: Call) -> None:
    # Imported when first used: a world without engines does not load them.
    from tessera_lab.sim.main import serve  # noqa: PLC0415

    await serve(call.arguments, host=call.host, env=call.env, stop=call.stop)
