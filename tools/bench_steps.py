"""Time the engine steps of models under a real vLLM on a GPU: bench_steps.py FILE [CASE...].

Runs where vLLM and a GPU are, without the project's own environment. Weights and tokens are drawn
at random: shapes alone decide. Every case runs in a process of its own for a bounded time, and each
row is in FILE as soon as it is known. `docs/figures/steps-h100.json` is such a file.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")

import torch
import vllm
from vllm.model_executor.model_loader import weight_utils
from vllm.platforms import current_platform

CONFIGS = Path(__file__).parents[1] / "tests/domain/model/model_configs.json"
LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
# Model, precision and what its config.json needs besides.
CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "8b": (LLAMA_8B, None, {}),
    "moe": ("Qwen/Qwen3-30B-A3B", None, {}),
    "8b-fp8": (LLAMA_8B, "fp8", {}),
    "gemma": ("google/gemma-3-12b-it", None, {}),
    "8b-int4": (
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16",
        None,
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "quantization_status": "compressed",
                "ignore": ["lm_head"],
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {
                            "num_bits": 4,
                            "type": "int",
                            "strategy": "group",
                            "group_size": 128,
                            "symmetric": True,
                        },
                    }
                },
            }
        },
    ),
}
ARCHITECTURES = {
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
BATCHES = {512: (1, 2, 4, 8, 16, 32, 64, 128), 4096: (1, 8, 32)}
PROMPTS = (512, 2048, 8192)
STEP_TOKENS = 8192
# Steps that are timed of each batch, after those that settle.
STEPS, SETTLING = 40, 6
REPEATS = 5
# Of one model, its start included.
LIMIT_SECONDS = 150
BATCH_SECONDS = 25
# Numbers of a tensor that is no index.
LARGE = 1 << 20


def main() -> None:
    """Measure the cases in turn."""
    parser = argparse.ArgumentParser(prog="bench_steps", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    for case in arguments.cases:
        run(case, arguments.file)


def run(case: str, file: Path) -> None:
    """Measure one case in a process that is ended with all its own at the limit."""
    begun = time.monotonic()
    process = multiprocessing.get_context("fork").Process(target=measure, args=(case, file))
    process.start()
    process.join(LIMIT_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    print(f"{case}: {process.exitcode} in {time.monotonic() - begun:.0f} s", flush=True)


def measure(case: str, file: Path) -> None:
    """Start the engine of a case and write what its steps take."""
    os.setsid()
    model, precision, more = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config(model) | more))
        engine = start(folder, precision)

    def write(row: dict[str, Any]) -> None:
        add(file, {"model": model, "precision": precision, **row})

    vocabulary = engine.model_config.get_vocab_size()
    for tokens in PROMPTS:
        times = [prefill(engine, prompt(tokens, vocabulary)) for _ in range(REPEATS + 1)][1:]
        seconds, waited = (statistics.median(column) for column in zip(*times, strict=True))
        extremes = {"min_ms": ms(min(times)[0]), "max_ms": ms(max(times)[0])}
        row = {"phase": "prefill", "batch": 1, "context": tokens, "ms": ms(seconds), **extremes}
        write(row | {"client_ms": ms(waited)})
    for context, batches in BATCHES.items():
        for batch in batches:
            write(decode(engine, batch, context, vocabulary))


def add(file: Path, row: dict[str, Any]) -> None:
    """Add a row to the file, which begins with what was measured."""
    machine = {
        "gpu": current_platform.get_device_name(),
        "vllm": vllm.__version__,
        "torch": torch.__version__,
    }
    known = (
        json.loads(file.read_text(encoding="utf-8")) if file.exists() else machine | {"rows": []}
    )
    known["rows"].append(row)
    file.write_text(encoded(known), encoding="utf-8")
    print(row, flush=True)


def encoded(figures: dict[str, Any]) -> str:
    """The file's text: a line for each row."""
    head = json.dumps({name: value for name, value in figures.items() if name != "rows"})
    rows = ",\n".join(json.dumps(row) for row in figures["rows"])
    return f'{head[:-1]}, "rows": [\n{rows}\n]}}\n'


def config(model: str) -> dict[str, Any]:
    """The config.json of a model's text part."""
    known = json.loads(CONFIGS.read_text(encoding="utf-8"))["configs"]
    whole: dict[str, Any] = next(each["config"] for each in known if each["model"] == model)
    text: dict[str, Any] = whole.get("text_config", whole)
    architecture = ARCHITECTURES[text["model_type"]]
    return text | {"architectures": [architecture], "torch_dtype": "bfloat16"}


def start(folder: str, precision: str | None) -> Any:
    """The engine, which compiles and captures graphs as it does by default."""
    randomize_packed_weights()
    return vllm.LLM(
        model=folder,
        load_format="dummy",
        quantization=precision,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=STEP_TOKENS + 64,
        max_num_batched_tokens=STEP_TOKENS,
        max_num_seqs=max(map(max, BATCHES.values())),
        gpu_memory_utilization=0.95,
        disable_log_stats=False,
        compilation_config={"cudagraph_capture_sizes": sorted({*BATCHES[512], 512})},
    ).llm_engine


def randomize_packed_weights() -> None:
    """Draw the weights of narrow integers too, which vLLM leaves as it finds the memory."""
    initialize = weight_utils.initialize_single_dummy_weight

    def randomized(weight: torch.Tensor, *arguments: Any) -> None:
        initialize(weight, *arguments)
        if weight.dtype in (torch.int32, torch.uint8) and weight.numel() > LARGE:
            weight.random_()

    weight_utils.initialize_single_dummy_weight = randomized


def prompt(tokens: int, vocabulary: int) -> list[int]:
    """A prompt of random tokens."""
    return [random.randrange(vocabulary) for _ in range(tokens)]  # noqa: S311 - not a secret


def submit(engine: Any, number: int, tokens: list[int], answer: int) -> None:
    """Send a request whose answer has so many tokens, drawn at random."""
    sampling = vllm.SamplingParams(
        temperature=1.0,
        max_tokens=answer,
        ignore_eos=True,
        detokenize=False,
        output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
    )
    engine.add_request(str(number), {"prompt_token_ids": tokens}, sampling)


def prefill(engine: Any, tokens: list[int]) -> tuple[float, float]:
    """Seconds from the schedule of a prompt to its token in the engine, and at its client."""
    begun = time.monotonic()
    submit(engine, 0, tokens, 1)
    outputs: list[Any] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    waited = time.monotonic() - begun
    metrics = outputs[-1].metrics
    return metrics.first_token_ts - metrics.scheduled_ts, waited


def decode(engine: Any, batch: int, context: int, vocabulary: int) -> dict[str, Any]:
    """Time the steps in which the whole batch decodes."""
    prompts = [prompt(context - STEPS // 2, vocabulary) for _ in range(batch)]
    # The first prompts decode already while the last are read.
    answer = -(-batch * context // STEP_TOKENS) * 2 + SETTLING + STEPS
    for number, tokens in enumerate(prompts):
        submit(engine, number, tokens, answer)
    moments: list[tuple[float, int]] = []
    tokens_before, end = 0, time.monotonic() + BATCH_SECONDS
    while engine.has_unfinished_requests():
        outputs = engine.step()
        tokens_before += len(outputs)
        if len(outputs) == batch:
            moments.append((time.monotonic(), tokens_before))
        if time.monotonic() > end:
            engine.abort_request([str(number) for number in range(batch)], internal=False)
            break
    whole = moments[SETTLING:][: STEPS + 1]
    row = {"phase": "decode", "batch": batch, "steps": max(0, len(whole) - 1)}
    if len(whole) < STEPS // 2:
        return row | {"context": context, "ms": None}
    gaps = sorted(later[0] - sooner[0] for sooner, later in itertools.pairwise(whole))
    produced = whole[len(whole) // 2][1] / batch
    return row | {
        "context": round(context - STEPS // 2 + produced),
        "ms": ms(statistics.median(gaps)),
        "min_ms": ms(gaps[len(gaps) // 10]),
        "max_ms": ms(gaps[-len(gaps) // 10]),
    }


def ms(seconds: float) -> float:
    """Milliseconds with the digits that mean something."""
    return round(seconds * 1e3, 3)


if __name__ == "__main__":
    main()
