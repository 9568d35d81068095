"""`tessera snapshot save`: everything that the plan reads, as one file."""

import argparse
import asyncio

from tessera.cli.cluster import reach
from tessera.cli.fleet import Fleet, fleet_of, prometheus_of
from tessera.cli.snapshot_file import save, written
from tessera.cli.told import Told


def run(arguments: argparse.Namespace) -> Told:
    """The file, and what is in it."""
    fleet = asyncio.run(_fleet(arguments))
    text = written(fleet)
    if arguments.file == "-":
        return Told(text)
    save(arguments.file, text)
    counts = ", ".join(f"{len(found)} {plural}" for plural, found in fleet.objects.items() if found)
    told = [f"{arguments.file}: {counts or 'no objects'}"]
    if fleet.readings is None:
        told.append("without readings (queue, activity); --prometheus URL adds them")
    elif fleet.readings.problem:
        told.append(f"without readings: {fleet.readings.problem}")
    told += [f"left out: {why}" for why in fleet.unread]
    told.append(
        "Values of environment variables and arguments of containers are not in it; names, specs "
        "and the last words of engines are"
    )
    return Told("\n".join(told) + "\n")


async def _fleet(arguments: argparse.Namespace) -> Fleet:
    async with reach(arguments) as reader:
        return await fleet_of(reader, prometheus_of(arguments))
