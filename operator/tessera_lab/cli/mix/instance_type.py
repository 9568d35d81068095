"""What the recorded load of a live service says of its instance type, as `Placed` would."""

import asyncio
from datetime import datetime

from tessera.adapters.prometheus.load_history import LoadHistories, RecordedService
from tessera.cli.errors import CommandError
from tessera.cli.fleet import open_prometheus
from tessera.domain.hardware.pools import discover
from tessera.domain.instance_types.by_load import has_type_by_load
from tessera.domain.instance_types.change import RunningType, decide_type
from tessera.domain.observed.load_history import LoadHistory
from tessera.domain.placement.candidates import fitting_choices, hardware_candidates
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.placement import is_type_of
from tessera.ports import MetricsError
from tessera_lab.cli.simulate.fleet_file import FleetFile


def type_message(url: str, file: FleetFile, at: datetime) -> str:
    """Return what the types of its pool cost on demand for the load of up to seven days.

    Empty where nothing is decided on them. Raises CommandError where the load cannot be read.
    """
    if not has_type_by_load(file.spec):
        return ""
    try:
        history = asyncio.run(_history(url, file, at))
    except MetricsError as error:
        raise CommandError(f"--from-prometheus {url}: {error}") from None
    spec, choice = file.spec, file.objects.choice()
    shape = shape_of(spec)
    assert shape is not None  # noqa: S101 - hardware was chosen for it
    views = discover(file.objects.pools, file.objects.nodes, at.date())
    offers = [offer for view in views for offer in view.offers]
    fitting = fitting_choices(hardware_candidates(spec, shape, offers))
    types = [each for each in fitting if is_type_of(each, choice)]
    running = RunningType(variant=choice.variant)
    return decide_type(spec, shape, types, history, running).message


async def _history(url: str, file: FleetFile, at: datetime) -> LoadHistory:
    ref = file.objects.service.ref
    service = RecordedService(ref, file.spec.model.served_name or ref.name)
    histories = LoadHistories(open_prometheus(url))
    histories.due([service], at)
    while ref not in histories.by_service:
        await histories.read(service, at)
    return histories.by_service[ref]
