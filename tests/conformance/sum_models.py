"""Llamas that add digits, trained once for each version of their script, and their suite."""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.conformance import engines
from tests.conformance.configurations import Configuration
from tests.conformance.engines import EngineProcess
from world.folders import cache, make_once

_TRAIN = Path(__file__).with_name("train_sums.py")
_QUANTIZE = Path(__file__).with_name("quantize_weights.py")
SEED = 1
# By size: so that the large model has learned more.
STEPS = {"1m": 200, "10m": 300}
MOST_DIGITS = 8
_OPTIONS = (
    "--enforce-eager",
    "--dtype=bfloat16",
    "--max-model-len=128",
    "--max-num-seqs=16",
    "--num-gpu-blocks-override=64",
)


@asynccontextmanager
async def sum_engine(
    venv: Path, model: Path, name: str, folder: Path
) -> AsyncIterator[EngineProcess]:
    """Run a real engine that serves a model by this name."""
    configuration = Configuration(name=name, argv=(*_OPTIONS, f"--served-model-name={name}"))
    async with engines.running(engines.real(venv), str(model), configuration, folder) as engine:
        await _ask_for_tiles(engine, name)
        yield engine


async def _ask_for_tiles(engine: EngineProcess, name: str) -> None:
    """Send a prompt of 16 tokens first.

    Attention uses the tiles of a CPU with AMX without asking the kernel for them, and ends by an
    illegal instruction. Matrix products ask, though not for few tokens, and no warm-up runs here.
    """
    body = {"model": name, "prompt": "+".join("1" * MOST_DIGITS) + "=", "max_tokens": 1}
    response = await engine.http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text


def sum_model(venv: Path, size: str) -> Path:
    """Return the folder of a trained model of `1m` or `10m`: minutes of one core the first time."""
    digest = hashlib.sha256(_TRAIN.read_bytes() + venv.name.encode()).hexdigest()[:12]
    steps = str(STEPS[size])
    folder = cache() / "models" / f"sums-{size}-{steps}-{SEED}-{digest}"

    def train(partial: Path) -> None:
        _say(f"training {folder} (once)")
        _run(venv, _TRAIN, str(partial), size, steps, str(SEED))

    return make_once(folder, train, _say)


def quantized(venv: Path, model: Path, bits: int, folder: Path) -> Path:
    """Write a copy of a model with weights of so many bits into a folder."""
    _run(venv, _QUANTIZE, str(model), str(folder), str(bits))
    return folder


def write_suite(file: Path, a_stratum: int) -> None:
    """Write a suite of sums; a stratum has those of one length."""
    draw, rows = random.Random(2), list[str]()  # noqa: S311 - not a secret
    for count in range(2, MOST_DIGITS + 1):
        # A sum of two digits has 100 questions.
        questions: dict[tuple[int, ...], None] = {}
        while len(questions) < a_stratum:
            questions[tuple(draw.randrange(10) for _ in range(count))] = None
        rows += [_row(count, digits) for digits in questions]
    file.write_text("\n".join(rows), encoding="utf-8")


def _row(count: int, digits: Sequence[int]) -> str:
    content = "+".join(map(str, digits))
    fields = {
        "messages": [{"role": "user", "content": content}],
        "scorer": "number",
        "expected": sum(digits),
        "stratum": f"digits-{count}",
        "maxTokens": 3 * MOST_DIGITS,
    }
    return json.dumps(fields)


def _run(venv: Path, script: Path, *arguments: str) -> None:
    command = ["nice", "-n", "19", str(venv / "bin" / "python"), str(script), *arguments]
    subprocess.run(command, check=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
