"""Questions to engines that a turn does not wait for; their answers enter a later turn."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from functools import partial

from tessera.domain.allotment import ServicePlan
from tessera.domain.batch.facts import Asked
from tessera.domain.batch.names import RUNNER_PORT
from tessera.domain.names import PORT
from tessera.domain.plan import Plan
from tessera.domain.readiness import was_ready
from tessera.domain.snapshot import (
    InFlight,
    ObservedService,
    Pod,
    ProbeResult,
    Ref,
    Resolution,
    RevisionQuery,
    Snapshot,
)
from tessera.domain.stall import Suspect
from tessera.ports import Clock, Engines, ModelHub
from tessera.reconcile.observe import Senses

_AGAIN = timedelta(seconds=1)
"""A draining replica is asked this often."""
_RUNNERS_AGAIN = timedelta(seconds=3)
"""A runner is asked this often."""
_SHARED = timedelta(seconds=10)
"""What a hub said is its answer for so long."""


class Asker:
    """Keeps at most one question to each service, each replica and each hub's model under way."""

    def __init__(
        self,
        engines: Engines,
        senses: Senses,
        clock: Clock,
        wake: Callable[[], None],
        hub: ModelHub | None = None,
    ) -> None:
        self._hub = hub
        self._engines = engines
        self._senses = senses
        self._clock = clock
        self._wake = wake
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._fetches_asked: dict[Ref, datetime] = {}
        self._resolved: dict[RevisionQuery, datetime] = {}

    def start(self, snapshot: Snapshot, plan: Plan) -> None:
        """Ask whom the plan wants asked, and forget whom it does not know any more."""
        for ref, allotment in plan.service_plans.items():
            self._of_service(ref, allotment)
        for ref in plan.services_to_probe & snapshot.addresses.keys():
            address = _host(snapshot.addresses[ref], PORT)
            question = partial(self._ask, plan.service_plans[ref].service, address)
            self._once(f"service {ref}", question)
        for suspect in plan.suspects:
            if suspect.pod.address:
                look = partial(self._look, suspect, _host(suspect.pod.address, PORT))
                self._once(f"pod {suspect.pod.uid}", look)
        for one in plan.batches.values():
            uid = one.batch.uid
            if one.ask is not None and self._due_again(uid):
                address = _host(one.ask.address, RUNNER_PORT)
                self._once(f"batch {uid} {one.ask.attempt}", partial(self._progress, uid, address))
        self._forget(plan)

    def _of_service(self, ref: Ref, allotment: ServicePlan) -> None:
        if (asked := allotment.pinned_revision.query) is not None and self._hub is not None:
            self._once(f"model {asked}", partial(self._resolve, self._hub, asked))
        if (
            (preparation := allotment.preparation)
            and preparation.progress_address
            and self._due_fetch(ref)
        ):
            self._once(
                f"fetch {ref}", partial(self._fetch, ref, _host(preparation.progress_address, PORT))
            )
        if not (leaving := allotment.drain.draining):
            return
        for pod in allotment.pods:
            if pod.ref in leaving and pod.address and self._due(pod):
                self._once(f"pod {pod.uid}", partial(self._count, pod, _host(pod.address, PORT)))

    async def stop(self) -> None:
        """End all questions."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _once(self, key: str, question: Callable[[], Coroutine[None, None, None]]) -> None:
        if key not in self._under_way:
            task = asyncio.create_task(question(), name=key)
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))

    async def _ask(self, service: ObservedService, address: str) -> None:
        problem = await self._engines.probe(f"http://{address}", _model(service))
        self._senses.answers[service.ref] = ProbeResult(at=self._clock(), problem=problem)
        if problem is not None or not was_ready(service):
            self._wake()

    async def _resolve(self, hub: ModelHub, question: RevisionQuery) -> None:
        found = await hub.resolve(question)
        if self._senses.resolutions is not None:
            self._senses.resolutions[question] = found
            self._resolved[question] = self._clock()
            self._wake()

    async def _count(self, pod: Pod, address: str) -> None:
        asked = self._clock()
        requests = await self._engines.in_flight(address)
        if requests is not None:
            self._senses.in_flight[pod.ref] = InFlight(asked, requests)
            self._wake()

    async def _look(self, suspect: Suspect, address: str) -> None:
        """Count, and ask for a token if there are any requests: a healthy engine takes a step for
        it, and is suspected no more. Turns do not wait for that, so none is woken."""
        asked = self._clock()
        requests = await self._engines.in_flight(address)
        if requests is None:
            return
        self._senses.in_flight[suspect.pod.ref] = InFlight(asked, requests)
        if requests:
            self._once(f"token {suspect.pod.uid}", partial(self._prod, suspect, address))

    async def _prod(self, suspect: Suspect, address: str) -> None:
        await self._engines.probe(f"http://{address}", _model(suspect.service))

    async def _progress(self, batch: str, address: str) -> None:
        asked = self._clock()
        found = await self._engines.progress(address)
        if found is not None:
            self._senses.asked[batch] = Asked(asked, found)
            self._wake()

    async def _fetch(self, service: Ref, address: str) -> None:
        self._fetches_asked[service] = self._clock()
        found = await self._engines.fetch_progress(address)
        if found is not None:
            self._senses.fetched[service] = found
            self._wake()

    def _due_fetch(self, service: Ref) -> bool:
        last = self._fetches_asked.get(service)
        return last is None or self._clock() - last >= _RUNNERS_AGAIN

    def _due_again(self, batch: str) -> bool:
        last = self._senses.asked.get(batch)
        return last is None or self._clock() - last.at >= _RUNNERS_AGAIN

    def _due(self, pod: Pod) -> bool:
        last = self._senses.in_flight.get(pod.ref)
        return last is None or self._clock() - last.at >= _AGAIN

    def _forget(self, plan: Plan) -> None:
        for ref in self._senses.answers.keys() - plan.service_plans.keys():
            del self._senses.answers[ref]
        if self._senses.in_flight:
            pods = {pod.ref for one in plan.service_plans.values() for pod in one.pods}
            for ref in self._senses.in_flight.keys() - pods:
                del self._senses.in_flight[ref]
        if self._senses.resolutions:
            self._forget_resolutions(self._senses.resolutions, plan)
        if self._senses.fetched or self._fetches_asked:
            self._forget_fetches(plan)
        for uid in self._senses.asked.keys() - {one.batch.uid for one in plan.batches.values()}:
            del self._senses.asked[uid]

    def _forget_resolutions(self, known: dict[RevisionQuery, Resolution], plan: Plan) -> None:
        """Services of one model that come together ask once; what was used by all is forgotten."""
        asked = {allotment.pinned_revision.query for allotment in plan.service_plans.values()}
        for question in known.keys() - asked:
            if self._clock() - self._resolved[question] >= _SHARED:
                del known[question], self._resolved[question]

    def _forget_fetches(self, plan: Plan) -> None:
        fetching = {
            ref
            for ref, one in plan.service_plans.items()
            if one.preparation and one.preparation.progress_address
        }
        for ref in self._senses.fetched.keys() - fetching:
            del self._senses.fetched[ref]
        for ref in self._fetches_asked.keys() - fetching:
            del self._fetches_asked[ref]


def _model(service: ObservedService) -> str:
    """Under which name the model is served."""
    served = service.spec.model.served_name if service.spec else None
    return served or service.ref.name


def _host(address: str, port: int) -> str:
    """As it stands in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
