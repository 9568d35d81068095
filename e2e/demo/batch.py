"""A spot node dies in the middle of a batch, and every row is answered once."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from demo.cluster import InstalledCluster, Json, StepError, condition, until
from demo.tenants import create_tenant

NAMESPACE = "team-batch"
NAME = "night"
ROWS = 400
ANSWER_TOKENS = 150
# Fewer than fit, so that the rows take a while.
_IN_FLIGHT = 32
BATCH = f"/apis/tessera.dev/v1alpha1/namespaces/{NAMESPACE}/batchinferences/{NAME}"
_CLAIM = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/data"
_BAD_ROW = 41


async def run(cluster: InstalledCluster) -> str:
    """Refuse an invalid file, lose a node in the middle, and publish every row once."""
    await create_tenant(cluster, NAMESPACE)
    folder = await _create_claim(cluster)
    await _expect_refusal(cluster, folder)
    (folder / "questions.jsonl").write_text("".join(map(_row, range(ROWS))), encoding="utf-8")
    await _submit(cluster, NAME, "questions.jsonl", "answers.jsonl")
    done = await until(
        lambda: asyncio.to_thread(_count_answers, folder),
        lambda rows: rows >= ROWS // 10,
        "a tenth of the rows is answered",
        180,
    )
    attempt = (await cluster.api.get(BATCH))["status"]["attempt"]
    node = await _node(cluster, attempt["job"])
    cluster.say(
        f"{done} rows are done by attempt {attempt['number']} on {node} ({attempt['tier']})"
    )
    await asyncio.to_thread(cluster.world.end_node, node)
    cluster.notebook.mark("spot node lost")
    cluster.say(f"{node} ended without a notice")
    batch = await _wait_for_batch(cluster, _is_completed, "the batch is completed", 300)
    cluster.notebook.mark("batch completed")
    await asyncio.to_thread(cluster.world.wake, node)
    return _check_results(batch, folder)


async def _create_claim(cluster: InstalledCluster) -> Path:
    """Create a claim that all nodes share; return its folder on this machine."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "world",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    await cluster.api.apply(_CLAIM, claim, "kubectl")
    bound = await until(
        lambda: cluster.api.get(_CLAIM),
        lambda body: body.get("status", {}).get("phase") == "Bound",
        "the claim is bound",
        20,
    )
    volume = await cluster.api.get(f"/api/v1/persistentvolumes/{bound['spec']['volumeName']}")
    return Path(volume["spec"]["hostPath"]["path"])


async def _expect_refusal(cluster: InstalledCluster, folder: Path) -> None:
    """Submit an invalid file, which costs nothing and names its invalid lines."""
    rows = [_row(0), "not json\n", _row(0)]
    (folder / "broken.jsonl").write_text("".join(rows), encoding="utf-8")
    await _submit(cluster, "broken", "broken.jsonl", "broken-answers.jsonl")
    broken = BATCH.replace(f"/{NAME}", "/broken")
    broken_batch = await until(
        lambda: cluster.api.get(broken),
        lambda body: condition(body, "Complete").get("reason") == "InvalidInput",
        "the broken file is refused",
        30,
    )
    message = condition(broken_batch, "Complete")["message"]
    cluster.say(f"refused: {message}")
    if "line 2" not in message or "line 3" not in message:
        raise StepError(f"the refusal does not name lines 2 and 3: {message}")
    if broken_batch["status"].get("attempt") is not None:
        raise StepError("an attempt was started for a broken file")


def _row(number: int) -> str:
    body = {
        "messages": [{"role": "user", "content": f"Describe mosaic number {number}."}],
        "max_tokens": ANSWER_TOKENS,
        "temperature": -1 if number == _BAD_ROW else 0,
    }
    row = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps(row | {"body": body}) + "\n"


async def _submit(cluster: InstalledCluster, name: str, source: str, target: str) -> None:
    body = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "BatchInference",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "claimName": "data",
            "input": source,
            "output": target,
            "model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"},
            "context": {"typicalInputTokens": 20, "typicalOutputTokens": ANSWER_TOKENS},
            "engine": {"maxNumSeqs": _IN_FLIGHT},
            "deadline": "1h",
        },
    }
    await cluster.api.apply(BATCH.replace(f"/{NAME}", f"/{name}"), body, "kubectl")


async def _wait_for_batch(
    cluster: InstalledCluster, holds: Callable[[Json], bool], what: str, within: float
) -> Json:
    batch: Json = await until(lambda: cluster.api.get(BATCH), holds, what, within)
    return batch


def _count_answers(folder: Path) -> int:
    """Count the rows with an answer in the runner's files; the status follows later."""
    parts = folder.rglob("shard-*.attempt-*.jsonl")
    return sum(path.read_bytes().count(b'"good":') for path in parts)


def _is_completed(batch: Json) -> bool:
    return bool(batch.get("status", {}).get("state") == "completed")


async def _node(cluster: InstalledCluster, job: str) -> str:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    (pod,) = (await cluster.api.get(path, labelSelector=f"job-name={job}"))["items"]
    return str(pod["spec"]["nodeName"])


def _check_results(batch: Json, folder: Path) -> str:
    answers = _ids(folder / "answers.jsonl")
    errors = _ids(folder / "answers.errors.jsonl")
    expected = Counter(f"row-{number}" for number in range(ROWS))
    if answers + errors != expected:
        missing, extra = expected - (answers + errors), (answers + errors) - expected
        raise StepError(f"{len(missing)} rows are missing, {len(extra)} are duplicates")
    if set(errors) != {f"row-{_BAD_ROW}"}:
        raise StepError(f"row {_BAD_ROW} alone is bad, and these failed: {sorted(errors)}")
    status = batch["status"]
    if status["attempt"]["number"] < 2:
        raise StepError("the node died, and no second attempt was started")
    progress = status["progress"]
    return (
        f"{ROWS} rows in, {len(answers)} answers and {len(errors)} error out, each row once, by "
        f"attempt {status['attempt']['number']} on {status['attempt']['variant']}; "
        f"{progress['resentRows']} rows were in flight at the loss and were sent again "
        f"(about {progress['resentTokens']} tokens)."
    )


def _ids(path: Path) -> Counter[str]:
    with path.open(encoding="utf-8") as lines:
        return Counter(json.loads(line)["custom_id"] for line in lines)
