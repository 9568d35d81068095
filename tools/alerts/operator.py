"""Alerts about the operator itself: what it cannot do, and what it does not know."""

from alerts.alert import OWNERS, Alert, Firing, always, growing

_POD = 'job="tessera-system/tessera-operator",namespace="tessera-system",pod="operator-%s"'
_FIRST, _SECOND = _POD % "0", _POD % "1"
_JOB = {"job": "tessera-system/tessera-operator"}
_LAG = f'tessera_event_loop_lag_seconds_bucket{{{_FIRST},le="%s"}}'
_ENFORCING = f'tessera_budget_enforcing{{{_FIRST},budget="team-a",reason="%s"}}'
_WITHIN = f'tessera_budget_within_budget{{{_FIRST},budget="team-a",owner="ann",reason="%s"}}'
_SERVICE = f'{_FIRST},exported_namespace="team-a",service="chat"'
_DESIRED = f'tessera_service_desired_replicas{{{_SERVICE},reason="%s"}}'
_READY = f"tessera_service_ready_replicas{{{_SERVICE}}}"

_LOG = "kubectl -n tessera-system logs deploy/tessera-operator"
_PODS = "-l app.kubernetes.io/name=tessera-operator"

OPERATOR = (
    Alert(
        name="ReconcileFails",
        expr="sum by (job) (increase(tessera_reconcile_errors_total[5m])) > 0",
        minutes=10,
        severity="critical",
        summary="Reconcile cycles of {{ $labels.job }} fail.",
        description="{{ $value | humanize }} cycles failed within 5 minutes. Replicas run on, but "
        "part of the fleet is neither scaled nor repaired nor written.",
        cause="""
            A cycle raised an error that belongs to no single object: the API server refuses or
            loses requests (rights, quota, a policy, a webhook), or the operator has a defect.
        """,
        look=f"""
            {_LOG} --since=15m | grep 'reconcile failed'
            kubectl get --raw '/readyz?verbose'
            kubectl tessera doctor
        """,
        act="""
            Repair what the error names, or `helm rollback` after an upgrade; replicas run on
            meanwhile. For a defect, keep the log and the output of `kubectl tessera snapshot`.
        """,
        fires=Firing(
            series={
                f"tessera_reconcile_errors_total{{{_FIRST}}}": growing(0.2),
                f"tessera_reconcile_errors_total{{{_SECOND}}}": always(0),
            },
            labels=_JOB,
            value="60",
            after=11,
        ),
        silent={
            "a cycle that failed once": {
                f"tessera_reconcile_errors_total{{{_FIRST}}}": "0x20 1x160"
            },
            "errors of long ago": {f"tessera_reconcile_errors_total{{{_FIRST}}}": always(700)},
        },
    ),
    Alert(
        name="NobodyLeads",
        expr="max by (job) (tessera_leader) == 0",
        minutes=2,
        severity="critical",
        summary="No process of {{ $labels.job }} is the leader.",
        description="For 2 minutes no process has held the Lease, so nothing is scaled, repaired "
        "or charged. Replicas run on.",
        cause="""
            No process can renew the Lease `tessera-operator`: the API server does not answer within
            5 seconds, the right is missing, or a process that is cut off holds it until it expires
            (15 seconds).
        """,
        look=f"""
            kubectl -n tessera-system get lease tessera-operator -o yaml
            kubectl -n tessera-system get pods {_PODS}
            kubectl -n tessera-system logs {_PODS} --prefix --tail=50
        """,
        act="""
            Restore the API server, or the Role `tessera-operator` by `helm upgrade`. A Lease whose
            `renewTime` does not move while a pod claims to lead: delete that pod.
        """,
        fires=Firing(
            series={
                f"tessera_leader{{{_FIRST}}}": always(0),
                f"tessera_leader{{{_SECOND}}}": always(0),
            },
            labels=_JOB,
        ),
        silent={
            "a leader and a process on standby": {
                f"tessera_leader{{{_FIRST}}}": always(0),
                f"tessera_leader{{{_SECOND}}}": always(1),
            },
            "a change of the leader": {
                f"tessera_leader{{{_FIRST}}}": "1x20 stale",
                f"tessera_leader{{{_SECOND}}}": "0x21 1x160",
            },
        },
    ),
    Alert(
        name="EventLoopLags",
        expr="""
            histogram_quantile(0.99,
              sum by (job, pod, le) (rate(tessera_event_loop_lag_seconds_bucket[5m]))
            ) > 0.5
        """,
        minutes=10,
        severity="warning",
        summary="The event loop of pod/{{ $labels.pod }} wakes up late.",
        description="1 % of its wake-ups are late by more than {{ $value | humanizeDuration }}. "
        "From 5 s on admission times out, and from 10 s on the leader loses its Lease.",
        cause="""
            The process gets too little CPU (a limit, a busy node, a fleet that outgrew
            `resources`), or swaps near its memory limit.
        """,
        look="""
            kubectl -n tessera-system top pods
            kubectl get inferenceservices -A --no-headers | wc -l
            kubectl -n tessera-system describe pods -l app.kubernetes.io/name=tessera-operator
        """,
        act="""
            Raise `resources.requests.cpu` of the chart, and set no CPU limit.
        """,
        fires=Firing(
            series={
                _LAG % "0.5": growing(3.8),
                _LAG % "1": growing(4),
                _LAG % "+Inf": growing(4),
            },
            labels=_JOB | {"pod": "operator-0"},
            value="900ms",
            after=11,
        ),
        silent={
            "a loop that is late in 1 of 1,000 wake-ups": {
                _LAG % "0.5": growing(3.996),
                _LAG % "1": growing(4),
                _LAG % "+Inf": growing(4),
            },
            "a loop that was late for 3 minutes, at the start": {
                _LAG % "0.5": "0x2 0+240x177",
                _LAG % "1": "0+240x180",
                _LAG % "+Inf": "0+240x180",
            },
        },
    ),
    Alert(
        name="BudgetNotEnforced",
        expr=f"""
            max by (budget, reason) (tessera_budget_enforcing{{reason!="CurrentSpec"}} >= 0)
              * on (budget) group_left (owner)
              {OWNERS}
            or
            max by (budget, owner, reason)
              (tessera_budget_within_budget{{reason="CurrencyMismatch"}}) == 0
        """,
        minutes=10,
        severity="warning",
        summary="The limits in the spec of TenantBudget/{{ $labels.budget }} are not enforced: "
        "{{ $labels.reason }}.",
        description="For 10 minutes other limits hold than spec says, or part of the cost is not "
        "counted. Run kubectl describe tenantbudget {{ $labels.budget }} for the conditions.",
        cause="""
            - `LastAcceptedSpec`: an edit of `spec` cannot be used, so the last limits that could
              hold on.
            - `NotAccepted`: there was never a usable spec. Nothing is added in the namespaces of
              the budget; what runs there stays.
            - `NoGateway`: limits of basis `Charge` hold at gateways, and none reports.
            - `CurrencyMismatch`: the tenant uses a pool that is priced in another currency. Its
              cost there is not counted.
        """,
        look="""
            kubectl describe tenantbudget BUDGET   # conditions Accepted, Enforcing, WithinBudget
            kubectl get tenantbudgets,acceleratorpools
        """,
        act="""
            Correct the field that `Accepted` names. For `CurrencyMismatch` price the pool in the
            currency of the budget, or keep the tenant off it (`spec.namespaces`).
        """,
        fires=Firing(
            series={
                _ENFORCING % "LastAcceptedSpec": always(1),
                _WITHIN % "WithinLimits": always(1),
            },
            labels={"budget": "team-a", "owner": "ann", "reason": "LastAcceptedSpec"},
        ),
        silent={
            "a budget with its current limits": {
                _ENFORCING % "CurrentSpec": always(1),
                _WITHIN % "BudgetExhausted": always(0),
            },
            "a mistyped edit that is corrected soon": {
                _ENFORCING % "CurrentSpec": "1x19 stale _x7 1x150",
                _ENFORCING % "NotAccepted": "_x20 0x7 stale",
            },
        },
    ),
    Alert(
        name="SpendUnknown",
        expr='max by (budget, owner) (tessera_budget_within_budget{reason="SpendUnknown"}) == 0',
        minutes=5,
        severity="warning",
        summary="The spend of TenantBudget/{{ $labels.budget }} in its window is unknown.",
        description="Until the window ends nothing beyond spec.onSpendUnknown.allowUpTo is added "
        "for the tenant. Run kubectl describe tenantbudget {{ $labels.budget }} for the window.",
        cause="""
            The record of the window is lost in the status of the TenantBudget, the ConfigMap
            `tessera-spend`, and Prometheus.
        """,
        look=f"""
            kubectl get tenantbudget BUDGET -o jsonpath='{{.status.spend}}'
            kubectl -n tessera-system get configmap tessera-spend -o yaml
            {_LOG} | grep -E 'billing history|spend of budgets'
        """,
        act="""
            Bring back `tessera-spend` or Prometheus from their backup and restart the operator, or
            wait for the end of the window; until then raise `spec.onSpendUnknown.allowUpTo`, or run
            `kubectl tessera budget override BUDGET --until TIME --reason TEXT`.
        """,
        fires=Firing(
            series={_WITHIN % "SpendUnknown": always(0)},
            labels={"budget": "team-a", "owner": "ann"},
        ),
        silent={
            "a budget that is exhausted": {_WITHIN % "BudgetExhausted": always(0)},
            "a spend that is restored at once": {
                _WITHIN % "SpendUnknown": "0x3 stale",
                _WITHIN % "WithinLimits": "_x4 1x170",
            },
        },
    ),
    Alert(
        name="NoScalingMetrics",
        expr="""
            count by (job) (
              tessera_service_desired_replicas{reason="FailedGetMetrics"}
              and ignoring (reason) tessera_service_ready_replicas > 0
            )
        """,
        minutes=10,
        severity="warning",
        summary="Services with ready replicas are not scaled, since their load is unknown.",
        description="{{ $value | humanize }} services have had the reason FailedGetMetrics for 10 "
        "minutes: their number of replicas stays. Run kubectl tessera doctor for the cause.",
        cause="""
            The operator cannot ask Prometheus (URL, credentials, an answer that takes longer than 3
            seconds), or Prometheus does not scrape the engines: no PodMonitor `tessera-engine` in
            the namespace, one that is not selected, or a NetworkPolicy.
        """,
        look=f"""
            kubectl tessera doctor --prometheus URL
            {_LOG} | grep -E 'Prometheus|metrics unavailable'
            kubectl get podmonitors -A
        """,
        act="""
            Set `prometheus.url` and its credentials ([Prometheus](install.md#prometheus)), let
            Prometheus select the PodMonitors, and list its namespace in `prometheus.namespaces`.
            Until then `kubectl scale`.
        """,
        fires=Firing(
            series={_DESIRED % "FailedGetMetrics": always(2), _READY: always(2)},
            labels=_JOB,
            value="1",
        ),
        silent={
            "a service that sleeps or loads": {
                _DESIRED % "FailedGetMetrics": always(1),
                _READY: always(0),
            },
            "a service that is scaled": {_DESIRED % "Steady": always(2), _READY: always(2)},
            "a reading that was missed": {
                _DESIRED % "FailedGetMetrics": "2x8 stale",
                _DESIRED % "Steady": "_x9 2x170",
                _READY: always(2),
            },
        },
    ),
    Alert(
        name="NoOperatorMetrics",
        expr="absent(tessera_leader)",
        minutes=10,
        severity="critical",
        summary="Prometheus has no metrics of the Tessera operator.",
        description="For 10 minutes no process of the operator was scraped, so no other alert of "
        "Tessera can fire, and the bill of that time is not recorded. Run kubectl -n "
        "tessera-system get pods.",
        cause="""
            The operator does not run, or Prometheus cannot scrape it: no target (PodMonitor), a
            refused connection (NetworkPolicy, `prometheus.namespaces`), or status 401 (no token),
            403 (no right), 429 (too many unknown tokens) or 503 (the API server does not review
            tokens).
        """,
        look=f"""
            kubectl -n tessera-system get pods,podmonitor,secret
            {_LOG} | grep 'readers cannot be reviewed'
            kubectl auth can-i get /metrics --as system:serviceaccount:monitoring:prometheus
        """,
        act="""
            Start the operator. For 401 give Prometheus a token; for 403 bind the ClusterRole
            `tessera-operator-<namespace>-metrics-reader` to its account
            ([Prometheus](install.md#prometheus)); for 503 restore the ClusterRoleBinding
            `tessera-operator-<namespace>-auth-delegator` by `helm upgrade`.
        """,
        fires=Firing(series={'up{job="tessera-system/tessera-operator"}': always(0)}),
        silent={
            "a process on standby": {f"tessera_leader{{{_FIRST}}}": always(0)},
            "a restart of the only process": {f"tessera_leader{{{_FIRST}}}": "1x20 _x8 1x150"},
        },
    ),
    Alert(
        name="ClockNotTrusted",
        expr="max by (instance) (abs(tessera_clock_error_seconds)) > 0",
        minutes=5,
        severity="warning",
        summary="The clock of the node of the operator at {{ $labels.instance }} is more than 2 "
        "minutes off.",
        description="Off for 5 minutes: correct the time of the node, for example with chronyc "
        "makestep. The operator uses the time of the API server meanwhile.",
        cause="""
            The clock of the operator's node differs by more than 2 minutes from the API server's
            `Date` and from the monotonic clock (`tessera_clock_error_seconds`). Spend, bill and
            scaling go on at the time of the two that agree.
        """,
        look="On the node: `chronyc tracking`, `timedatectl`.",
        act="Correct the time of the node, for example with `chronyc makestep`.",
        fires=Firing(
            series={'tessera_clock_error_seconds{instance="10.0.0.1:8080"}': always(-7200)},
            labels={"instance": "10.0.0.1:8080"},
        ),
        silent={
            "a clock that was off for a minute": {
                'tessera_clock_error_seconds{instance="10.0.0.1:8080"}': "-7200x4 0x160"
            }
        },
    ),
)
