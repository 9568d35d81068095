"""`tessera snapshot save`: the input of the plan in one file."""

import asyncio
from types import SimpleNamespace

from tessera.cli.cluster import open_reader
from tessera.cli.fleet import FleetInputs, prometheus_url, read_fleet
from tessera.cli.output import Output
from tessera.cli.snapshot.file import save, serialize


def run(arguments: SimpleNamespace) -> Output:
    """Write the file, and print what is in it."""
    fleet = asyncio.run(_read_from_cluster(arguments))
    text = serialize(fleet)
    if arguments.file == "-":
        return Output(text)
    save(arguments.file, text)
    counts = ", ".join(
        f"{plural} {len(bodies)}" for plural, bodies in fleet.objects.items() if bodies
    )
    messages = [f"{arguments.file}: {counts or 'no objects'}"]
    if fleet.readings is None:
        messages.append("no readings (queue, activity): add them with --prometheus URL")
    elif fleet.readings.problem:
        messages.append(f"no readings: {fleet.readings.problem}")
    messages += [f"omitted: {read_error}" for read_error in fleet.read_errors]
    messages.append(
        "The file has names, specs and termination messages of engines, but no values of "
        "environment variables and no container arguments"
    )
    return Output("\n".join(messages) + "\n")


async def _read_from_cluster(arguments: SimpleNamespace) -> FleetInputs:
    async with open_reader(arguments) as reader:
        return await read_fleet(reader, prometheus_url(arguments))
