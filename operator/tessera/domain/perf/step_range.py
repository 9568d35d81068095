"""The ends of the error of a step time: what turns between them is not certain."""

from dataclasses import replace

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera.domain.incremental import constant
from tessera.domain.perf import footprint
from tessera.domain.perf.sources import predict_step_time
from tessera.domain.perf.step import StepTime
from tessera.domain.perf.table import SpeedTable, shipped_speed_table


def slowest_step(step: StepTime) -> StepTime:
    """Return the step time at the slow end of its error; itself where that is not known."""
    if step.error is None:
        return step
    return _stretched(step, 1 + step.error.decode, 1 + step.error.prompts)


def fastest_step(
    step: StepTime, shape: ModelShape, precision: str | None, hardware: Hardware
) -> StepTime:
    """Return the step time at the fast end of its error; itself where that is not known.

    That of weights in 4 bits is at least the speed of 16-bit kernels: before kernels of 4 bits were
    measured, all were predicted so, and services run on hardware that was chosen by it.
    """
    if step.error is None:
        return step
    fastest = _stretched(step, 1 / (1 + step.error.decode), 1 / (1 + step.error.prompts))
    if footprint.weight_bits(shape, precision) != 4 or step.source == "Measured":
        return fastest
    widened = predict_step_time(_table_of_wide_kernels(), shape, precision, hardware)
    return replace(
        fastest,
        weights=min(fastest.weights, widened.weights),
        other_experts=min(fastest.other_experts, widened.other_experts),
        token=min(fastest.token, widened.token),
        unoverlapped=min(fastest.unoverlapped, widened.unoverlapped),
    )


@constant
def _table_of_wide_kernels() -> SpeedTable:
    """Return the shipped table without the kernels that read weights of 4 bits."""
    shipped = shipped_speed_table()
    families = (family.model_copy(update={"int4": None}) for family in shipped.families)
    return shipped.model_copy(update={"families": tuple(families)})


def _stretched(step: StepTime, decoding: float, prompts: float) -> StepTime:
    """Return the step time with the parts of decoding and of prompts so many times as long."""
    drafting = step.drafting
    if drafting is not None and drafting.step is not None:
        drafting = replace(drafting, step=_stretched(drafting.step, decoding, prompts))
    return replace(
        step,
        weights=step.weights * decoding,
        other_experts=step.other_experts * decoding,
        kv_token=step.kv_token * decoding,
        sequence=step.sequence * decoding,
        fixed=step.fixed * decoding,
        token=step.token * prompts,
        pair=step.pair * prompts,
        exchange=step.exchange * prompts,
        drafting=drafting,
    )
