"""Questions to engines that a turn does not wait for; their answers enter a later turn."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import TypeVar

from tessera.domain.batch.facts import Asked
from tessera.domain.batch.names import RUNNER_PORT
from tessera.domain.names import PORT
from tessera.domain.plan import Plan
from tessera.domain.snapshot import Answer, InFlight, Pod, Ref, Service, Snapshot
from tessera.ports import Clock, Engines
from tessera.reconcile.observe import Senses

Whom = TypeVar("Whom")

_AGAIN = timedelta(seconds=1)
"""A draining replica is asked this often."""
_RUNNERS_AGAIN = timedelta(seconds=3)
"""A runner is asked this often."""


class Asker:
    """Keeps at most one question to each service and each replica under way."""

    def __init__(
        self, engines: Engines, senses: Senses, clock: Clock, wake: Callable[[], None]
    ) -> None:
        self._engines = engines
        self._senses = senses
        self._clock = clock
        self._wake = wake
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._fetches_asked: dict[Ref, datetime] = {}

    def start(self, snapshot: Snapshot, plan: Plan) -> None:
        """Ask whom the plan wants asked, and forget whom it does not know any more."""
        for ref, allotment in plan.allotments.items():
            address = snapshot.addresses.get(ref)
            if allotment.ask and address is not None:
                self._once(f"service {ref}", self._ask, allotment.service, _host(address, PORT))
            for pod in allotment.pods:
                if pod.ref in allotment.drain.leaving and pod.address and self._due(pod):
                    self._once(f"pod {pod.uid}", self._count, pod, _host(pod.address, PORT))
            preparation = allotment.preparation
            if preparation is not None and preparation.ask and self._due_fetch(ref):
                where = _host(preparation.ask, PORT)
                self._once(f"fetch {ref}", self._fetch, ref, where)
        for one in plan.batches.values():
            uid = one.batch.uid
            if one.ask is not None and self._due_again(uid):
                address = _host(one.ask.address, RUNNER_PORT)
                self._once(f"batch {uid} {one.ask.attempt}", self._progress, uid, address)
        self._forget(plan)

    async def stop(self) -> None:
        """End all questions."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _once(
        self,
        key: str,
        question: Callable[[Whom, str], Coroutine[None, None, None]],
        whom: Whom,
        address: str,
    ) -> None:
        if key not in self._under_way:
            task = asyncio.create_task(question(whom, address), name=key)
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))

    async def _ask(self, service: Service, address: str) -> None:
        served = service.spec.model.served_name if service.spec else None
        problem = await self._engines.ask(f"http://{address}", served or service.ref.name)
        self._senses.answers[service.ref] = Answer(at=self._clock(), problem=problem)
        self._wake()

    async def _count(self, pod: Pod, address: str) -> None:
        asked = self._clock()
        requests = await self._engines.in_flight(address)
        if requests is not None:
            self._senses.in_flight[pod.ref] = InFlight(asked, requests)
            self._wake()

    async def _progress(self, batch: str, address: str) -> None:
        asked = self._clock()
        found = await self._engines.progress(address)
        if found is not None:
            self._senses.asked[batch] = Asked(asked, found)
            self._wake()

    async def _fetch(self, service: Ref, address: str) -> None:
        self._fetches_asked[service] = self._clock()
        found = await self._engines.fetched(address)
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
        pods = {pod.ref for one in plan.allotments.values() for pod in one.pods}
        for ref in self._senses.answers.keys() - plan.allotments.keys():
            del self._senses.answers[ref]
        for ref in self._senses.in_flight.keys() - pods:
            del self._senses.in_flight[ref]
        fetching = {
            ref for ref, one in plan.allotments.items() if one.preparation and one.preparation.ask
        }
        for ref in self._senses.fetched.keys() - fetching:
            del self._senses.fetched[ref]
        for ref in self._fetches_asked.keys() - fetching:
            del self._fetches_asked[ref]
        for uid in self._senses.asked.keys() - {one.batch.uid for one in plan.batches.values()}:
            del self._senses.asked[uid]


def _host(address: str, port: int) -> str:
    """As it stands in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
