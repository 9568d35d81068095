"""`tessera snapshot save`: everything that the plan reads, as one file."""

import argparse
import asyncio

from tessera.cli.cluster import open_reader
from tessera.cli.fleet import FleetInputs, prometheus_url, read_fleet
from tessera.cli.output import Output
from tessera.cli.snapshot.file import save, serialize


def run(arguments: argparse.Namespace) -> Output:
    """The file, and what is in it."""
    fleet = asyncio.run(_read_from_cluster(arguments))
    text = serialize(fleet)
    if arguments.file == "-":
        return Output(text)
    save(arguments.file, text)
    counts = ", ".join(
        f"{len(bodies)} {plural}" for plural, bodies in fleet.objects.items() if bodies
    )
    messages = [f"{arguments.file}: {counts or 'no objects'}"]
    if fleet.readings is None:
        messages.append("without readings (queue, activity); --prometheus URL adds them")
    elif fleet.readings.problem:
        messages.append(f"without readings: {fleet.readings.problem}")
    messages += [f"left out: {read_error}" for read_error in fleet.read_errors]
    messages.append(
        "Values of environment variables and arguments of containers are not in it; names, specs "
        "and the last words of engines are"
    )
    return Output("\n".join(messages) + "\n")


async def _read_from_cluster(arguments: argparse.Namespace) -> FleetInputs:
    async with open_reader(arguments) as reader:
        return await read_fleet(reader, prometheus_url(arguments))
