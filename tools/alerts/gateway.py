"""Alerts about the gateway: what its users notice, and what it can no longer bill."""

from alerts.alert import Alert, Firing, always, by_gateway, growing

_POD = 'job="tessera-system/tessera-gateway",namespace="tessera-system",pod="gateway-%s"'
_FIRST, _SECOND = _POD % "0", _POD % "1"
_JOB = {"job": "tessera-system/tessera-gateway"}
_CHAT = 'tenant="team-a",service="team-a/chat"'


def _requests(code: str, reason: str, pod: str = _FIRST) -> str:
    return f'tessera_gateway_requests_total{{{pod},{_CHAT},code="{code}",reason="{reason}"}}'


def _rate(span: str, matchers: str = "") -> str:
    series = f"rate(tessera_gateway_requests_total{{{matchers}%s}}[{span}])"
    return by_gateway(series, "tenant", "service", "code", "reason")


_COMPLETED = _requests("200", "Completed")
_FAILED = _requests("502", "EngineFailed")
_LIMITED = _requests("429", "TooManyTokens")
_FAILING = f'tessera_gateway_store_failing_seconds{{{_FIRST},operation="record"}}'
_LOST = f'tessera_gateway_usage_records_total{{{_FIRST},outcome="Lost"}}'

_LOST_RECORDS = 'increase(tessera_gateway_usage_records_total{outcome="Lost",%s}[15m])'
_SILENT = f"tessera_gateway_demand_failing_seconds{{{_FIRST}}}"
_REJECTED = (
    'tessera_rejected_demand_total{job="tessera-system/tessera-operator",'
    'namespace="tessera-system",pod="operator-0",reason="InvalidRow"}'
)

_LOG = "kubectl -n tessera-system logs deploy/tessera-gateway"

_OPERATOR = 'job="tessera-system/tessera-operator",namespace="tessera-system",pod="operator-%s"'
_REPORTING = f'tessera_gateways{{{_OPERATOR},account="tessera-gateway"}}'
_LEADING = f"tessera_leader{{{_OPERATOR}}}"
_ENDS = f'tessera_gateway_key_expiration_timestamp_seconds{{{_POD},tenant="team-a",key="ci"}}'
_DAY = 86_400

GATEWAY = (
    Alert(
        name="NoGateway",
        expr="""
            max by (job) (tessera_gateways) == 0
              and on (job) max by (job) (tessera_leader) == 1
        """,
        minutes=2,
        severity="critical",
        summary="No gateway pod reports to {{ $labels.job }}.",
        description="For 2 minutes the operator has heard of no gateway: probably no pod of it "
        "runs, and every request of its clients fails.",
        cause="""
            `gateway.enabled` is true, and no pod of the gateway runs: its image, claim or Secret is
            missing, or no node takes it. Or its pods cannot reach port 8443 of the operator: then
            [GatewayDemandNotReported](#gatewaydemandnotreported) fires as well.
        """,
        look=f"""
            kubectl -n tessera-system get pods -l app.kubernetes.io/name=tessera-gateway
            kubectl -n tessera-system describe deploy,pods -l app.kubernetes.io/name=tessera-gateway
            {_LOG} --previous
        """,
        act="""
            Repair what the events of the pods name. With SQLite an update stops the only pod first:
            [a database](gateway.md#database) avoids that.
        """,
        fires=Firing(
            series={
                _REPORTING % "0": "2x20 0x160",
                _REPORTING % "1": always(0),
                _LEADING % "0": always(1),
                _LEADING % "1": always(0),
            },
            labels={"job": "tessera-system/tessera-operator"},
            after=23,
        ),
        silent={
            "a gateway that reports to the leader": {
                _REPORTING % "0": always(0),
                _REPORTING % "1": always(1),
                _LEADING % "0": always(0),
                _LEADING % "1": always(1),
            },
            "a chart without a gateway": {_LEADING % "0": always(1)},
            "no operator that leads": {
                _REPORTING % "0": always(0),
                _LEADING % "0": always(0),
            },
        },
    ),
    Alert(
        name="KeyExpiresSoon",
        expr=f"""
            min by (tenant, key) (tessera_gateway_key_expiration_timestamp_seconds) - time()
              < {7 * _DAY} > 0
        """,
        minutes=60,
        severity="warning",
        summary="Key {{ $labels.key }} of tenant {{ $labels.tenant }} expires soon.",
        description="It ends in {{ $value | humanizeDuration }}. Requests with it get 401 then.",
        cause="""
            The key was created with `--expires`, or its record has `expires`. The old key of a
            rotation raises no alert.
        """,
        look="kubectl tessera key list",
        act="""
            Rotate it (`kubectl tessera key rotate`), and give the new key to its clients; a key of
            a repository is [rotated there](keys.md#create-rotate-revoke).
        """,
        fires=Firing(
            series={_ENDS % "0": always(3 * _DAY), _ENDS % "1": always(3 * _DAY)},
            labels={"tenant": "team-a", "key": "ci"},
            value="2d 21h 30m 0s",
        ),
        silent={
            "a key that ends in two weeks": {_ENDS % "0": always(14 * _DAY)},
            "a key that has ended": {_ENDS % "0": always(0)},
        },
    ),
    Alert(
        name="GatewayErrors",
        expr=f"""
            sum by (service) (
              {_rate("5m", 'code=~"5..",')}
            )
              / sum by (service) (
                {_rate("5m")}
              ) > 0.05
        """,
        minutes=10,
        severity="critical",
        summary="Requests for {{ $labels.service }} fail at the gateway.",
        description="{{ $value | humanizePercentage }} of its requests have ended with a server "
        "error for 10 minutes. The label reason of tessera_gateway_requests_total says why.",
        cause="""
            - `EngineUnreachable`, `EngineFailed`, `StreamBroken`, `InvalidResponse`: an engine died
              or answers what is no answer.
            - `NoReadyReplica`, `QueueTimeout`: no replica became ready in time, or the queue was
              too long.
            - `ServiceStopped`: somebody set `spec.replicas` to 0, and clients still send requests.
            - `EngineTimeout`: an engine holds requests without a step.
        """,
        look=f"""
            kubectl get tsvc -A
            kubectl tessera explain SERVICE
            {_LOG} --since=15m | grep '"status":5'
        """,
        act="""
            Repair what `explain` names; replicas are restarted without you. Where the queue times
            out, raise `spec.scaling.maxReplicas` or the tenant's budget.
        """,
        fires=Firing(
            series={_COMPLETED: growing(0.9), _FAILED: growing(0.1)},
            labels={"service": "team-a/chat"},
            value="10%",
            after=11,
        ),
        silent={
            "one failure of a hundred": {_COMPLETED: growing(0.99), _FAILED: growing(0.01)},
            "many requests that limits refuse": {_COMPLETED: growing(0.1), _LIMITED: growing(1)},
            "no requests": {_COMPLETED: always(9), _FAILED: always(9)},
        },
    ),
    Alert(
        name="GatewayCannotRecordUsage",
        expr=f"""
            max by (job) (tessera_gateway_store_failing_seconds) > 0
            or sum by (job) (
              {by_gateway(_LOST_RECORDS, "job", "outcome")}
            ) > 0
        """,
        minutes=2,
        severity="critical",
        summary="{{ $labels.job }} cannot reach the store of usage records and limits.",
        description="Records wait in the pods. After 60 s without the store requests of limited "
        "tenants are refused; with no room left for records, all requests are.",
        cause="""
            The database does not answer, refuses the gateway's password, is full, or is read-only.
            With SQLite it is the volume of the gateway's pod.
        """,
        look=f"""
            {_LOG} --since=15m | grep store
            helm -n tessera-system get values tessera | grep -A3 database
        """,
        act="""
            Restore the database. The gateway then writes what waits, each record once, and books
            what it lent of limits. Records that are counted as `Lost` are in the access log alone.
        """,
        fires=Firing(
            series={
                _FAILING: "0x20 30+60x160",
                f'tessera_gateway_store_failing_seconds{{{_SECOND},operation="record"}}': always(0),
            },
            labels=_JOB,
            after=23,
        ),
        silent={
            "a store that works": {_FAILING: always(0), _LOST: always(0)},
            "a failover of the database within a minute": {_FAILING: "0x20 30x1 0x160"},
            "records that were lost long ago": {_FAILING: always(0), _LOST: always(5)},
        },
    ),
    Alert(
        name="GatewayDemandNotReported",
        expr="""
            max by (job) (tessera_gateway_demand_failing_seconds) > 0
            or sum by (job) (increase(tessera_rejected_demand_total[15m])) > 0
        """,
        minutes=5,
        severity="critical",
        summary="{{ $labels.job }}: the operator does not learn of all requests at the gateway.",
        description="Services at zero do not wake for requests that wait, and others scale by "
        "the metrics of their engines alone.",
        cause="""
            - Of the gateway: no operator leads, or its pods cannot reach port 8443 of the operator,
              or have a token or a certificate that it refuses.
            - Of the operator: rows of reports are out of range, as between two versions; the label
              `reason` of `tessera_rejected_demand_total` says which.
        """,
        look=f"""
            {_LOG} --since=15m | grep 'demand is not reported'
            kubectl -n tessera-system logs deploy/tessera-operator --since=15m | grep demand:
            kubectl -n tessera-system get lease tessera-operator
        """,
        act="""
            Repair what the log names; the gateway tries again each second. Until then start a
            sleeping service with `spec.scaling.minReplicas: 1`.
        """,
        fires=Firing(series={_SILENT: "0x20 1+60x160"}, labels=_JOB, after=26),
        silent={
            "reports that are taken": {_SILENT: always(0), _REJECTED: always(0)},
            "another leader within a minute": {_SILENT: "0x20 20x1 0x160"},
            "a row that was left out long ago": {_SILENT: always(0), _REJECTED: always(3)},
        },
    ),
    Alert(
        name="GatewayRefusesRequests",
        expr=f"""
            sum by (tenant) (
              {_rate("15m", 'code="429",')}
            )
              / sum by (tenant) (
                {_rate("15m")}
              ) > 0.2
        """,
        minutes=30,
        severity="warning",
        summary="Limits refuse many requests of tenant {{ $labels.tenant }}.",
        description="{{ $value | humanizePercentage }} of its requests have been refused with 429 "
        "for 30 minutes. The label reason of tessera_gateway_requests_total names the limit.",
        cause="""
            The tenant, one of its teams or keys, or a service has a limit below the load, or a
            client repeats refused requests without waiting for `Retry-After`.
        """,
        look="""
            kubectl tessera usage --by tenant,key
            kubectl get tenantbudgets -o yaml
        """,
        act="""
            Raise `spec.rateLimits` of the TenantBudget where the load is meant. For a client that
            repeats requests, lower the limit of its key.
        """,
        fires=Firing(
            series={_COMPLETED: growing(0.6), _LIMITED: growing(0.4)},
            labels={"tenant": "team-a"},
            value="40%",
            after=31,
        ),
        silent={
            "one refusal of ten": {_COMPLETED: growing(0.9), _LIMITED: growing(0.1)},
            "a burst of ten minutes": {_COMPLETED: growing(1), _LIMITED: "0x20 0+60x10 600x150"},
        },
    ),
)
