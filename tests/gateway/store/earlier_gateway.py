"""What a gateway of 0.1 does to a database and to journals; a process with its modules runs this.

Commands come one a line as `[name, URL or folder, ...]`; each is answered with a line of JSON.
"""

import asyncio
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import tessera
from tessera.domain.usage.report import UsageQuery
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.journal import UsageJournal, abandoned_journals

journals = list[UsageJournal]()
# The module in which 0.1 has the record of a request.
_REQUESTS: Any = importlib.import_module("tessera.domain.gateway.requests")


def a_record(record_id: str) -> Any:
    fields: dict[str, Any] = {
        "record_id": record_id,
        "request_id": record_id,
        "started_at_ns": 1_790_000_000 * 10**9,
        "tenant": "team-a",
        "key": "ci",
        "service": "team-a/chat",
        "model": "chat",
        "route": "/v1/completions",
        "phase": _REQUESTS.Phase.COMPLETED,
        "status": 200,
        "reason": "Cached",
        "input_tokens": 100,
        "output_tokens": 10,
        "total_ns": 5,
    }
    return _REQUESTS.UsageRecord(**fields)


async def obey(stores: dict[str, GatewayStore], name: str, at: str, *ids: str) -> Any:
    """Carry out one command; a store stays open from its first command on."""
    match name:
        case "modules":
            return tessera.__file__
        case "record":
            if at not in stores:
                stores[at] = await GatewayStore.open(at)
            await stores[at].record([a_record(each) for each in ids])
        case "usage":
            query = UsageQuery(by=(), since_ns=0, until_ns=2**63 - 1)
            (row,) = (await stores[at].usage(query)).rows
            return row.requests
        case "oldest":
            return [
                [each.record_id, each.route]  # type: ignore[attr-defined]  # its name in 0.1
                for each in await stores[at].oldest(100)
            ]
        case "close":
            await stores.pop(at).close()
        case "journal":
            # Its locks end with the process, which is killed.
            journals.append(journal := UsageJournal(Path(at)))
            for number, each in enumerate(ids, 1):
                journal.add([a_record(each)], number)
        case "recover":
            return [
                each.record_id for left in abandoned_journals(Path(at)) for each in left.records
            ]
        case _:
            raise ValueError(name)
    return None


async def main() -> None:
    stores: dict[str, GatewayStore] = {}
    while line := await asyncio.to_thread(sys.stdin.readline):
        sys.stdout.write(f"{json.dumps(await obey(stores, *json.loads(line)))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
