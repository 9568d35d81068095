"""Usage records with defaults."""

import itertools
from dataclasses import replace
from typing import Any

from tessera.domain.gateway.usage_record import Phase, UsageRecord

SECOND = 10**9
START_NS = 1_795_000_000 * SECOND
_ids = itertools.count()
_RECORD = UsageRecord(
    record_id="",
    request_id="request",
    started_at_ns=START_NS,
    tenant="team-a",
    team=None,
    user=None,
    key="laptop",
    service="team-a/chat",
    model="llama",
    variant="a100-1g-10gb",
    replica="chat-0",
    path="/v1/chat/completions",
    phase=Phase.COMPLETED,
    status=200,
    reason="LeastLoaded",
    stream=True,
    input_tokens=100,
    cached_tokens=40,
    output_tokens=20,
    reasoning_tokens=5,
    estimated=False,
    queue_ns=1_000_000,
    ttft_ns=200_000_000,
    total_ns=900_000_000,
)


def a_record(**changes: Any) -> UsageRecord:
    """Return a record with an id of its own."""
    return replace(_RECORD, **{"record_id": f"record-{next(_ids)}"} | changes)
