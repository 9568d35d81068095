"""`tessera gate import`: a suite from the logs of lm-eval."""

import json
from pathlib import Path
from types import SimpleNamespace

import click

from tessera.api.text import counted
from tessera.batch_runner.gate.suite import SuiteError, parse_suite
from tessera.cli.errors import CommandError
from tessera.cli.files import read_text
from tessera.cli.gate.importing import ImportedRows, stratum_of
from tessera.cli.output import Output


def run(arguments: SimpleNamespace) -> Output:
    """Print the suite, and on stderr what is left out."""
    imported = ImportedRows()
    for name in arguments.logs:
        stratum = arguments.stratum or stratum_of(Path(name).name)
        imported.read(read_text("LOGS", name).split("\n"), stratum)
    for reason, number in sorted(imported.skipped.items()):
        click.echo(f"left out {counted(number, 'line')}: {reason}", err=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in imported.rows]
    try:
        suite = parse_suite("\n".join(lines).encode(errors="replace"))
    except SuiteError as error:
        raise CommandError(str(error)) from error
    click.echo(f"{counted(len(suite.prompts), 'prompt')}: {suite.counts}", err=True)
    return Output.of_lines(lines)
