"""The ends of the error of a step time: what turns between them is not certain."""

from dataclasses import replace

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera.domain.incremental import constant
from tessera.domain.perf import footprint
from tessera.domain.perf.sources import predict_step_time
from tessera.domain.perf.step import StepTime
from tessera.domain.perf.table import SpeedTable, shipped_speed_table


def fastest_step(
    step: StepTime, shape: ModelShape, precision: str | None, hardware: Hardware
) -> StepTime:
    """Return the step time at the fast end of its error; itself where that is not known.

    That of weights in 4 bits is at least the speed of 16-bit kernels: before kernels of 4 bits were
    measured, all were predicted so, and services run on hardware that was chosen by it.
    """
    if step.error is None:
        return step
    fastest = stretched(step, 1 / (1 + step.error.decode), 1 / (1 + step.error.prompts))
    if footprint.weight_bits(shape, precision) != 4 or step.source == "Measured":
        return fastest
    widened = predict_step_time(_table_of_wide_kernels(), shape, precision, hardware)
    return replace(
        fastest,
        weights=min(fastest.weights, widened.weights),
        token=min(fastest.token, widened.token),
        unoverlapped=min(fastest.unoverlapped, widened.unoverlapped),
    )


def error_text(step: StepTime, share: float | None) -> str:
    """Return the error of what is predicted by a step time, with the source of that."""
    return step.source if share is None else f"error {share:.0%}, {step.source}"


@constant
def _table_of_wide_kernels() -> SpeedTable:
    """Return the shipped table without the kernels that read weights of 4 bits."""
    return shipped_speed_table().model_copy(update={"int4": ()})


def stretched(step: StepTime, decoding: float, prompts: float) -> StepTime:
    """Return the step time with the parts of decoding and of prompts so many times as long."""
    drafting = step.drafting
    if drafting is not None and drafting.step is not None:
        drafting = replace(drafting, step=stretched(drafting.step, decoding, prompts))
    return replace(
        step,
        weights=step.weights * decoding,
        experts=step.experts and step.experts.scaled(decoding, prompts),
        kv_token=step.kv_token * decoding,
        windowed_token=step.windowed_token * decoding,
        sequence=step.sequence * decoding,
        fixed=step.fixed * decoding,
        token=step.token * prompts,
        pair=step.pair * prompts,
        windowed_pair=step.windowed_pair * prompts,
        exchange=step.exchange * prompts,
        drafting=drafting,
    )
