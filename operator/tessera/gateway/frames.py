"""What the supervisor and the workers of one gateway tell each other."""

from dataclasses import replace
from typing import TypeAlias

import msgspec

from tessera.api.ref import Ref
from tessera.domain.gateway.access import AccessReason
from tessera.domain.gateway.directory import ApiKey, Directory, Identity
from tessera.domain.gateway.requests import RunningRequest, UsageRecord
from tessera.domain.limits.account import Portion, PortionRequest, SlotGrant, SlotRequest
from tessera.domain.limits.worker_shares import WorkerShare
from tessera.domain.picking.replica_state import EngineLoad, SentLoad


class DirectoryUpdate(msgspec.Struct, tag=True, frozen=True):
    """The directory without its keys, which replaces the last one."""

    directory: Directory


class KeysUpdate(msgspec.Struct, tag=True, frozen=True):
    """All keys by their digests, which replace the last ones.

    They are most of a directory, and change less often than replicas.
    """

    keys: dict[str, ApiKey]


class EngineLoads(msgspec.Struct, tag=True, frozen=True):
    """Readings of the last poll, by the UIDs of pods."""

    loads: dict[str, EngineLoad]


class OtherLoads(msgspec.Struct, tag=True, frozen=True):
    """What all other workers of this gateway have in flight, by the UIDs of pods."""

    loads: dict[str, SentLoad]
    shares: dict[Ref, WorkerShare] = {}
    """Of this worker, in the services that requests of other workers wait for."""


class TokenVerdict(msgspec.Struct, tag=True, frozen=True):
    """Whose token it is, or why it is refused."""

    number: int
    """That of the `TokenQuery`."""
    identity: Identity | None = None
    reason: AccessReason | None = None
    seconds: float = 0.0
    """How long the verdict may be remembered."""


class UsageTaken(msgspec.Struct, tag=True, frozen=True):
    """The supervisor has the records, so the worker forgets them."""

    number: int
    """That of the `UsageBatch`."""


class ListRequests(msgspec.Struct, tag=True, frozen=True):
    """The supervisor asks for the requests that run."""

    number: int
    limit: int


class TokenQuery(msgspec.Struct, tag=True, frozen=True):
    """A token of a ServiceAccount or of OIDC, which is no key."""

    number: int
    token: str


class WorkerDemand(msgspec.Struct, frozen=True):
    """Requests of one service in one worker."""

    arrived: int = 0
    """Since the worker began."""
    queued: int = 0
    in_flight: int = 0
    predicted_seconds: float = 0.0
    """Predicted time that an engine needs for those queued and in flight."""
    tenants: dict[str, int] = {}
    """Those queued and in flight, by tenant."""
    overdue: int = 0
    """Streams that wait for their first token longer than their target."""
    oldest_seconds: float = 0.0
    """Age of the oldest stream without a token."""


class Borrow(msgspec.Struct, tag=True, frozen=True):
    """A worker asks for portions of limits."""

    number: int
    portions: tuple[PortionRequest, ...] = ()
    slots: tuple[SlotRequest, ...] = ()


class Portions(msgspec.Struct, tag=True, frozen=True):
    """What it got. There is no answer while the store does not answer."""

    number: int
    """That of `Borrow`."""
    portions: tuple[Portion, ...] = ()
    slots: tuple[SlotGrant, ...] = ()


class WorkerReport(msgspec.Struct, tag=True, frozen=True):
    """What a worker holds now; sent four times a second."""

    sent: dict[str, SentLoad] = {}
    """In flight, by the UIDs of pods."""
    demand: dict[Ref, WorkerDemand] = {}


class UsageBatch(msgspec.Struct, tag=True, frozen=True):
    """Records of requests that ended."""

    number: int
    records: list[UsageRecord]


class RequestList(msgspec.Struct, tag=True, frozen=True):
    """The oldest requests that run, and how many do."""

    number: int
    """That of `ListRequests`."""
    requests: list[RunningRequest]
    total: int


class Wake(msgspec.Struct, tag=True, frozen=True):
    """A request waits for a service that has no replica."""

    service: Ref


def directory_frames(directory: Directory, last: Directory | None) -> list["ToWorker"]:
    """Return what workers need that know the last directory; the keys come first."""
    frames: list[ToWorker] = []
    rest, last_rest = replace(directory, keys={}), last and replace(last, keys={})
    if last is None or directory.keys != last.keys:
        frames.append(KeysUpdate(dict(directory.keys)))
    if rest != last_rest:
        frames.append(DirectoryUpdate(rest))
    return frames


ToWorker: TypeAlias = (
    KeysUpdate
    | DirectoryUpdate
    | EngineLoads
    | OtherLoads
    | TokenVerdict
    | UsageTaken
    | Portions
    | ListRequests
)
ToSupervisor: TypeAlias = WorkerReport | UsageBatch | TokenQuery | Borrow | Wake | RequestList
