"""Alerts about MIG layouts that need an action.

States that resolve without one, or that wait for an approval, raise no alert.
"""

from alerts.alert import Alert, Firing, always

_LAYOUT = 'tessera_pool_layout_ready{pool="a100",reason="%s"}'

LAYOUTS = (
    Alert(
        name="LayoutBlocked",
        expr="""
            max by (pool) (
              tessera_pool_layout_ready{reason!~"Planning|AwaitingApproval|OutsideMaintenanceWindow|Repartitioning"} == 0
            )
        """,  # noqa: E501 - one matcher
        minutes=30,
        severity="warning",
        summary="The GPUs of AcceleratorPool/{{ $labels.pool }} do not have the planned MIG "
        "layout, and no repartition progresses.",
        description="Blocked for 30 minutes. Run kubectl tessera plan {{ $labels.pool }} to see "
        "what blocks it and what unblocks it.",
        cause="""
            The GPUs of a pool with `spec.mig` do not have the planned layout, for a reason that
            does not resolve by itself. Every service stays where it is.
        """,
        look="""
            kubectl tessera plan POOL     # what blocks the plan, and what would unblock it
            kubectl tessera doctor        # checks the backend that partitions
        """,
        act="""
            [Repartition GPUs](repartition.md#troubleshoot) lists a fix for each reason.
        """,
        fires=Firing(
            series={
                _LAYOUT % "NoSurgeCapacity": "0x20 _x160",
                _LAYOUT % "DisruptionBudget": "_x20 0x160",
            },
            labels={"pool": "a100"},
        ),
        silent={
            f"a pool with the reason {reason}": {_LAYOUT % reason: always(value)}
            for reason, value in (
                ("AsPlanned", 1),
                ("AwaitingApproval", 0),
                ("OutsideMaintenanceWindow", 0),
                ("Planning", 0),
                ("Repartitioning", 0),
            )
        }
        | {
            "a pool that goes on before its time is over": {
                _LAYOUT % "NoSurgeCapacity": "0x20 _x160",
                _LAYOUT % "Repartitioning": "_x20 0x160",
            }
        },
    ),
)
