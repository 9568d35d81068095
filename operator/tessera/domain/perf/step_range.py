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
    fastest = step.stretched(1 / (1 + step.error.decode), 1 / (1 + step.error.prompts))
    if footprint.weight_bits(shape, precision) != 4 or step.source == "Measured":
        return fastest
    widened = predict_step_time(_table_of_wide_kernels(), shape, precision, hardware)
    return replace(
        fastest,
        weights=min(fastest.weights, widened.weights),
        token=min(fastest.token, widened.token),
        unoverlapped=min(fastest.unoverlapped, widened.unoverlapped),
    )


def source_text(step: StepTime, share: float | None) -> str:
    """Return the error of what is predicted by a step time, with the source of that."""
    return step.source if share is None else f"error {share:.0%}, {step.source}"


def decoding_source(step: StepTime) -> str:
    """Return the error of predicted gaps between tokens, with the source."""
    return source_text(step, None if step.error is None else step.error.decode)


def prompt_source(step: StepTime) -> str:
    """Return the error of predicted times to read a prompt, with the source."""
    return source_text(step, None if step.error is None else step.error.prompts)


@constant
def _table_of_wide_kernels() -> SpeedTable:
    """Return the shipped table without the kernels that read weights of 4 bits."""
    return shipped_speed_table().model_copy(update={"int4": ()})
