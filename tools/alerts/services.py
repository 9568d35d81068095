"""Alerts about what the operator decided and cannot change: hardware, limits, money, time."""

from alerts.alert import OWNERS, Alert, Firing, always

# The labels of the operator's own metrics, as its PodMonitor leaves them.
_POD = 'job="tessera-system/tessera-operator",namespace="tessera-system",pod="operator-0"'
_CHAT = f'{_POD},exported_namespace="team-a",service="chat"'
_CONDITION = f'tessera_service_condition{{{_CHAT},condition="%s",reason="%s"}}'
_DESIRED = f'tessera_service_desired_replicas{{{_CHAT},reason="%s"}}'
_NIGHT = f'{_POD},exported_namespace="team-a",batch="night"'
_BATCH = f'tessera_batch_state{{{_NIGHT},state="%s",reason="%s"}}'
_BUDGET = f'tessera_budget_%s_nanos{{{_POD},budget="team-a",window="Month"}}'
_OWNER = f'tessera_budget_within_budget{{{_POD},budget="team-a",owner="%s",reason="NearLimit"}}'
_LABELS = {"namespace": "team-a", "service": "chat"}
_NAME = "InferenceService/{{ $labels.service }} of {{ $labels.namespace }}"


def _of_services(expr: str) -> str:
    """Return one series for each service, under the names of its own labels."""
    return f"""
            max by (namespace, service) (
              label_replace(label_replace(
                {expr},
                "service", "$1", "exported_service", "(.+)"),
                "namespace", "$1", "exported_namespace", "(.+)")
            )
        """


_EXPLAIN = """
    kubectl get tsvc -A
    kubectl tessera explain SERVICE
    kubectl tessera doctor
"""

SERVICES = (
    Alert(
        name="ServiceNotReady",
        expr=_of_services(
            'tessera_service_condition{condition="Ready",'
            'reason!~"ScaledToZero|BudgetExhausted|Terminating|NotPlaced"} == 0'
        ),
        minutes=15,
        severity="critical",
        summary=f"{_NAME} answers no request.",
        description="It has not been Ready for 15 minutes, although replicas are wanted. Run "
        "kubectl tessera explain {{ $labels.service }} for the reason.",
        cause="""
            No replica became ready (`NoReplicaReady`), or replicas are ready and answer no
            completion (`CompletionFailed`). A first download of a large model may take longer. A
            service that sleeps or that a budget stops raises no alert; without hardware it is
            [ServiceNotPlaced](#servicenotplaced).
        """,
        look=_EXPLAIN,
        act="""
            Do what the conditions `Progressing` and `Ready` say; [Troubleshoot](troubleshoot.md)
            has the reasons.
        """,
        fires=Firing(
            series={
                _CONDITION % ("Ready", "NoReplicaReady"): "0x20 _x160",
                _CONDITION % ("Ready", "CompletionFailed"): "_x20 0x160",
            },
            labels=_LABELS,
        ),
        silent={
            "a service that answers": {_CONDITION % ("Ready", "CompletionSucceeded"): always(1)},
            "a service that sleeps": {_CONDITION % ("Ready", "ScaledToZero"): always(0)},
            "a start of ten minutes": {
                _CONDITION % ("Ready", "NoReplicaReady"): "0x10 stale",
                _CONDITION % ("Ready", "CompletionSucceeded"): "_x11 1x160",
            },
        },
    ),
    Alert(
        name="ServiceNotPlaced",
        expr=_of_services(
            'tessera_service_condition{condition="Placed",'
            'reason=~"Unschedulable|NoHardware|NoPool|LayoutPending"} == 0'
        ),
        minutes=30,
        severity="warning",
        summary=f"Replicas of {_NAME} have no hardware.",
        description="For 30 minutes the cluster has had no room for replicas that are wanted. Run "
        "kubectl tessera explain {{ $labels.service }} for the reason.",
        cause="""
            - `Unschedulable`: suitable hardware exists, and the scheduler finds none that is free.
            - `NoHardware`, `NoPool`: the pools have no device that Tessera knows, or none may be
              used.
            - `LayoutPending`: the slices are not made yet; see the pool's condition `LayoutReady`.
        """,
        look="""
            kubectl tessera explain SERVICE
            kubectl tessera top              # free devices of each pool
            kubectl tessera plan             # MIG layouts
        """,
        act="""
            Add nodes, allow another pool in `spec.placement.pools`, choose a smaller instance, or
            lower `minReplicas`.
        """,
        fires=Firing(series={_CONDITION % ("Placed", "Unschedulable"): always(0)}, labels=_LABELS),
        silent={
            "a service that is placed": {_CONDITION % ("Placed", "Placed"): always(1)},
            "a spec that was not accepted": {_CONDITION % ("Placed", "NotAccepted"): always(0)},
            "a node that comes after 20 minutes": {
                _CONDITION % ("Placed", "Unschedulable"): "0x20 stale",
                _CONDITION % ("Placed", "Placed"): "_x21 1x160",
            },
        },
    ),
    Alert(
        name="ServiceAtMaxReplicas",
        expr=_of_services('tessera_service_desired_replicas{reason="TooManyReplicas"}'),
        minutes=30,
        severity="warning",
        summary=f"{_NAME} needs more replicas than spec.scaling.maxReplicas.",
        description="All {{ $value | humanize }} replicas have not been enough for 30 minutes: "
        "requests wait, or will.",
        cause="""
            The load is larger than `spec.scaling.maxReplicas`, or that of the current schedule,
            carries within `spec.slo`.
        """,
        look="""
            kubectl tessera explain SERVICE   # how many replicas the load needs
            kubectl tessera usage --by key,model
        """,
        act="""
            Raise `spec.scaling.maxReplicas`, or limit who sends the requests
            ([Limit a tenant](keys.md#limit-a-tenant)).
        """,
        fires=Firing(series={_DESIRED % "TooManyReplicas": always(4)}, labels=_LABELS, value="4"),
        silent={
            "a service below its maximum": {_DESIRED % "Steady": always(4)},
            "a peak of 20 minutes": {
                _DESIRED % "TooManyReplicas": "4x20 stale",
                _DESIRED % "Steady": "_x21 4x160",
            },
        },
    ),
    Alert(
        name="BudgetNearlySpent",
        expr=f"""
            max by (budget, window) (tessera_budget_spent_nanos)
              / max by (budget, window) (tessera_budget_limit_nanos)
              * on (budget) group_left (owner)
              {OWNERS} > 0.9
        """,
        minutes=15,
        severity="warning",
        summary="TenantBudget/{{ $labels.budget }} is nearly spent.",
        description="{{ $value | humanizePercentage }} of its {{ $labels.window }} limit are "
        "spent. At the limit no replica and no batch is added for the tenant, or gateways refuse "
        "its requests.",
        cause="""
            The tenant uses more than its limit for the window was made for. `minReplicas` go on
            beyond one of basis `Cost`.
        """,
        look="""
            kubectl get tenantbudget BUDGET -o wide
            kubectl tessera cost --by service --since 7d
        """,
        act="""
            Raise the limit (`kubectl tessera budget raise`), lower `minReplicas` of idle services,
            or wait for the next window.
        """,
        fires=Firing(
            series={
                _BUDGET % "spent": always(95e9),
                _BUDGET % "limit": always(100e9),
                _OWNER % "ann": "1x90 stale",
                _OWNER % "bob": "_x90 1x90",
            },
            labels={"budget": "team-a", "owner": "bob", "window": "Month"},
            value="95%",
        ),
        silent={
            "a budget with a tenth left": {
                _BUDGET % "spent": always(89e9),
                _BUDGET % "limit": always(100e9),
                _OWNER % "ann": always(1),
            },
            "the end of a window": {
                _BUDGET % "spent": "95000000000x10 0x170",
                _BUDGET % "limit": always(100e9),
                _OWNER % "ann": always(1),
            },
        },
    ),
    Alert(
        name="BatchLate",
        expr="""
            max by (namespace, batch) (
              label_replace(
                tessera_batch_state{reason="DeadlineAtRisk"}
                or tessera_batch_state{state="expired"},
                "namespace", "$1", "exported_namespace", "(.+)")
            )
        """,
        minutes=10,
        severity="warning",
        summary="BatchInference/{{ $labels.batch }} of {{ $labels.namespace }} misses its "
        "deadline.",
        description="At its present speed it ends after spec.deadline, or that has passed. Rows "
        "that are done are kept.",
        cause="""
            The remaining rows take longer than the time that is left, on the fastest hardware that
            the batch may use; or it had no hardware.
        """,
        look="""
            kubectl describe batchinference BATCH   # progress, estimate, and why this hardware
            kubectl tessera top
        """,
        act="""
            Set a later `spec.deadline`, which also continues an expired batch, or allow faster
            hardware: `spec.spot.policy`, `spec.placement.pools`. Delete an expired batch that is
            not needed.
        """,
        fires=Firing(
            series={
                _BATCH % ("running", "DeadlineAtRisk"): "1x30 stale",
                _BATCH % ("expired", "Finished"): "_x31 1x160",
            },
            labels={"namespace": "team-a", "batch": "night"},
        ),
        silent={
            "a batch in time": {_BATCH % ("running", "OnSpot"): always(1)},
            "a batch that ended": {_BATCH % ("completed", "Finished"): always(1)},
            "a risk of some minutes": {
                _BATCH % ("running", "DeadlineAtRisk"): "1x8 stale",
                _BATCH % ("running", "OnSpot"): "_x9 1x170",
            },
        },
    ),
)
