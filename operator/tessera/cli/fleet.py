"""What commands plan from: objects of the cluster, and readings if Prometheus is given."""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from tessera.adapters import wire
from tessera.adapters.clock import now
from tessera.adapters.prometheus import PrometheusMetrics
from tessera.cli.cluster import Json, Reader
from tessera.cli.errors import DeniedError
from tessera.cli.trim import trimmed
from tessera.domain.autoscale import ScalingHistory, rebuild_history
from tessera.domain.draft import history_from_status, scaling_of
from tessera.domain.plan import Plan, plan
from tessera.domain.snapshot import Readings, Ref, Snapshot
from tessera.ports import MetricsError, ObjectList
from tessera.reconcile.observe import Senses, observe
from tessera.reconcile.store import Store
from tessera.resources.defaults import newest
from tessera.resources.kinds import INFERENCE_SERVICES, KINDS, Kind
from tessera.settings import CommandSettings

PLANNED = tuple(kind for kind in KINDS if wire.planned(kind))
"""What a plan reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Everything that a plan is made from."""

    at: datetime
    objects: Mapping[str, Sequence[Json]]
    """By the plural of their kind, trimmed."""
    unread: tuple[str, ...] = ()
    """What could not be read, and why; with anything unread a plan would be wrong."""
    readings: Readings | None = None
    memory: Mapping[Ref, ScalingHistory] = field(default_factory=dict)
    """The autoscaler's windows, as far as Prometheus could tell."""

    @property
    def snapshot(self) -> Snapshot:
        """The same value that the operator would make of it."""
        store = Store(PLANNED)
        for kind in PLANNED:
            seen = tuple(wire.seen(kind, body) for body in self.objects.get(kind.plural, ()))
            store.replace(kind, ObjectList(seen))
        senses = Senses(readings=self.readings, memory=dict(self.memory), builder=newest())
        return observe(store, senses, self.at)

    def planned(self, snapshot: Snapshot) -> Plan | None:
        """The plan; None where something that it needs may not be read."""
        return None if self.unread else plan(snapshot)


async def fleet_of(reader: Reader, prometheus: str | None) -> Fleet:
    """All objects that a plan reads; of what may not be listed everywhere, those of a namespace."""
    found = await asyncio.gather(*(_listed(reader, kind) for kind in PLANNED))
    objects = {kind.plural: bodies for kind, (bodies, _) in zip(PLANNED, found, strict=True)}
    unread = tuple(why for _, why in found if why)
    fleet = Fleet(at=now(), objects=objects, unread=unread)
    return fleet if prometheus is None else await with_readings(fleet, prometheus)


async def _listed(reader: Reader, kind: Kind) -> tuple[list[Json], str]:
    try:
        bodies, why = await reader.all(kind), ""
    except DeniedError as error:
        bodies, why = await _here(reader, kind), str(error)
    return [trimmed(kind, body) for body in bodies], why


async def _here(reader: Reader, kind: Kind) -> list[Json]:
    """What of a kind may be seen in the user's own namespace."""
    if not kind.namespaced:
        return []
    try:
        return await reader.all(kind, reader.namespace)
    except DeniedError:
        if kind is INFERENCE_SERVICES:
            raise
        return []


async def with_readings(fleet: Fleet, url: str) -> Fleet:
    """The same fleet with what Prometheus says now, and the windows that its past gives."""
    metrics = PrometheusMetrics(url, now)
    readings = await metrics.read()
    services = {one.ref: one for one in fleet.snapshot.services}
    policies = {ref: scaling_of(one.spec) for ref, one in services.items() if one.spec is not None}
    spans = [max(one.scale_up.window, one.scale_down.window) for one in policies.values()]
    try:
        past = await metrics.load_history(max(spans)) if spans and readings.problem is None else {}
    except MetricsError:
        past = {}
    memory = {
        ref: rebuild_history(policy, past[ref], history_from_status(services[ref].status))
        for ref, policy in policies.items()
        if ref in past
    }
    return replace(fleet, readings=readings, memory=memory)


def prometheus_of(arguments: argparse.Namespace) -> str | None:
    """The URL that the user gave."""
    url: str | None = arguments.prometheus or CommandSettings().prometheus_url
    return url
