"""An API server with a fleet of which one tenant edits services without end, for benchmarks."""

import asyncio
import base64
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from gateway_process import KEYS_NAMESPACE
from tessera.api.key_record import KEYS_TYPE, TENANT_LABEL
from tessera.resources.manifest import ObjectKey
from tests.memory_operator import replica_of

REPLICAS = 2
HOSTILE = "team-a"
_CREATED = "2026-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedFleet:
    """Services of a tenant with two replicas each, and one of another tenant."""

    services: int
    other: str
    other_key: str
    other_address: str
    """Of the engine of the other tenant, which listens at the port of all engines."""
    edits_per_second: float
    edited: int
    """So many of the services are edited, one after the other; the fewer of both."""

    async def serve(self, port: int) -> None:
        """Answer lists and watches until cancelled."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        plural = request.path.rpartition("/")[2]
        if "watch" not in request.query:
            items = {
                "inferenceservices": self._services,
                "pods": self._pods,
                "tenantbudgets": self._budgets,
                "secrets": self._secrets,
            }.get(plural, lambda: iter(()))
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": [*items()]})
        stream = web.StreamResponse()
        await stream.prepare(request)
        if plural != "inferenceservices" or not self.edits_per_second:
            await asyncio.Event().wait()
        begun = asyncio.get_running_loop().time()
        for number in itertools.count(1):
            await asyncio.sleep(
                begun + number / self.edits_per_second - asyncio.get_running_loop().time()
            )
            edited = _service(HOSTILE, f"s{number % min(self.edited, self.services)}", number)
            try:
                await stream.write(
                    json.dumps({"type": "MODIFIED", "object": edited}).encode() + b"\n"
                )
            except ConnectionError:
                break
        return stream

    def _services(self) -> Iterator[Mapping[str, Any]]:
        yield _service(self.other, self.other)
        for number in range(self.services):
            yield _service(HOSTILE, f"s{number}")

    def _pods(self) -> Iterator[Mapping[str, Any]]:
        yield _pod(self.other, self.other, 0, self.other_address)
        for number, replica in itertools.product(range(self.services), range(REPLICAS)):
            address = f"10.{replica}.{number // 250}.{number % 250}"
            yield _pod(HOSTILE, f"s{number}", replica, address)

    def _budgets(self) -> Iterator[Mapping[str, Any]]:
        for tenant in (HOSTILE, self.other):
            limits = [{"window": "Day", "amount": "1000000"}]
            spec = {"owner": tenant, "tenant": {"namespaces": [tenant]}, "limits": limits}
            yield {"metadata": _meta(None, tenant), "spec": spec}

    def _secrets(self) -> Iterator[Mapping[str, Any]]:
        record = {"sha256": hashlib.sha256(self.other_key.encode()).hexdigest()}
        yield {
            "metadata": _meta(KEYS_NAMESPACE, "keys") | {"labels": {TENANT_LABEL: self.other}},
            "type": KEYS_TYPE,
            "data": {"ci": base64.b64encode(json.dumps(record).encode()).decode()},
        }


def _meta(namespace: str | None, name: str, edit: int = 0) -> dict[str, Any]:
    return {
        **({"namespace": namespace} if namespace else {}),
        "name": name,
        "uid": f"uid-{namespace}-{name}",
        "creationTimestamp": _CREATED,
        "generation": edit + 1,
        "resourceVersion": str(edit + 1),
    }


def _service(namespace: str, name: str, edit: int = 0) -> Mapping[str, Any]:
    return {
        "metadata": _meta(namespace, name, edit),
        "spec": {
            "model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"},
            "slo": {"ttftP95": f"{1000 + edit}ms"},
            "access": {"aliases": [f"{name}-{edit}"]},
        },
    }


def _pod(namespace: str, service: str, number: int, address: str) -> Mapping[str, Any]:
    pod = replica_of(
        ObjectKey("deployments", namespace, f"{service}-a100-1g-10gb"),
        f"{service}-{number}",
        service,
    )
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": _CREATED}
    return {
        "metadata": pod["metadata"] | _meta(namespace, f"{service}-{number}"),
        "spec": pod["spec"],
        "status": {"podIP": address, "phase": "Running", "conditions": [ready]},
    }
