"""The operator, which also writes what each cycle observed and how many replicas it decided on.

The image table lets it stand for `tessera/operator-recording`. The file of `RECORD_FILE` gets one
pickled `(snapshot, {service: (replicas, reason, {pool: replicas})})` per cycle.
"""

import os
import pickle
from pathlib import Path

from typing_extensions import override

from tessera.controller import main, runtime
from tessera.reconcile.cycle import FleetReconciler, ReconcileOutcome


class RecordingReconciler(FleetReconciler):
    """Appends to the file after each cycle."""

    @override
    async def reconcile(self) -> ReconcileOutcome:
        outcome = await super().reconcile()
        decisions = {
            ref: (
                service_plan.scale.replicas,
                str(service_plan.scale.reason),
                {each.choice.offer.pool: each.desired for each in service_plan.variants},
            )
            for ref, service_plan in outcome.plan.service_plans.items()
        }
        _append((outcome.snapshot, decisions))
        return outcome


def _append(cycle: object) -> None:
    with Path(os.environ["RECORD_FILE"]).open("ab") as file:
        pickle.dump(cycle, file)


if __name__ == "__main__":
    runtime.FleetReconciler = RecordingReconciler  # type: ignore[attr-defined]
    main.main()
