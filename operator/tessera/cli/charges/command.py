"""`tessera charges correct`: a row that corrects what a request was charged."""

from decimal import Decimal, InvalidOperation
from types import SimpleNamespace

from pydantic import ValidationError

from tessera.cli.errors import CommandError
from tessera.cli.gateway_port import post_gateway
from tessera.cli.output import Output
from tessera.domain.money import NANO
from tessera.domain.names import CHARGE_CORRECTOR
from tessera.domain.usage.statement import ChargeCorrection
from tessera.resources.manifest import wire_format


def run(arguments: SimpleNamespace) -> Output:
    """Send the correction to a gateway."""
    correction = parse_correction(arguments.record, arguments.amount, arguments.reason)
    body = wire_format(correction)
    is_new = post_gateway(arguments, "/charges/corrections", body, CHARGE_CORRECTOR)["isNew"]
    outcome = (
        "in the open month; tessera cost --by flag shows all corrections"
        if is_new
        else "was there already, so nothing changed"
    )
    text = f"{correction.id}: correction of {arguments.amount} {outcome}"
    return Output.of(arguments.output, [text], lambda: {**body, "isNew": is_new})


def parse_correction(record: str, amount: str, reason: str) -> ChargeCorrection:
    """Return the correction that the options describe; CommandError when they do not."""
    try:
        nanos = Decimal(amount) * NANO
        is_whole = nanos.is_finite() and nanos == int(nanos) and nanos
    except (InvalidOperation, OverflowError):
        is_whole = False
    if not is_whole:
        raise CommandError(
            f"--amount {amount}: give an amount with at most 9 digits after the point, such as "
            "-0.25"
        )
    try:
        return ChargeCorrection(id=record, amount_nanos=int(nanos), reason=reason)
    except ValidationError as error:
        fault = error.errors()[0]
        if fault["loc"][0] == "id":
            raise CommandError(
                "give the recordId of the request, at most 512 characters"
            ) from error
        message = f"--{str(fault['loc'][0]).removesuffix('_nanos')}: {fault['msg']}"
        raise CommandError(message) from error
