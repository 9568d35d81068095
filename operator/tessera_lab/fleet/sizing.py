"""A simulated fleet of replicas as the product sizes them."""

from tessera.api.inference_service import InferenceServiceSpec, Scaling
from tessera.domain.sizing.sizing import ReplicaFit
from tessera_lab.engine.requests import EngineLimits
from tessera_lab.fleet.model import COLD_START, FleetModel, Purchase, StartUp
from tessera_lab.fleet.observation import ReplicaModel
from tessera_lab.load.trace_rows import TRACE_BLOCK_TOKENS

_BLOCK = 16


def sized_fleet(
    spec: InferenceServiceSpec,
    fit: ReplicaFit,
    *,
    start_up: StartUp = COLD_START,
    purchase: Purchase | None = None,
) -> FleetModel:
    """Return the service on replicas that fit, which begins with the minimum of its replicas.

    The bounds are the widest of all schedules.
    """
    least, most = widest_bounds(spec.scaling)
    return FleetModel(
        replica=ReplicaModel(
            step=fit.step,
            kv_tokens=fit.memory.kv_tokens,
            max_num_seqs=fit.limits.max_num_seqs,
            max_num_batched_tokens=fit.limits.max_num_batched_tokens,
            max_model_len=fit.max_model_len,
            ttft=spec.slo.ttft_p95.total_seconds(),
            itl=spec.slo.itl_p95.total_seconds(),
            lead=start_up.mean,
            input_tokens=spec.context.typical_input_tokens,
            output_tokens=spec.context.typical_output_tokens,
        ),
        limits=EngineLimits(
            max_model_len=fit.max_model_len,
            max_num_seqs=fit.limits.max_num_seqs,
            max_num_batched_tokens=fit.limits.max_num_batched_tokens,
            # One more, the null block, holds no tokens.
            blocks=fit.memory.kv_tokens // _BLOCK + 1,
            block_size=_BLOCK,
            prefix_cache=True,
            shared_tokens=TRACE_BLOCK_TOKENS,
        ),
        step=fit.step,
        gpus=fit.hardware.devices,
        min_replicas=least,
        max_replicas=most,
        initial_replicas=max(1, least),
        start_up=start_up,
        drain_timeout=spec.drain.timeout.total_seconds(),
        purchase=purchase or Purchase(),
    )


def widest_bounds(scaling: Scaling) -> tuple[int, int]:
    """Return the lowest minimum and the highest maximum of replicas at any time."""
    schedules = scaling.schedules
    lowest = [each.min_replicas for each in schedules if each.min_replicas is not None]
    highest = [each.max_replicas for each in schedules if each.max_replicas is not None]
    return min([scaling.min_replicas, *lowest]), max([scaling.max_replicas, *highest])
