"""The CPU time in which a Job of a gate asks a starter suite of 400 prompts and scores its answers.

The engine is a process of its own, and answers each prompt with a stream of so many tokens, each in
a packet of its own; the last makes it right. What is counted is the Job's process alone: suite,
requests, streams, scores, answers on disk, and the verdict on a candidate.
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tessera.batch_runner.gate.job import GateJobRunner, add_gate_command
from tessera.batch_runner.gate.run import BASELINE_RUNS
from tessera.cli.gate.starter import starter_rows
from tests.batch_runner.gate.scripted_engine import last_text, serve_engine
from world.slots import free_port

# Mean length of a right answer; a reason of several steps has more, a number fewer.
_TOKENS = 64
# Tokens that arrive together are read together, which takes less.
_GAP_SECONDS = 0.002


def score_cpu_seconds(per_stratum: int = 40, tokens: int = _TOKENS) -> float:
    """Return the CPU seconds of the candidate's Job, for 400 prompts by default."""
    rows = [json.loads(line) for line in starter_rows(1, per_stratum)]
    answers = {row["messages"][-1]["content"]: _right_answer(row, tokens) for row in rows}
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    engine = context.Process(target=_serve, args=(child, answers), daemon=True)
    engine.start()
    try:
        url = parent.recv()
        with TemporaryDirectory() as folder:
            (Path(folder) / "suite.jsonl").write_text("\n".join(map(json.dumps, rows)))
            _run(folder, url, "baseline")
            begin = time.process_time()
            _run(folder, url, "candidate")
            return time.process_time() - begin
    finally:
        engine.terminate()
        engine.join()


def _right_answer(row: Mapping[str, Any], tokens: int) -> Any:
    expected = row["expected"]
    if row["scorer"] == "toolCall":
        function = {"name": expected["name"], "arguments": json.dumps(expected["arguments"])}
        return {"tool_calls": [{"index": 0, "function": function}]}
    if row["scorer"] == "jsonSchema":
        return json.dumps(expected["const"])
    text = str(row.get("example", expected))
    return text if row["scorer"] == "exact" else f"{'so ' * tokens}{text}"


def _serve(connection: Connection, answers: Mapping[str, Any]) -> None:
    async def serve() -> None:
        async with serve_engine(lambda body: answers[last_text(body)], _GAP_SECONDS) as engine:
            connection.send(engine.url)
            await asyncio.Event().wait()

    asyncio.run(serve())


def _run(folder: str, url: str, role: str) -> None:
    parser = argparse.ArgumentParser()
    add_gate_command(parser)
    version = "b" if role == "baseline" else "c"
    words = {
        "gate": "team-a/chat",
        "role": role,
        "version": version,
        "url": url,
        "model": "tiny",
        "suite": f"{folder}/suite.jsonl",
        "scorer": "v1",
        "answers": folder,
        "report": f"{folder}/report",
        "host": "127.0.0.1",
        "port": str(free_port()),
    }
    if role == "candidate":
        (baseline,) = Path(folder).glob("b-*.jsonl")
        digest = hashlib.sha256(baseline.read_bytes()).hexdigest()
        words |= {"baseline": "b", "baseline-digest": digest}
    arguments = parser.parse_args([f"--{name}={value}" for name, value in words.items()])
    code, report = asyncio.run(GateJobRunner(arguments).run(asyncio.Event()))
    runs = BASELINE_RUNS if role == "baseline" else 1
    if code or report["answered"] != runs * sum(report["prompts"].values()):
        raise RuntimeError(f"the Job ended with {report}")


if __name__ == "__main__":
    print(f"score_400_cpu_seconds {score_cpu_seconds():.2f}")
