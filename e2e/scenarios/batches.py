"""Batches on a claim: they are submitted, watched, and their published rows are counted."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from demo.cluster import InstalledCluster, Json, condition
from tessera.batch_runner.answers import parts
from tessera.batch_runner.answers.parts import SentEntry, UnsentEntry
from tessera.batch_runner.answers.publish import PublicationRecord, read_record
from tessera.batch_runner.input import manifest
from tessera.domain.batch.names import RUNNER, RUNNER_PORT, job_name
from tessera.domain.kinds.kinds import BATCH_INFERENCES
from tessera.resources.api_resources import CLAIMS
from world.api import VOLUMES
from world.client import RunningContainer
from world.testing import eventually

MODEL = "hf://meta-llama/Llama-3.1-8B-Instruct"
# Declared as typical, so that a slice of 40 GB runs few requests at a time, and rows take time.
CONTEXT = {"typicalInputTokens": 6200, "typicalOutputTokens": 400}
# Rows that the engine has at a time nevertheless.
IN_FLIGHT = 46
# Characters of a wrong row.
_SHOWN_CHARACTERS = 1000
LONGEST_WAIT_SECONDS = 240.0
_PROGRESS_TIMEOUT = aiohttp.ClientTimeout(total=5)


@dataclass(frozen=True, slots=True)
class BatchNamespace:
    """A namespace with a claim, where batches have their files."""

    cluster: InstalledCluster
    name: str
    claim_folder: Path
    """What the pods see as the claim."""

    async def submit(self, name: str, *, rows: int, tokens: int, **spec: Any) -> "Batch":
        """Write an input with answers of so many tokens, and apply a batch for it."""
        source = {} if "service" in spec else {"model": {"uri": MODEL}, "context": CONTEXT}
        lines = (_input_row(number, tokens) for number in range(rows))
        (self.claim_folder / f"{name}.in.jsonl").write_text("".join(lines), encoding="utf-8")
        body = {
            "apiVersion": BATCH_INFERENCES.api_version,
            "kind": BATCH_INFERENCES.kind,
            "metadata": {"name": name, "namespace": self.name},
            "spec": {
                "claimName": CLAIM,
                "input": f"{name}.in.jsonl",
                "output": f"{name}.jsonl",
                **source,
                **spec,
            },
        }
        path = BATCH_INFERENCES.path(self.name, name)
        resource = await self.cluster.api.apply(path, body, "kubectl")
        return Batch(self, name, resource["metadata"]["uid"], rows, tokens)


CLAIM = "data"


async def create_shared_claim(cluster: InstalledCluster, namespace: str) -> BatchNamespace:
    """Create a claim that all nodes share."""
    path = CLAIMS.path(namespace, CLAIM)
    await cluster.api.apply(path, a_claim(CLAIM, "ReadWriteMany"), "kubectl")

    async def is_bound() -> str:
        claim = await cluster.api.get(path)
        assert claim["status"].get("phase") == "Bound", claim
        volume_name: str = claim["spec"]["volumeName"]
        return volume_name

    volume = await cluster.api.get(VOLUMES.path(name=await eventually(is_bound)))
    return BatchNamespace(cluster, namespace, Path(volume["spec"]["hostPath"]["path"]))


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


def _input_row(number: int, tokens: int) -> str:
    messages = [{"role": "user", "content": f"Describe mosaic number {number}."}]
    row = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions"}
    body = {"messages": messages, "max_tokens": tokens, "ignore_eos": True}
    return json.dumps(row | {"body": body}) + "\n"


@dataclass(frozen=True, slots=True)
class RowCounts:
    """The rows of the published files, compared with the input."""

    lost: int
    duplicates: int
    wrong: tuple[str, ...]
    """Rows with an error, under another row's id, or with an incomplete answer."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch while it runs, and afterwards."""

    namespace: BatchNamespace
    name: str
    uid: str
    rows: int
    tokens: int

    @property
    def work_folder(self) -> Path:
        return self.namespace.claim_folder / ".tessera" / self.uid

    @property
    def path(self) -> str:
        return BATCH_INFERENCES.path(self.namespace.name, self.name)

    async def get(self) -> Json:
        return await self.namespace.cluster.api.get(self.path)

    async def patch(self, **spec: Any) -> None:
        await self.namespace.cluster.api.patch(self.path, {"spec": spec})

    async def status(self) -> Json:
        """Return its status; empty before the first."""
        status: Json = (await self.get()).get("status", {})
        return status

    async def wait_for_condition(self, kind: str, reason: str) -> Json:
        """Wait for a condition's reason; return the condition."""

        async def has_reason() -> Json:
            entry = condition(await self.get(), kind)
            assert entry.get("reason") == reason, entry
            return entry

        return await eventually(has_reason, within=LONGEST_WAIT_SECONDS)

    async def current_attempt(self) -> int:
        """Return the number of the attempt in the status; 0 before the first."""
        return attempt_number(await self.status())

    async def wait_for_attempt(self, number: int) -> None:
        """Wait until the status has at least this attempt, or until the batch is finished."""

        async def has_begun() -> None:
            status = await self.status()
            assert is_finished(status) or attempt_number(status) >= number, status

        await eventually(has_begun, within=LONGEST_WAIT_SECONDS)

    async def wait_until_finished(self) -> Json:
        """Wait for any end; return the status."""

        async def has_finished() -> Json:
            status = await self.status()
            assert is_finished(status), status
            return status

        return await eventually(has_finished, within=LONGEST_WAIT_SECONDS)

    async def wait_until_completed(self) -> Json:
        """Wait for the good end; return the status."""

        async def has_completed() -> Json:
            status = await self.status()
            assert status.get("state") == "completed", status
            return status

        return await eventually(has_completed, within=LONGEST_WAIT_SECONDS)

    def running_container(self, name: str, attempt: int | None = None) -> RunningContainer | None:
        """Return a container that runs now, of one attempt or of the latest that has any."""
        containers = [
            container
            for container in self.namespace.cluster.world.containers()
            if container.namespace == self.namespace.name and container.container == name
        ]
        if attempt is not None:
            return next(
                (container for container in containers if self._belongs_to(container, attempt)),
                None,
            )
        numbered = [(self._attempt_of(container), container) for container in containers]
        return max(
            ((number or 0, container) for number, container in numbered if number),
            default=(0, None),
        )[1]

    async def progress(self, attempt: int | None = None) -> Json:
        """Return the progress that the runner reports; empty when none answers."""
        runner = self.running_container(RUNNER, attempt)
        if runner is None:
            return {}
        url = f"http://{runner.address}:{RUNNER_PORT}/progress"
        try:
            async with (
                aiohttp.ClientSession(timeout=_PROGRESS_TIMEOUT) as session,
                session.get(url) as response,
            ):
                progress: Json = await response.json()
        except (aiohttp.ClientError, TimeoutError):
            return {}
        return progress

    async def wait_for_rows(self, rows: int, attempt: int | None = None) -> Json:
        """Wait until a running runner has completed so many rows."""

        async def are_completed() -> Json:
            progress = await self.progress(attempt)
            assert progress.get("state") == "running", progress
            assert progress["done"] >= rows, progress
            return progress

        return await eventually(are_completed, within=LONGEST_WAIT_SECONDS)

    def publication_record(self) -> PublicationRecord | None:
        """Return the record on the claim that says which attempt's results count."""
        return read_record(self.work_folder)

    def count_rows(self) -> RowCounts:
        """Compare the published files with the input, row by row."""
        counts: Counter[str] = Counter()
        wrong = []
        for suffix in ("jsonl", "errors.jsonl"):
            with (self.namespace.claim_folder / f"{self.name}.{suffix}").open(
                encoding="utf-8"
            ) as lines:
                for line in lines:
                    row = json.loads(line)
                    counts[row["custom_id"]] += 1
                    if not self._is_correct(row):
                        wrong.append(line[:_SHOWN_CHARACTERS])
        expected = {f"row-{number}" for number in range(self.rows)}
        return RowCounts(len(expected - set(counts)), counts.total() - len(counts), tuple(wrong))

    def count_resent_rows(self) -> Counter[tuple[int, bool]]:
        """Count rows sent again, by the attempt that lost them and whether it sent them again."""
        counts: Counter[tuple[int, bool]] = Counter()
        for attempts in self._sending_attempts().values():
            for index, attempt in enumerate(attempts[:-1]):
                counts[attempt, attempts[index + 1] == attempt] += 1
        return counts

    def _sending_attempts(self) -> dict[int, list[int]]:
        """Return for each row the attempts that sent it, in their order."""
        input_manifest, files = manifest.load(self.work_folder), parts.part_files(self.work_folder)
        attempts_by_row: dict[int, list[int]] = {}
        for shard in range(len(input_manifest.shards)):
            for attempt in files.attempts(shard):
                with files.open(shard, attempt) as part:
                    for line in part:
                        entry = parts.read_entry(line, input_manifest.input_id)
                        if isinstance(entry, SentEntry):
                            attempts_by_row.setdefault(entry.row, []).append(attempt)
                        elif isinstance(entry, UnsentEntry):
                            attempts_by_row[entry.row].pop()
        return attempts_by_row

    def _is_correct(self, row: Json) -> bool:
        number = row["custom_id"].removeprefix("row-")
        body = (row["response"] or {}).get("body", {})
        is_complete = body.get("usage", {}).get("completion_tokens") == self.tokens
        return is_complete and int(row["id"][-8:], 16) == int(number)

    def _belongs_to(self, container: RunningContainer, attempt: int) -> bool:
        return container.pod.startswith(f"{job_name(self.name, attempt)}-")

    def _attempt_of(self, container: RunningContainer) -> int | None:
        if not container.pod.startswith(f"{self.name}-a"):
            return None
        number = container.pod.removeprefix(f"{self.name}-a").partition("-")[0]
        return int(number) if number.isdecimal() else None


def attempt_number(status: Json) -> int:
    """Return the number of the attempt in a status; 0 before the first."""
    return int(status.get("attempt", {}).get("number", 0))


def is_finished(status: Json) -> bool:
    return status.get("state") in ("completed", "failed", "expired", "cancelled")
