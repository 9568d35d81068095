"""The states of a container, and their form in the API."""

import datetime
from dataclasses import dataclass

from world.api import Json
from world.clock import stamp


@dataclass(frozen=True, slots=True)
class Waiting:
    reason: str
    message: str = ""

    def wire(self) -> Json:
        fields = {"reason": self.reason, "message": self.message}
        return {"waiting": {key: value for key, value in fields.items() if value}}


@dataclass(frozen=True, slots=True)
class Running:
    since: datetime.datetime

    def wire(self) -> Json:
        return {"running": {"startedAt": stamp(self.since)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminated:
    code: int
    reason: str
    message: str
    started: datetime.datetime
    finished: datetime.datetime
    container_id: str

    def wire(self) -> Json:
        fields = {
            "exitCode": self.code,
            "reason": self.reason,
            "startedAt": stamp(self.started),
            "finishedAt": stamp(self.finished),
            "containerID": self.container_id,
        }
        return {"terminated": fields | ({"message": self.message} if self.message else {})}


State = Waiting | Running | Terminated


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One container as its status shows it."""

    name: str
    image: str
    state: State = Waiting("PodInitializing")
    last: Terminated | None = None
    restarts: int = 0
    container_id: str = ""
    started: bool = False
    """Passed its startup probe, or has none."""
    ready: bool = False

    def wire(self) -> Json:
        return {
            "name": self.name,
            "image": self.image,
            "imageID": f"world://{self.image}" if self.container_id else "",
            "containerID": self.container_id,
            "started": self.started,
            "ready": self.ready,
            "restartCount": self.restarts,
            "state": self.state.wire(),
            "lastState": self.last.wire() if self.last else {},
        }
