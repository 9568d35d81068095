"""The replica of `tessera breakeven`, as `tessera size` finds it for a model."""

from datetime import date
from types import SimpleNamespace

from tessera.api.precision import CHECKPOINT
from tessera.api.text import counted
from tessera.cli.breakeven.inputs import OwnReplica
from tessera.cli.errors import CommandError
from tessera.cli.size.arguments import SIZE
from tessera.cli.size.command import build_report
from tessera.cli.size.report import SizeReport
from tessera.cli.size.request import size_request
from tessera.domain.economics.api_prices import TokenUse
from tessera.domain.money import Money
from tessera.domain.sizing.prices import ASSUMED
from tessera.domain.sizing.sizing import DEFAULT_MAX_MODEL_LEN
from tessera.domain.sizing.table import SizeRow


def sized_replica(
    arguments: SimpleNamespace, request: TokenUse, hourly: Money | None, day: date
) -> OwnReplica:
    """Return where requests of these tokens are cheapest; CommandError as `sized_row` raises it.

    The price is `hourly` if that is given.
    """
    report, row = sized_row(arguments, request, day)
    price = hourly or row.hourly
    if price is None:
        raise CommandError(
            f"no price of {row.hardware.product}: write what a replica costs with --hourly"
        )
    return OwnReplica(
        name=f"{row.hardware.name} {row.hardware.product} in {row.label}",
        hourly=price,
        output_rate=row.tokens_per_second,
        is_predicted=True,
        is_assumed=hourly is None and report.request.book.name == ASSUMED,
        seller=None if hourly is not None else row.seller or None,
    )


def sized_row(
    arguments: SimpleNamespace, request: TokenUse, day: date
) -> tuple[SizeReport, SizeRow]:
    """Return the row where requests of these tokens are cheapest; CommandError without any."""
    input_tokens = max(1, round(request.input_tokens))
    output_tokens = max(1, round(request.output_tokens))
    words = [
        *("--input-tokens", str(input_tokens), "--output-tokens", str(output_tokens)),
        # Another precision gives other answers than the model that an API serves.
        *("--precision", arguments.precision or CHECKPOINT),
    ]
    if (context := input_tokens + output_tokens) > DEFAULT_MAX_MODEL_LEN:
        words += ["--context", str(context)]
    named = {
        "--gpu": arguments.gpu,
        "--slo": arguments.slo,
        "--prices": arguments.gpu_prices,
        "--catalogs": arguments.catalogs,
    }
    words += [word for option, value in named.items() if value for word in (option, value)]
    try:
        report = build_report(size_request(SIZE.parse([*words, "--", arguments.model]), day))
    except CommandError as error:
        # The prices of this command are those of APIs.
        raise CommandError(str(error).replace("--prices ", "--gpu-prices ")) from None
    demand = report.request.demand
    if demand.is_pooling:
        raise CommandError(
            f"{arguments.model} generates no tokens, whose prices are compared: see tessera size "
            f"{arguments.model}, or write a model that does"
        )
    if (demand.input_tokens, demand.output_tokens) != (input_tokens, output_tokens):
        raise CommandError(
            f"{arguments.model} has no room for prompts of {input_tokens} and responses of "
            f"{counted(output_tokens, 'token')}: write a model with a longer context"
        )
    row = report.cheapest or report.simplest
    if row is None:
        raise CommandError(
            f"{arguments.model} fits on none of these GPUs: see tessera size {arguments.model}, "
            "and write another --gpu, --precision or --slo"
        )
    return report, row
