"""The reference page of all bounds that no field sets, from the constants of the code."""

from collections.abc import Sequence
from datetime import timedelta

from tables import TABLES, most_kibibytes, results
from tessera.adapters.prometheus.rows import MAX_ROWS
from tessera.adapters.prometheus.session import MAX_ANSWER_BYTES
from tessera.api.gateway_demand import MAX_REPORT_BYTES, MAX_REPORT_SERVICES
from tessera.api.node_layout import MAX_GPUS
from tessera.batch_runner.engine import ENGINE_TIMEOUT_SECONDS, ROW_TIMEOUT_SECONDS
from tessera.batch_runner.input.scan import MAX_ROW_BYTES
from tessera.batch_runner.sender import MAX_IN_FLIGHT_BYTES
from tessera.controller.admission import MOST_TEXT as MOST_REFUSAL_TEXT
from tessera.controller.demand import MAX_GATEWAYS
from tessera.controller.https_server import MAX_CONNECTIONS as MAX_READER_CONNECTIONS
from tessera.controller.token_access import UNKNOWN_PLACES
from tessera.domain.batch.attempt_state import MAX_BACKOFF, MAX_FAILURES_WITHOUT_ROWS
from tessera.domain.batch.attempt_state import STALL_TIMEOUT as BATCH_STALL_TIMEOUT
from tessera.domain.batch.options import FULL_POOL_BACKOFF, SCHEDULING_TIMEOUT
from tessera.domain.config import STALL_TIMEOUT
from tessera.domain.cost.bill import LINE_LIFETIME, MAX_SERVICES
from tessera.domain.gateway.client_lengths import MAX_CLIENTS
from tessera.domain.gateway.schema_cost import (
    MAX_COMPILER_SECONDS,
    MAX_LEVELS,
    MAX_NESTING,
    MAX_SCHEMA_BYTES,
)
from tessera.domain.health.stall import REPLACEMENT_INTERVAL
from tessera.domain.layout.adoption import STABILIZATION_WINDOW
from tessera.domain.mig_backends.gpu_clients import STOP_TIMEOUT
from tessera.domain.observed.demand import MAX_REPORT_AGE
from tessera.domain.observed.node_layout import MAX_HEARTBEAT_AGE
from tessera.domain.observed.runner_reports import STALL_SECONDS
from tessera.domain.picking.engine_page import MAX_PAGE_BYTES
from tessera.domain.picking.prefix_record import MAX_RECORD_BYTES
from tessera.domain.repartition.evictions import BLOCKED_PERIOD
from tessera.domain.repartition.rollout import (
    MAX_ATTEMPTS,
    MAX_REPLACEMENTS,
    PLACEMENT_TIMEOUT,
    REPLACEMENT_TIMEOUT,
)
from tessera.domain.rollout.strategy import SURGE_TIMEOUT
from tessera.domain.scaling.load import MAX_READING_AGE
from tessera.domain.scaling.state import MAX_READING_GAP
from tessera.domain.status.budget import MAX_NAMED_REPLICAS
from tessera.gateway.bodies.answer_size import MAX_RESPONSE_BYTES
from tessera.gateway.bodies.continuation import MAX_BODY_BYTES
from tessera.gateway.bodies.json_values import MAX_FIELDS, MAX_MARKS, MAX_TEXTS
from tessera.gateway.bodies.listed_fields import MAX_BAD_WORDS_BYTES, MAX_TOKEN_IDS
from tessera.gateway.bodies.memory import MAX_HELD_BYTES, Memory
from tessera.gateway.bodies.parsing import MAX_PROMPT_BYTES, MAX_SESSION_BYTES
from tessera.gateway.bodies.prompt_size import MAX_MEDIA
from tessera.gateway.fleet.polling import PAGE_SECONDS
from tessera.gateway.http.connections import (
    MAX_CONNECTION_BYTES,
    MAX_CONNECTIONS,
    MAX_DESCRIPTORS,
    PATIENCE_SECONDS,
)
from tessera.gateway.http.continued_events import MAX_REWRITTEN_BYTES
from tessera.gateway.http.engine_connection import MAX_READ_BYTES, VANISHED_SECONDS
from tessera.gateway.http.event_fields import MAX_HEAD_BYTES, MAX_VALUES
from tessera.gateway.http.protocol import (
    DISCARD_SECONDS,
    DISCARDED_BYTES,
    HEADER_SECONDS,
    MAX_WAITING_REQUESTS,
    PACE_BYTES,
    PACE_SECONDS,
    STALLED_CLIENT_BYTES,
    STALLED_CLIENT_SECONDS,
)
from tessera.gateway.http.reading import GONE_SECONDS, MAX_HEADER_BYTES, MAX_HEADERS
from tessera.gateway.http.responses import (
    MAX_UNREAD_BYTES,
    UNREAD_LEAST_BYTES,
    UNREAD_SECONDS,
)
from tessera.gateway.http.sse import (
    MAX_BYTES_WITHOUT_TOKEN,
    MAX_EVENT_BYTES,
    MAX_EVENTS_WITHOUT_TOKEN,
)
from tessera.gateway.http.tls import (
    HANDSHAKE_SECONDS,
    MAX_ADDRESS_HANDSHAKES,
    MAX_HANDSHAKES,
    MAX_HELLO_BYTES,
)
from tessera.gateway.http.turns import TURN_BYTES
from tessera.gateway.identify.token_reviews import MAX_WAITING_TOKENS
from tessera.gateway.internal_api import MAX_WAITING_READERS, REVIEW_PLACES
from tessera.gateway.main import ENGINE_IDLE_SECONDS
from tessera.gateway.queue.schema_turns import MAX_KNOWN_SCHEMAS, MAX_WAITING_SCHEMAS
from tessera.gateway.receive.receiver import BodyBounds
from tessera.gateway.relay.engine import SLOW_PART_SECONDS
from tessera.gateway.relay.engine_errors import MAX_REFUSAL_LENGTH
from tessera.gateway.relay.relay import MAX_RESUMPTIONS
from tessera.gateway.relay.resume import MAX_PROTECTED_BYTES
from tessera.gateway.resolve.models import MAX_LISTING_BYTES, MAX_LISTINGS
from tessera.gateway.settle.recent import MAX_EXPLAINED, MAX_RECENT_BYTES
from tessera.gateway.store.writer import MAX_SPOOLED
from tessera.gateway.usage.recording import MAX_STORE_ROWS, MAX_UNWRITTEN_BYTES, file_rows
from tessera.gateway.usage.summing import (
    MAX_TENANT_ROWS,
    MAX_TENANT_SUMS,
    SUM_SECONDS,
)
from tessera.reconcile.reflector import RELIST_SECONDS
from tessera.resources.prepull import MAX_IMAGES, MAX_IMAGES_PER_NAMESPACE

_BODY = BodyBounds()
_HEAD = """\
# Bounds

The range of each field stands on the page of its kind ([InferenceService](inferenceservice.md),
[AcceleratorPool](acceleratorpool.md), [TenantBudget](tenantbudget.md),
[BatchInference](batchinference.md)). What follows is constant: the bounds of what Tessera waits
for, keeps in memory and reads."""

_SECTIONS: Sequence[tuple[str, Sequence[tuple[str, object]]]] = (
    (
        "Replicas",
        (
            ("a load reading counts as current", MAX_READING_AGE),
            ("no readings before the scale-down window starts again", MAX_READING_GAP),
            ("an engine with requests makes no step before it is replaced", STALL_TIMEOUT),
            ("between two such replacements of a service", REPLACEMENT_INTERVAL),
            ("a rollout waits for an additional device", SURGE_TIMEOUT),
        ),
    ),
    (
        "Repartitions",
        (
            ("a plan that only saves cost waits", STABILIZATION_WINDOW),
            ("replacements find no slice before the pool names them", PLACEMENT_TIMEOUT),
            ("a service keeps all its replicas instead of `minReplicas`", REPLACEMENT_TIMEOUT),
            ("a replica that cannot be evicted drains, then serves for as long", BLOCKED_PERIOD),
            ("replacements of the replicas on one slice", MAX_REPLACEMENTS),
            ("attempts of a backend", MAX_ATTEMPTS),
            ("the device plugin stays stopped", STOP_TIMEOUT),
            ("an agent is silent before its node counts as not ready", MAX_HEARTBEAT_AGE),
            ("GPUs of a node", MAX_GPUS),
        ),
    ),
    (
        "Batches",
        (
            (
                "the pod of an attempt finds no node before another pool is tried",
                SCHEDULING_TIMEOUT,
            ),
            ("a pool without a node is tried last", FULL_POOL_BACKOFF),
            ("between two attempts", MAX_BACKOFF),
            ("attempts in a row without a row", MAX_FAILURES_WITHOUT_ROWS),
            (
                "an attempt makes no progress before its runner ends it",
                timedelta(seconds=STALL_SECONDS),
            ),
            (
                "an attempt or a check makes no progress before the operator replaces it",
                BATCH_STALL_TIMEOUT,
            ),
            (
                "an engine is unreachable before its attempt ends",
                timedelta(seconds=ENGINE_TIMEOUT_SECONDS),
            ),
            ("one row", timedelta(seconds=ROW_TIMEOUT_SECONDS)),
            ("bytes of a row", MAX_ROW_BYTES),
            ("bytes of all rows that an engine works on", MAX_IN_FLIGHT_BYTES),
        ),
    ),
    (
        "The operator",
        (
            ("services of a namespace with lines of their own in the bill", MAX_SERVICES),
            ("a line of the bill without a charge", LINE_LIFETIME),
            ("replicas that the status of a budget names", MAX_NAMED_REPLICAS),
            ("pre-pulled images of a namespace", MAX_IMAGES_PER_NAMESPACE),
            ("pre-pulled images", MAX_IMAGES),
            ("bytes of an answer of Prometheus", MAX_ANSWER_BYTES),
            ("rows of an answer of Prometheus", MAX_ROWS),
            ("a report of a gateway counts", MAX_REPORT_AGE),
            ("bytes of a part of a report", MAX_REPORT_BYTES),
            ("services of a report, in all its parts", MAX_REPORT_SERVICES),
            ("gateways that report", MAX_GATEWAYS),
            (
                "connections of readers of metrics, and of gateways that report",
                MAX_READER_CONNECTIONS,
            ),
            ("unknown tokens of these that are reviewed, of an address one", UNKNOWN_PLACES),
            ("characters of a refusal or a warning of the webhook", MOST_REFUSAL_TEXT),
            ("between two lists of every kind", timedelta(seconds=RELIST_SECONDS)),
        ),
    ),
    (
        "The gateway",
        (
            (
                "bytes of the headers, trailers, chunk sizes and extensions of a request, "
                "beside an eighth of its body",
                MAX_HEADER_BYTES,
            ),
            ("headers and trailers of a request", MAX_HEADERS),
            ("the headers of a request", timedelta(seconds=HEADER_SECONDS)),
            ("requests of a connection that wait behind another", MAX_WAITING_REQUESTS),
            (
                "milliseconds between two looks for the end of their client",
                round(GONE_SECONDS * 1000),
            ),
            ("connections of clients, or half of the descriptors without 256", MAX_CONNECTIONS),
            (
                "a connection says nothing before it gives way to a new one first",
                timedelta(seconds=PATIENCE_SECONDS),
            ),
            (
                "bytes that connections hold beside their tenants: heads, requests that wait "
                "behind another, and bodies whose key is not accepted yet",
                MAX_CONNECTION_BYTES,
            ),
            (
                f"a body with an accepted key has fewer than {PACE_BYTES:,} bytes more before its "
                "connection gives way to a new one",
                timedelta(seconds=PACE_SECONDS),
            ),
            ("TLS handshakes that have begun and are not finished", MAX_HANDSHAKES),
            (
                "those of an address, behind which its next ones wait for up to a second each",
                MAX_ADDRESS_HANDSHAKES,
            ),
            ("a TLS handshake", timedelta(seconds=HANDSHAKE_SECONDS)),
            ("bytes that a client sends until then", MAX_HELLO_BYTES),
            (
                "bytes of clients without an accepted key that are read before others have their "
                "turn, once of large requests and once of small ones",
                TURN_BYTES,
            ),
            ("descriptors, where the hard limit of the container allows", MAX_DESCRIPTORS),
            ("tokens of an address that wait for the API server to know them", MAX_WAITING_TOKENS),
            ("tokens of readers of usage that are reviewed, of an address one", REVIEW_PLACES),
            ("tokens of such an address that wait", MAX_WAITING_READERS),
            ("bytes of the body of a request", _BODY.max_bytes),
            ("bytes that all requests and answers hold in a gateway", MAX_HELD_BYTES),
            ("bytes of its record of prompts in the caches of engines", MAX_RECORD_BYTES),
            ("bytes of its record of where requests went, and why", MAX_RECENT_BYTES),
            ("requests with one id that `tessera explain request` shows", MAX_EXPLAINED),
            ("lists of models of a tenant, one for each scope of its keys", MAX_LISTINGS),
            ("bytes of these lists, or the last one alone", MAX_LISTING_BYTES),
            ("clients whose lengths of requests it knows", MAX_CLIENTS),
            ("bytes of the beginning of a prompt that it records", MAX_PROMPT_BYTES),
            ("bytes of the name of a session in a body", MAX_SESSION_BYTES),
            ("bytes of these that one tenant holds", Memory().tenant_limit),
            ("bytes of an answer that is no stream", MAX_RESPONSE_BYTES),
            ("the body of a request", timedelta(seconds=_BODY.seconds)),
            ("prompts, inputs or documents of a request", MAX_TEXTS),
            ("images and clips of a request, or of its documents", MAX_MEDIA),
            ("commas and quotation marks of a body", MAX_MARKS),
            ("bytes of what a request has an engine of several tenants compile", MAX_SCHEMA_BYTES),
            ("levels of schemas in it", MAX_LEVELS),
            ("levels of JSON in it", MAX_NESTING),
            (
                "an engine of several tenants compiles it, by its price",
                timedelta(seconds=MAX_COMPILER_SECONDS),
            ),
            ("schemas that a gateway knows as compiled", MAX_KNOWN_SCHEMAS),
            ("requests of a tenant that wait with new schemas for a service", MAX_WAITING_SCHEMAS),
            ("entries of `allowed_token_ids` there", MAX_TOKEN_IDS["allowed_token_ids"]),
            ("entries of `logit_bias` there", MAX_TOKEN_IDS["logit_bias"]),
            ("entries of `stop_token_ids` there", MAX_TOKEN_IDS["stop_token_ids"]),
            ("bytes of `bad_words` there", MAX_BAD_WORDS_BYTES),
            ("fields of a body in which the gateway changes one", MAX_FIELDS),
            (
                "a client that was refused still sends, before its connection is reset",
                timedelta(seconds=DISCARD_SECONDS),
            ),
            ("bytes that it still sends", DISCARDED_BYTES),
            (
                f"a client for which more waits reads fewer than {STALLED_CLIENT_BYTES:,} bytes "
                "before it is cut",
                timedelta(seconds=STALLED_CLIENT_SECONDS),
            ),
            ("bytes that wait for the client of a stream", MAX_UNREAD_BYTES),
            (
                f"a client for which these wait reads fewer than {UNREAD_LEAST_BYTES:,} bytes "
                "while others wait for its engine, before it is cut",
                timedelta(seconds=UNREAD_SECONDS),
            ),
            ("events of a stream without a token", MAX_EVENTS_WITHOUT_TOKEN),
            ("bytes of these events", MAX_BYTES_WITHOUT_TOKEN),
            ("bytes of an event", MAX_EVENT_BYTES),
            (
                "bytes of the request of a stream that another replica may go on with",
                MAX_BODY_BYTES,
            ),
            ("bytes of it, and of what its client got", MAX_PROTECTED_BYTES),
            ("bytes of a name that all its events share, such as `id`", MAX_HEAD_BYTES),
            ("choices, or fields, of one of its events", MAX_VALUES),
            ("bytes of an event that is rewritten once it goes on there", MAX_REWRITTEN_BYTES),
            ("other replicas that a stream is sent to, one after the other", MAX_RESUMPTIONS),
            ("bytes of an engine that are read before others have their turn", MAX_READ_BYTES),
            (
                "milliseconds that a part of a stream takes, before the stream rests for four "
                "times as long",
                round(SLOW_PART_SECONDS * 1000),
            ),
            ("characters of a refusal that an engine sends in a stream", MAX_REFUSAL_LENGTH),
            ("usage records in a database", MAX_STORE_ROWS),
            ("usage records in a file, on a volume of 1 GiB", file_rows(2**30)),
            ("usage records in a pod while its database is away", MAX_SPOOLED),
            (
                f"usage records of a tenant in {SUM_SECONDS} s, before they are added up",
                MAX_TENANT_ROWS,
            ),
            ("such sums of a tenant that grow at a time", MAX_TENANT_SUMS),
            ("sums beside these that tell users and tags apart", MAX_TENANT_SUMS),
            (
                "bytes of usage records that wait, before tenants with many of them wait",
                MAX_UNWRITTEN_BYTES,
            ),
            ("bytes of an engine's metrics page that are read", MAX_PAGE_BYTES),
            ("an engine's metrics page", timedelta(seconds=PAGE_SECONDS)),
            (
                "an engine sends nothing before its streams end with an error",
                timedelta(seconds=ENGINE_IDLE_SECONDS),
            ),
            (
                "the node of an engine is silent before its streams end with an error",
                timedelta(seconds=VANISHED_SECONDS),
            ),
        ),
    ),
)


def page() -> str:
    """Return the page, with one table per section."""
    lines = [_HEAD]
    for title, rows in _SECTIONS:
        lines += ["", f"## {title}", "", "| what | at most |", "| --- | --- |"]
        lines += [f"| {what} | {_text(bound)} |" for what, bound in rows]
    lines += _table_lines()
    return "\n".join(lines) + "\n"


def _table_lines() -> Sequence[str]:
    total = sum(map(most_kibibytes, TABLES))
    return [
        "",
        "## Results that are kept",
        "",
        "Functions that keep their results by what they were asked; those that were asked for",
        f"longest ago are dropped. Full of the largest they take {total / 1024:,.0f} MiB together.",
        "",
        "| function | asked by | results | KiB of the largest |",
        "| --- | --- | --- | --- |",
        *(
            f"| `{name}` | {entry.keys} | {results(name):,} | {entry.kibibytes} |"
            for name, entry in TABLES.items()
        ),
    ]


def _text(bound: object) -> str:
    if isinstance(bound, timedelta):
        seconds = round(bound.total_seconds())
        for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
            if seconds % size == 0 and seconds > size:
                return f"{seconds // size} {unit}"
        return f"{seconds} s"
    return f"{bound:,}"
