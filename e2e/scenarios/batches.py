"""Batches on a claim: how they are submitted, watched and judged while they are harmed."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from demo.stage import Json, Stage, condition
from tessera.batch_runner import manifest, parts
from tessera.batch_runner.parts import SentEntry, UnsentEntry
from tessera.batch_runner.publish import PublicationRecord, read_record
from tessera.domain.batch.names import RUNNER, RUNNER_PORT, job_name
from tessera.resources.api_resources import BATCH_INFERENCES, CLAIMS
from world.api import VOLUMES
from world.client import RunningContainer
from world.testing import eventually

MODEL = "hf://meta-llama/Llama-3.1-8B-Instruct"
# Said to be usual, so that a slice of 40 GB takes few requests at a time, and rows take time.
CONTEXT = {"typicalInputTokens": 6200, "typicalOutputTokens": 400}
# Rows at the engine for all that.
IN_FLIGHT = 46
_PRODUCT = "NVIDIA-A100-SXM4-80GB"
# Characters of a wrong row.
_SHOWN = 1000
_ASK = aiohttp.ClientTimeout(total=5)


def fleet(folder: Path, spot: int) -> Path:
    """A fleet file: a node for the operator, and spot nodes with room for one batch each."""
    gpus = {"product": _PRODUCT, "tier": "Spot", "cloud": "aws", "gpus": [["3g.40gb"]]}
    nodes = [{"name": "control", "kind": "cpu"}, {"name": "spot", "count": spot, **gpus}]
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class Shelf:
    """A namespace with a claim, where batches have their files."""

    stage: Stage
    namespace: str
    folder: Path
    """What the pods see as the claim."""

    async def submit(self, name: str, *, rows: int, tokens: int, **spec: Any) -> "Batch":
        """Write an input with answers of so many tokens, and apply a batch for it."""
        lines = (_row(number, tokens) for number in range(rows))
        (self.folder / f"{name}.in.jsonl").write_text("".join(lines), encoding="utf-8")
        body = {
            "apiVersion": BATCH_INFERENCES.api_version,
            "kind": BATCH_INFERENCES.kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "claimName": CLAIM,
                "input": f"{name}.in.jsonl",
                "output": f"{name}.jsonl",
                "model": {"uri": MODEL},
                "context": CONTEXT,
                **spec,
            },
        }
        path = BATCH_INFERENCES.path(self.namespace, name)
        made = await self.stage.api.apply(path, body, "kubectl")
        return Batch(self, name, made["metadata"]["uid"], rows, tokens)


CLAIM = "data"


async def shelf(stage: Stage, namespace: str) -> Shelf:
    """Make a claim that all nodes share."""
    path = CLAIMS.path(namespace, CLAIM)
    await stage.api.apply(path, a_claim(CLAIM, "ReadWriteMany"), "kubectl")
    bound = await eventually(
        lambda: stage.api.get(path), lambda one: one["status"].get("phase") == "Bound"
    )
    volume = await stage.api.get(VOLUMES.path(name=bound["spec"]["volumeName"]))
    return Shelf(stage, namespace, Path(volume["spec"]["hostPath"]["path"]))


def a_claim(name: str, mode: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": [mode],
            "storageClassName": "world",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def _row(number: int, tokens: int) -> str:
    messages = [{"role": "user", "content": f"Describe mosaic number {number}."}]
    row = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions"}
    body = {"messages": messages, "max_tokens": tokens, "ignore_eos": True}
    return json.dumps(row | {"body": body}) + "\n"


@dataclass(frozen=True, slots=True)
class Rows:
    """What became of the rows, as the published files have it."""

    lost: int
    twice: int
    wrong: tuple[str, ...]
    """Rows with an error, under another row's id, or with an answer that is not whole."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch while it runs, and afterwards."""

    shelf: Shelf
    name: str
    uid: str
    rows: int
    tokens: int

    @property
    def work(self) -> Path:
        return self.shelf.folder / ".tessera" / self.uid

    @property
    def path(self) -> str:
        return BATCH_INFERENCES.path(self.shelf.namespace, self.name)

    async def get(self) -> Json:
        return await self.shelf.stage.api.get(self.path)

    async def patch(self, **spec: Any) -> None:
        await self.shelf.stage.api.patch(self.path, {"spec": spec})

    async def until(self, holds: Callable[[Json], object], within: float = 40) -> Json:
        """Wait for a status; its fields of `attempt` may be missing."""
        found = await eventually(self.get, lambda one: holds(one.get("status", {})), within=within)
        status: Json = found["status"]
        return status

    async def until_condition(self, kind: str, reason: str, within: float = 40) -> Json:
        """Wait for a condition's reason; the condition."""
        found = await eventually(
            self.get, lambda one: condition(one, kind).get("reason") == reason, within=within
        )
        return condition(found, kind)

    async def number(self) -> int:
        """That of the attempt in the status; 0 before the first."""
        return number_in((await self.get()).get("status", {}))

    async def until_attempt(self, number: int, within: float = 60) -> Json:
        """Wait until the status has this number or a higher one, or until the batch is over."""
        return await self.until(lambda it: number_in(it) >= number or is_over(it), within)

    async def completed(self, within: float = 60) -> Json:
        return await self.until(lambda it: it.get("state") == "completed", within)

    def running(self, container: str, attempt: int | None = None) -> RunningContainer | None:
        """A container that runs now, of one attempt or of the latest that has any."""
        found = [
            one
            for one in self.shelf.stage.world.containers()
            if one.namespace == self.shelf.namespace and one.container == container
        ]
        if attempt is not None:
            return next((one for one in found if self._is_of(one, attempt)), None)
        numbered = [(self._attempt_of(one), one) for one in found]
        return max(((it or 0, one) for it, one in numbered if it), default=(0, None))[1]

    async def progress(self, attempt: int | None = None) -> Json:
        """What the runner says of itself; empty when none answers."""
        runner = self.running(RUNNER, attempt)
        if runner is None:
            return {}
        url = f"http://{runner.address}:{RUNNER_PORT}/progress"
        try:
            async with aiohttp.ClientSession(timeout=_ASK) as session, session.get(url) as answer:
                found: Json = await answer.json()
        except (aiohttp.ClientError, TimeoutError):
            return {}
        return found

    async def until_done(self, rows: int, attempt: int | None = None, within: float = 60) -> Json:
        """Wait until a runner at work has so many rows."""
        return await eventually(
            lambda: self.progress(attempt),
            lambda it: it.get("state") == "running" and it["done"] >= rows,
            within=within,
        )

    def published(self) -> PublicationRecord | None:
        """The record on the claim that says whose results count."""
        return read_record(self.work)

    def judged(self) -> Rows:
        """Compare the published files with the input, row by row."""
        seen: Counter[str] = Counter()
        wrong = []
        for suffix in ("jsonl", "errors.jsonl"):
            with (self.shelf.folder / f"{self.name}.{suffix}").open(encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    seen[row["custom_id"]] += 1
                    if not self._is_right(row):
                        wrong.append(line[:_SHOWN])
        expected = {f"row-{number}" for number in range(self.rows)}
        return Rows(len(expected - set(seen)), seen.total() - len(seen), tuple(wrong))

    def paid_again(self) -> Counter[tuple[int, bool]]:
        """Sendings in vain, by the attempt that sent, and whether it sent the same row again."""
        found: Counter[tuple[int, bool]] = Counter()
        for senders in self._senders().values():
            for index, sender in enumerate(senders[:-1]):
                found[sender, senders[index + 1] == sender] += 1
        return found

    def _senders(self) -> dict[int, list[int]]:
        """For each row the attempts that sent it, in their order."""
        told, files = manifest.load(self.work), parts.part_files(self.work)
        senders: dict[int, list[int]] = {}
        for shard in range(len(told.shards)):
            for attempt in files.attempts(shard):
                with files.open(shard, attempt) as part:
                    for line in part:
                        entry = parts.read_entry(line, told.input_id)
                        if isinstance(entry, SentEntry):
                            senders.setdefault(entry.row, []).append(attempt)
                        elif isinstance(entry, UnsentEntry):
                            senders[entry.row].pop()
        return senders

    def _is_right(self, row: Json) -> bool:
        number = row["custom_id"].removeprefix("row-")
        answer = (row["response"] or {}).get("body", {})
        whole = answer.get("usage", {}).get("completion_tokens") == self.tokens
        return whole and int(row["id"][-8:], 16) == int(number)

    def _is_of(self, one: RunningContainer, attempt: int) -> bool:
        return one.pod.startswith(f"{job_name(self.name, attempt)}-")

    def _attempt_of(self, one: RunningContainer) -> int | None:
        if not one.pod.startswith(f"{self.name}-a"):
            return None
        number = one.pod.removeprefix(f"{self.name}-a").partition("-")[0]
        return int(number) if number.isdecimal() else None


def number_in(status: Json) -> int:
    """The number of the attempt in a status; 0 before the first."""
    return int(status.get("attempt", {}).get("number", 0))


def is_over(status: Json) -> bool:
    return status.get("state") in ("completed", "failed", "expired", "cancelled")
