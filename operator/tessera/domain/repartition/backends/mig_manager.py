"""NVIDIA's mig-manager: a name of a configuration as a label of the node, an answer as another.

It says nothing of which question it answers, takes one value of the label as one event, never
repeats what failed, and may stop half-way without a word. Hence a name for every content and
attempt, the neutral word beside it, and belief in what the node offers alone.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from tessera.domain.mig.layouts import Geometry, geometry
from tessera.domain.reasons import LayoutReady, StatusVerdict
from tessera.domain.repartition.backend import Ask, Capabilities, Heard, Layouts
from tessera.domain.repartition.devices import DISCOVERY, PAUSED, PLUGIN, offers
from tessera.domain.repartition.facts import Ground

CONFIG = "nvidia.com/mig.config"
STATE = "nvidia.com/mig.config.state"
ASKED = "asked"
"""The answer as we leave it with a new question: an older one would be read as the new one's."""

_PREFIX = "tessera"
_DISCOVERED = "nvidia.com/gfd.timestamp"
"""When feature discovery wrote its labels last; it comes back together with the device plugin."""
_NAMES = 5
"""Attempts whose names are known from the start: mig-manager sees the file a minute late, so that a
repetition must not need another one."""
_PAUSE = timedelta(seconds=30)
"""Between a failure and the next attempt, times the attempt: together well over that minute."""
_SILENCE = timedelta(minutes=3)
_COURSE = timedelta(minutes=10)
"""It waits up to five minutes for each client of the GPUs to go, and they go at once."""
_REBOOT = timedelta(minutes=25)
_RETURN = timedelta(minutes=5)
"""From the ask on, where nobody tells when the clients came back."""
_SHOWN = timedelta(minutes=1)
"""From the clients' return until their devices are offered."""


@dataclass(frozen=True, slots=True)
class MigManager:
    """`GeometryBackend` over the labels of the node and one ConfigMap.

    Where nobody tells which GPU holds what, `wanted` has to name every GPU in MIG mode.
    """

    knows_pods: bool
    """A `tessera-node` that only looks runs on the nodes."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            pinned_starts=False,
            sibling_safe=False,
            knows_pods=self.knows_pods,
            pauses_node=True,
        )

    def ask(self, ground: Ground, wanted: Layouts, attempt: int) -> Ask:
        """First the GPUs of the unit alone, since all that are named may be touched; then all of
        the node, which is true by then, so that a reboot restores them."""
        contents = _contents(ground, wanted)
        attempts = range(1, max(_NAMES, attempt) + 1)
        name = _due(ground, wanted, attempt)
        return Ask(
            labels={} if ground.labels.get(CONFIG) == name else {CONFIG: name, STATE: ASKED},
            configs={_name(text, at): text for text in contents for at in attempts},
        )

    def heard(
        self, ground: Ground, wanted: Layouts, attempt: int, since: datetime, at: datetime
    ) -> Heard:
        unit, full = (_name(text, attempt) for text in _contents(ground, wanted))
        name, state = ground.labels.get(CONFIG), ground.labels.get(STATE, "")
        if name not in (unit, full):
            return Heard()
        if name != unit:
            since += _COURSE  # that of the unit came first
        if state == "success":
            offered = _cut(ground, wanted) and offers(ground, wanted)
            return Heard(done=name == full) if offered else _missing(ground, since, at)
        limit = _LIMITS.get(state, _Limit(_SILENCE, False, _silent))
        patience = limit.patience * (attempt if state == "failed" else 1)
        if at - since < patience:
            return Heard()
        return Heard(again=limit.again, problem=limit.told(ground, at - since))


def standing(grounds: Iterable[Ground]) -> Mapping[str, str]:
    """The entries that labels of nodes name now: after a reboot they are read again."""
    found = {}
    for ground in grounds:
        name = ground.labels.get(CONFIG, "")
        if not ground.cards or not name.startswith(f"{_PREFIX}-"):
            continue
        _, full = _contents(ground, {})
        if name.startswith(f"{_stem(full)}-"):
            found[name] = full
    return found


def _contents(ground: Ground, wanted: Layouts) -> tuple[str, str]:
    """For the unit, and for all of the node; only GPUs in MIG mode are named, whose mode stays."""
    full = {card.index: card.layout for card in ground.cards} | dict(wanted)
    unit = wanted if ground.tells_pods else full
    return _text(unit), _text(full)


def _text(layouts: Layouts) -> str:
    """An entry as it stands in the file; GPUs of one geometry in one part."""

    def slices(way: Geometry) -> str:
        return ", ".join(f'"{name}": {count}' for name, count in way)

    alike: dict[Geometry, list[int]] = defaultdict(list)
    for index, layout in sorted(layouts.items()):
        alike[geometry(layout)].append(index)
    return "".join(
        f"- devices: [{', '.join(map(str, devices))}]\n"
        "  mig-enabled: true\n"
        f"  mig-devices: {{{slices(way)}}}\n"
        for way, devices in sorted(alike.items(), key=lambda item: item[1])
    )


def _stem(text: str) -> str:
    return f"{_PREFIX}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _name(text: str, attempt: int) -> str:
    return f"{_stem(text)}-{attempt}"


def _due(ground: Ground, wanted: Layouts, attempt: int) -> str:
    """What the label should say now."""
    unit, full = (_name(text, attempt) for text in _contents(ground, wanted))
    name, state = ground.labels.get(CONFIG), ground.labels.get(STATE)
    at_work = name == unit and state not in ("success", "failed")
    return full if name == full or (_cut(ground, wanted) and not at_work) else unit


def _cut(ground: Ground, wanted: Layouts) -> bool:
    """By what is known of each GPU; places are not asked for."""
    there = {card.index: geometry(card.layout) for card in ground.cards}
    return not ground.tells_pods or all(
        there.get(index) == geometry(layout) for index, layout in wanted.items()
    )


def _missing(ground: Ground, since: datetime, at: datetime) -> Heard:
    """The answer comes before the device plugin: its devices get a moment."""
    text = ground.labels.get(_DISCOVERED, "")
    returned = datetime.fromtimestamp(int(text), UTC) if text.isdecimal() else since
    patience = _SHOWN if returned > since else _RETURN
    if at - max(returned, since) < patience:
        return Heard()
    message = (
        f"mig-manager on {ground.name} said success, and the node does not offer the slices; "
        f"kubectl get node {ground.name} -o jsonpath='{{.status.allocatable}}' shows what it does, "
        "nvidia-smi mig -lgi on it what is cut; some drivers need the node rebooted"
    )
    return Heard(again=True, problem=StatusVerdict(LayoutReady.DEVICES_MISSING, message))


def _failed(ground: Ground, _: timedelta) -> StatusVerdict[LayoutReady]:
    return StatusVerdict(
        LayoutReady.BACKEND_FAILED,
        f"mig-manager on {ground.name} said failed; the log of its pod there says why "
        "(kubectl logs -n gpu-operator -l app=nvidia-mig-manager), and its ClusterPolicy has to "
        "name the ConfigMap tessera-mig (migManager.config.name)",
    )


def _stuck(ground: Ground, waited: timedelta) -> StatusVerdict[LayoutReady]:
    """It gives up without a word, and leaves what it paused."""
    paused = [key for key in (PLUGIN, DISCOVERY) if ground.labels.get(key) == PAUSED]
    back = "".join(f" {key}=true" for key in paused)
    mend = f"; kubectl label --overwrite node {ground.name}{back} brings them back" if back else ""
    return StatusVerdict(
        LayoutReady.BACKEND_TIMEOUT,
        f"mig-manager on {ground.name} says {ground.labels.get(STATE)} for {_minutes(waited)} "
        f"minutes: clients of the GPUs that do not go keep it{mend}",
    )


def _silent(ground: Ground, waited: timedelta) -> StatusVerdict[LayoutReady]:
    return StatusVerdict(
        LayoutReady.BACKEND_UNAVAILABLE,
        f"nobody on {ground.name} reacts to {CONFIG} for {_minutes(waited)} minutes: is "
        "mig-manager running there, and does the node carry nvidia.com/mig.capable=true? "
        "kubectl get pods -n gpu-operator -o wide -l app=nvidia-mig-manager",
    )


def _minutes(waited: timedelta) -> int:
    return int(waited.total_seconds() // 60)


class _Limit(NamedTuple):
    """For how long a word is believed, and what it means afterwards."""

    patience: timedelta
    again: bool
    told: Callable[[Ground, timedelta], StatusVerdict[LayoutReady]]


_LIMITS = {
    "failed": _Limit(_PAUSE, True, _failed),
    "pending": _Limit(_COURSE, True, _stuck),
    "rebooting": _Limit(_REBOOT, False, _stuck),
}
