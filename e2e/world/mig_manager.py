"""A simulator of NVIDIA's mig-manager on one node, as a state machine; pure but for the GPUs.

It follows the label state machine of mig-manager 0.15 with the edges that people meet: the old
answer stays until it begins, one value of the label is one event, an entry that has not arrived is
a failure without repetition, a differing GPU is cleared as a whole, and a mode that differs clears
every GPU that is named. What it does only at times is on the switches of `Edges`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import yaml

from fakegpu.gpu_driver import Code, FakeGpu, GpuDriver, RefusedError

CONFIG = "nvidia.com/mig.config"
STATE = "nvidia.com/mig.config.state"
CAPABLE = "nvidia.com/mig.capable"
PRODUCT = "nvidia.com/gpu.product"
PAUSED = "paused-for-mig-change"
# Labels of the node that each say whether a client of the GPUs runs there.
CLIENTS = tuple(
    f"nvidia.com/gpu.deploy.{part}"
    for part in ("device-plugin", "gpu-feature-discovery", "dcgm-exporter", "dcgm", "nvsm")
)
_GUESSED = ("h100", "a100", "a30")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long its parts take, in seconds."""

    notice: float = 1.0
    """From the change of the label until `pending`: so long the old answer is seen."""
    pausing: float = 20.0
    """Until the clients of the GPUs are gone."""
    cutting: float = 10.0
    """The GPUs."""
    rebooting: float = 240.0
    resuming: float = 20.0
    """Until the answer, after the clients may come back."""

    def times(self, factor: float) -> "Pace":
        """All of it so much slower."""
        return Pace(**{name: factor * getattr(self, name) for name in self.__slots__})


@dataclass(slots=True, kw_only=True)
class Edges:
    """What goes wrong; a test turns it on, and off again."""

    deaf: bool = False
    """The label is ignored."""
    stuck: bool = False
    """A client does not stop: it gives up without a state and leaves the clients paused."""
    lies: bool = False
    """It changes nothing and reports success."""
    fails: int = 0
    """So many times the repartitioning fails, with the GPUs cleared."""
    reboots: bool = False
    """It reboots the node before it repartitions."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Entries of a configuration for some GPUs."""

    devices: frozenset[int] | None
    """None means all."""
    enabled: bool
    slices: Counter[str]

    def names(self, gpu: FakeGpu) -> bool:
        return self.devices is None or gpu.index in self.devices


@dataclass(slots=True, kw_only=True)
class MigManager:
    """One process: a new one, as after a reboot, takes the label as it stands as its first event.

    Call `step` whenever time passed or something changed, write the labels that it answers, and
    call it again.
    """

    pace: Pace = field(default_factory=Pace)
    edges: Edges = field(default_factory=Edges)
    mode_changes: int = 0
    """So often a mode was to be changed; an operator that never asks for it keeps this at 0."""
    _seen: str | None = None
    _steps: Iterator[tuple[float, Mapping[str, str]]] | None = None
    _due: float = 0.0
    _next: Mapping[str, str] | None = None

    def step(
        self, labels: Mapping[str, str], config: str | None, gpu_driver: GpuDriver, now: float
    ) -> Mapping[str, str] | None:
        """The labels to write now; None while there is nothing to do.

        `config` is the text of `config.yaml` as the node has it; `now` are seconds of any clock.
        """
        if self._next is not None:
            if now < self._due:
                return None
            next_labels, self._next = self._next, None
            self._advance(now)
            return {key: value for key, value in next_labels.items() if _is_deployed(key, labels)}
        name = labels.get(CONFIG)
        if self.edges.deaf or name is None or name == self._seen or not _capable(labels):
            return None
        self._seen = name
        self._steps = self._apply(name, config, gpu_driver)
        self._advance(now)
        return self.step(labels, config, gpu_driver, now) if self._next is not None else None

    def _advance(self, now: float) -> None:
        """The next part begins: its labels are due when its time is over."""
        if self._steps is None:
            return
        try:
            seconds, self._next = next(self._steps)
        except StopIteration:
            self._steps = None
        else:
            self._due = now + seconds

    def _apply(
        self, name: str, config: str | None, gpu_driver: GpuDriver
    ) -> Iterator[tuple[float, Mapping[str, str]]]:
        """Seconds to wait, and the labels after them; what stands between is done then."""
        parts = _entry(config, name)
        if parts is None:
            yield self.pace.notice, {STATE: "failed"}
            return
        if not any(_differs(part, gpu) for part in parts for gpu in gpu_driver.gpus):
            yield self.pace.notice, {STATE: "success"}
            return
        yield self.pace.notice, {STATE: "pending"}
        yield 0.0, dict.fromkeys(CLIENTS, PAUSED)
        if self.edges.stuck:
            return
        if self.edges.reboots:
            yield self.pace.pausing, {STATE: "rebooting"}
            yield self.pace.rebooting, {STATE: "pending"}
        yield self.pace.pausing + self.pace.cutting, {}
        done = self._repartition(parts, gpu_driver)
        yield 0.0, dict.fromkeys(CLIENTS, "true")
        yield self.pace.resuming, {STATE: "success" if done else "failed"}

    def _repartition(self, parts: Sequence[_Part], gpu_driver: GpuDriver) -> bool:
        if self.edges.lies:
            return True
        named = [(part, gpu) for part in parts for gpu in gpu_driver.gpus if part.names(gpu)]
        try:
            if any(part.enabled != gpu.mig for part, gpu in named):
                self.mode_changes += 1
                for _, gpu in named:
                    _clear(gpu, gpu_driver)
                return False  # without a reboot the mode stays, and the slices cannot be made
            for part, gpu in named:
                if _differs(part, gpu):
                    _clear(gpu, gpu_driver)
                    self._create_slices(part, gpu, gpu_driver)
        except RefusedError:
            return False
        return True

    def _create_slices(self, part: _Part, gpu: FakeGpu, gpu_driver: GpuDriver) -> None:
        if self.edges.fails:
            self.edges.fails -= 1
            raise RefusedError(Code.UNKNOWN)
        # The large ones first: the driver chooses the places, and not every order fits.
        for profile in sorted(part.slices.elements(), key=partial(_size, gpu), reverse=True):
            gpu_driver.create(gpu.index, profile)


def _clear(gpu: FakeGpu, gpu_driver: GpuDriver) -> None:
    """One after the other: what went before one that is in use stays gone."""
    for instance in tuple(gpu.instances):
        gpu_driver.destroy(gpu.index, instance.start)


def _size(gpu: FakeGpu, profile: str) -> tuple[int, int]:
    kind = gpu.model.by_name(profile)
    return (kind.memory_slices, kind.compute_slices) if kind else (0, 0)


def _is_deployed(key: str, labels: Mapping[str, str]) -> bool:
    """Return False for the label of a client that is not deployed on the node."""
    return key not in CLIENTS or labels.get(key, "false") != "false"


def _capable(labels: Mapping[str, str]) -> bool:
    """Without the label the names of a few products are guessed from."""
    product = labels.get(PRODUCT, "").lower()
    guessed = "true" if any(name in product for name in _GUESSED) else "false"
    return labels.get(CAPABLE, guessed) == "true"


def _entry(config: str | None, name: str) -> tuple[_Part, ...] | None:
    """A configuration by its name; None where the file does not have it, or is none."""
    try:
        body = yaml.safe_load(config or "")
        entry = body["mig-configs"][name] if body["version"] == "v1" else None
        return None if entry is None else tuple(_part(part_spec) for part_spec in entry)
    except (yaml.YAMLError, TypeError, KeyError):
        return None


def _part(spec: Mapping[str, Any]) -> _Part:
    devices = spec["devices"]
    return _Part(
        None if devices == "all" else frozenset(devices),
        bool(spec["mig-enabled"]),
        Counter(spec.get("mig-devices") or {}),
    )


def _differs(part: _Part, gpu: FakeGpu) -> bool:
    """Profiles count, whatever their places."""
    if not part.names(gpu):
        return False
    if part.enabled != gpu.mig:
        return True
    return part.enabled and part.slices != Counter(instance.profile for instance in gpu.instances)
