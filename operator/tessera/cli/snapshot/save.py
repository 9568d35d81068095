"""`tessera snapshot save`: the input of the plan in one file."""

from types import SimpleNamespace

from tessera.cli.cluster import Reader, cluster_command
from tessera.cli.fleet import prometheus_url, read_fleet
from tessera.cli.output import Output
from tessera.cli.snapshot.file import save, serialize


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Write the file, and print what is in it."""
    fleet = await read_fleet(reader, prometheus_url(arguments))
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
    return Output.of_lines(messages)
