"""The kubelet's rules, as values: no world is needed."""

import datetime
from pathlib import Path

import pytest

from world.api import Json
from world.fleet import read
from world.gpus.hardware import hardware
from world.kubelet import backoff, images, logs, payload
from world.kubelet.devices import Devices, NoDeviceError, device_environment
from world.kubelet.environment import MissingReferenceError, PodFacts, expand, field, resolve
from world.kubelet.images import ImageEntry, UnknownEntrypointError
from world.kubelet.instances import Call
from world.kubelet.mount_paths import Rewriter, mount_path
from world.kubelet.payload import VolumeFile
from world.kubelet.probes import ProbeTiming, Streak
from world.kubelet.quantities import divided, number
from world.testing import a_container, a_pod

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LATER = NOW + datetime.timedelta(minutes=1)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(NAME)", "world"),
        ("a-$(NAME)-b", "a-world-b"),
        ("$$(NAME)", "$(NAME)"),
        ("$(OTHER)", "$(OTHER)"),
        ("$NAME ${NAME}", "$NAME ${NAME}"),
        ("$$$(NAME)", "$world"),
    ],
)
def test_references_in_text_are_expanded_as_kubernetes_does(text: str, expanded: str) -> None:
    assert expand(text, {"NAME": "world"}) == expanded


def pod_facts(pod: Json | None = None, **sources: dict[str, str]) -> PodFacts:
    body = pod or a_pod("p")
    body["metadata"] |= {"namespace": "ns", "uid": "u-1", "annotations": {"note": "x"}}
    return PodFacts(
        pod=body,
        pod_ip="127.10.1.1",
        host_ip="127.10.0.2",
        allocatable={"cpu": "96", "memory": "1024Gi"},
        sources={("ConfigMap", name): content for name, content in sources.items()},
    )


def test_later_variables_see_earlier_ones_and_win_over_them() -> None:
    container = a_container(
        envFrom=[{"prefix": "P_", "configMapRef": {"name": "settings"}}],
        env=[
            {"name": "A", "value": "$(P_x)1"},
            {"name": "B", "value": "$(A)2 $(C)"},
            {"name": "P_x", "value": "own"},
            {"name": "C", "value": "late"},
        ],
    )

    environment = resolve(container, pod_facts(settings={"x": "theirs"}))

    assert environment == {"P_x": "own", "A": "theirs1", "B": "theirs12 $(C)", "C": "late"}


@pytest.mark.parametrize("optional", [True, False])
def test_a_missing_key_matters_unless_it_is_optional(optional: bool) -> None:
    reference = {"name": "settings", "key": "y", "optional": optional}
    variable = {"name": "A", "valueFrom": {"configMapKeyRef": reference}}
    container = a_container(env=[variable])

    if optional:
        assert resolve(container, pod_facts(settings={})) == {}
    else:
        with pytest.raises(MissingReferenceError, match='configmap "settings" has no key y'):
            resolve(container, pod_facts(settings={}))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.labels['app']", "p"),
        ("metadata.annotations['note']", "x"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations", 'note="x"\n'),
        ("status.podIP", "127.10.1.1"),
        ("status.hostIP", "127.10.0.2"),
        ("spec.serviceAccountName", "default"),
    ],
)
def test_the_downward_api_tells_a_pod_about_itself(path: str, value: str) -> None:
    assert field(path, pod_facts()) == value


@pytest.mark.parametrize(
    ("resource", "divisor", "value"),
    [
        ("limits.cpu", "1", "2"),
        ("limits.cpu", "1m", "1500"),
        ("requests.memory", "1Mi", "512"),
        ("limits.memory", "1Gi", "1024"),
        ("requests.cpu", "1", "0"),
    ],
)
def test_resources_are_given_in_whole_multiples_of_the_divisor(
    resource: str, divisor: str, value: str
) -> None:
    reference = {"resourceFieldRef": {"resource": resource, "divisor": divisor}}
    limits = {"limits": {"cpu": "1500m"}, "requests": {"memory": "0.5Gi"}}
    container = a_container(env=[{"name": "A", "valueFrom": reference}], resources=limits)

    assert resolve(container, pod_facts()) == {"A": value}


@pytest.mark.parametrize(
    ("quantity", "plain"),
    [("1", 1), ("1500m", 1.5), ("2Ki", 2048), ("1.5Gi", 1610612736), ("1e3", 1000), ("3k", 3000)],
)
def test_quantities_are_read_with_their_suffixes(quantity: str, plain: float) -> None:
    assert float(number(quantity)) == plain
    assert divided("0", "1") == "0"


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("/data", "/real/data"),
        ("/data/x", "/real/data/x"),
        ("--dir=/data", "--dir=/real/data"),
        ("file:///data/x", "file:///real/data/x"),
        ("/a:/data:/b", "/a:/real/data:/b"),
        ("/data/deep/x", "/real/deep/x"),
        ("/data/deeper", "/real/data/deeper"),
        ("/data-old", "/data-old"),
        ("/data.bak", "/data.bak"),
        ("/var/data", "/var/data"),
        ("http://host/data", "http://host/data"),
        ("cat /data/a /data/deep/b", "cat /real/data/a /real/deep/b"),
        ("'/data'", "'/real/data'"),
    ],
)
def test_mount_paths_are_rewritten_as_whole_components(text: str, rewritten: str) -> None:
    mounts = {"/data": Path("/real/data"), "/data/deep": Path("/real/deep"), "/": Path("/root")}

    assert Rewriter(mounts)(text) == rewritten


def test_a_slash_at_the_end_of_a_mount_path_changes_nothing() -> None:
    assert (mount_path("/data/"), mount_path("/")) == ("/data", "/")


def test_pauses_double_up_to_a_limit() -> None:
    assert [backoff.pause(n) for n in range(1, 8)] == [0.5, 1, 2, 4, 8, 10, 10]


def test_a_container_that_ran_long_enough_resets_its_backoff() -> None:
    assert backoff.failures_after(5, ran_seconds=19) == 6
    assert backoff.failures_after(5, ran_seconds=20) == 1


@pytest.mark.parametrize(
    ("answers", "verdicts"),
    [
        ("+", [True]),
        ("-", [None]),
        ("--", [None, None]),
        ("---", [None, None, False]),
        ("--+", [None, None, True]),
        ("--+--", [None, None, True, None, None]),
        ("----", [None, None, False, False]),
    ],
)
def test_a_verdict_needs_enough_equal_answers_in_a_row(
    answers: str, verdicts: list[bool | None]
) -> None:
    timing = ProbeTiming(delay=0, period=1, timeout=1, successes=1, failures=3)
    streak, actual_verdicts = Streak(), []
    for answer in answers:
        streak = streak.then(answer == "+")
        actual_verdicts.append(streak.verdict(timing))

    assert actual_verdicts == verdicts


def test_files_are_swapped_all_at_once_and_old_ones_vanish(tmp_path: Path) -> None:
    payload.write(tmp_path, {"a": VolumeFile(b"1"), "deep/b": VolumeFile(b"2", 0o400)})
    before = (tmp_path / "..data").resolve()
    payload.write(tmp_path, {"a": VolumeFile(b"1"), "deep/b": VolumeFile(b"2", 0o400)})
    assert (tmp_path / "..data").resolve() == before

    payload.write(tmp_path, {"a": VolumeFile(b"new"), "c": VolumeFile(b"3")})

    assert (tmp_path / "a").read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {"a", "c"}
    assert not before.exists()


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    path = tmp_path / "fleet.yaml"
    path.write_text(
        "nodes: [{name: n, product: NVIDIA-A100-SXM4-80GB, gpus: [[1g.10gb, 1g.10gb], whole]}]"
    )
    (node,) = read(path)
    devices = Devices()
    devices.offer(hardware(node).devices())
    return devices


def a_gpu_pod(uid: str, resource: str, count: int) -> Json:
    container = a_container(resources={"limits": {resource: str(count)}})
    pod = a_pod(uid, container)
    pod["metadata"] |= {"uid": uid, "namespace": "ns"}
    return pod


def test_devices_are_allocated_once_and_released(devices: Devices) -> None:
    devices.admit(a_gpu_pod("a", "nvidia.com/mig-1g.10gb", 2))
    with pytest.raises(NoDeviceError, match="Requested: 1, Available: 0"):
        devices.admit(a_gpu_pod("b", "nvidia.com/mig-1g.10gb", 1))

    devices.release("a")
    devices.admit(a_gpu_pod("b", "nvidia.com/mig-1g.10gb", 1))

    assert len(devices.held_by("b", "main")) == 1
    assert devices.held_by("a", "main") == []


def test_a_pod_that_gets_less_than_it_asks_gets_nothing(devices: Devices) -> None:
    greedy = a_gpu_pod("a", "nvidia.com/mig-1g.10gb", 1)
    more = a_container(resources={"limits": {"nvidia.com/gpu": "2"}}) | {"name": "more"}
    greedy["spec"]["containers"].append(more)

    with pytest.raises(NoDeviceError, match=r"for nvidia\.com/gpu"):
        devices.admit(greedy)

    assert not list(devices.held_devices())


def test_a_container_gets_its_devices_in_its_environment(devices: Devices) -> None:
    devices.admit(a_gpu_pod("a", "nvidia.com/gpu", 1))

    environment = device_environment(devices.held_by("a", "main"))

    assert environment["TESSERA_SIM_DEVICE"] == "NVIDIA-A100-SXM4-80GB"
    assert environment["NVIDIA_VISIBLE_DEVICES"].startswith("GPU-")
    assert device_environment([]) == {}


async def _nothing(_: Call) -> None:
    """A coroutine that is never run."""


TABLE = images.table(exporter=_nothing, vllm=None)


@pytest.mark.parametrize(
    ("reference", "pattern"),
    [
        ("ghcr.io/acme/tessera-operator:0.1.0", "*/tessera-operator:*"),
        ("localhost:5000/x/tessera-operator", "*/tessera-operator:*"),
        ("tessera/operator:dev", "tessera/operator:*"),
        ("docker.io/vllm/vllm-openai:v0.32.0", "vllm/vllm-openai:*"),
        ("vllm/vllm-openai@sha256:0123", "vllm/vllm-openai:*"),
        ("ghcr.io/acme/tessera-sim:1@sha256:0123", "*/tessera-sim:*"),
    ],
)
def test_an_image_is_found_by_its_name_and_tag(reference: str, pattern: str) -> None:
    image = images.find(TABLE, reference)

    assert image is not None
    assert image.pattern == pattern


def test_an_unknown_image_has_no_row() -> None:
    assert images.find(TABLE, "nginx:1") is None


def test_a_missing_vllm_says_how_to_get_one() -> None:
    image = images.find(TABLE, "tessera.dev/vllm-cpu:0.32.0")

    assert image is not None
    assert "--vllm PATH_TO_VENV" in image.missing


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ([], ["--model", "m"], ("--model", "m")),
        (["vllm", "serve"], ["m"], ("m",)),
        (["vllm", "serve", "m"], [], ("m",)),
        (
            ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"],
            [],
            ("--model", "m"),
        ),
    ],
)
def test_a_coroutine_gets_the_arguments_after_its_entry_point(
    command: list[str], arguments: list[str], expected: tuple[str, ...]
) -> None:
    engine = images.find(TABLE, "vllm/vllm-openai:v1")
    assert engine is not None

    assert images.command_line(engine, command, arguments, "127.0.0.9") == expected


@pytest.mark.parametrize(
    ("command", "binds"),
    [
        ([], True),
        (["tessera-gateway"], True),
        (["python", "-m", "tessera.gateway.import_usage", "/old/store.db"], False),
    ],
)
def test_only_the_entry_points_of_an_image_bind_to_a_host(command: list[str], binds: bool) -> None:
    gateway = images.find(TABLE, "tessera/gateway:1")
    assert gateway is not None

    line = images.command_line(gateway, command, ["--flag"], "127.0.0.9")
    assert (line[-2:] == ("--host", "127.0.0.9")) is binds
    assert "--flag" in line


def test_a_command_that_a_stand_in_does_not_have_is_refused() -> None:
    engine = ImageEntry(pattern="e:*", serve=_nothing, entrypoints=(("engine",),))

    with pytest.raises(UnknownEntrypointError, match="bash: the stand-in for e:"):
        images.command_line(engine, ["bash"], [], "127.0.0.9")


def test_the_termination_message_is_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{'x' * 100} {n}\n" for n in range(100)))

    message = logs.last_words(log)

    assert len(message) <= 2048
    assert message.endswith(" 99\n")
    assert logs.tail(b"a\nb\nc\n", 2) == b"b\nc\n"
    assert logs.tail(b"a\n", 0) == b""
