"""The alert about energy: GPUs that draw power without a user."""

from alerts.alert import Alert, Firing, growing

_JOULES = 'tessera_energy_joules_total{namespace="tessera-system",pool="a100",state="%s"}'
_IDLE = _JOULES % "coldIdle"

ENERGY = (
    Alert(
        name="IdleEnergy",
        # An idle GPU draws about a sixth of a busy one: 30 % of the energy is 7 of 10 GPU hours.
        expr="""
            sum by (pool) (increase(tessera_energy_joules_total{state=~"coldIdle|stranded"}[1d]))
              / sum by (pool) (increase(tessera_energy_joules_total[1d]))
            > 0.3
        """,
        minutes=60,
        severity="info",
        summary="Much of the energy of AcceleratorPool/{{ $labels.pool }} is for GPUs and slices "
        "without a user.",
        description="{{ $value | humanizePercentage }} of its energy in the last day is coldIdle "
        "or stranded.",
        cause="""
            More than 30 % of the energy of a pool in the last day went to GPUs and slices that no
            pod held: about 7 of 10 GPU hours had no user.
        """,
        look="""
            `tessera cost --energy --by pool`, and `Tessera: energy` for the power of each GPU
            against its activity.
        """,
        act="""
            Remove nodes, or [start them on demand](start-nodes.md); [plan layouts](repartition.md)
            from demand; [run batches](run-a-batch.md) in the free part. Where GPUs are reserved and
            stay on in any case, silence the alert for the pool.
        """,
        fires=Firing(
            series={_IDLE: growing(200), _JOULES % "serving": growing(300)},
            labels={"pool": "a100"},
            value="40%",
            after=61,
        ),
        silent={
            "a pool of which a fifth is idle": {
                _IDLE: growing(60),
                _JOULES % "stranded": growing(40),
                _JOULES % "serving": growing(400),
            },
            "replicas without a request": {
                _JOULES % "warmIdle": growing(400),
                _JOULES % "serving": growing(100),
            },
            "a pool that was idle for twenty minutes": {
                _IDLE: "0+18000x20 360000x160",
                _JOULES % "serving": growing(300),
            },
        },
    ),
)
