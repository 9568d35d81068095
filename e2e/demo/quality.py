"""A cheaper version of a model is tried before a user meets it: refused if it is worse."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.cluster import InstalledCluster, Json, Ref, StepError, condition, until
from demo.tenants import MODEL, apply_spec, create_tenant

SERVICE = Ref("team-a", "answers")
GATE = "answers"
_CONFIG_MAP = "answers-suite"
_PATIENCE = 240.0
# Weights of 8 bits read half of the memory; in the first version of them one stratum is broken.
_EIGHT_BITS = {"variants": [{"precision": "fp8"}]}
_BROKEN: Mapping[str, Any] = {"strata": {"arithmetic": 0.6, "multi-step": 0.5}}


async def run(cluster: InstalledCluster) -> str:
    """Refuse 8-bit weights that lose a stratum, and roll those out that lose nothing."""
    await create_tenant(cluster, SERVICE.namespace)
    rows, suite = await cluster.tessera("gate", "init"), cluster.world.folder / "suite.jsonl"
    suite.write_text(rows, encoding="utf-8")
    await _apply_gate(cluster, rows.splitlines(), suite)
    await _apply(cluster, suite)
    await until(
        lambda: cluster.service(SERVICE),
        lambda body: (
            condition(body, "Ready").get("status") == "True" and "stableRevision" in body["status"]
        ),
        f"{SERVICE} is Ready, and its stable version is recorded",
        _PATIENCE,
    )
    stable = (await cluster.service(SERVICE))["status"]["stableRevision"]
    await _apply(cluster, suite, _BROKEN, precision=_EIGHT_BITS)
    refused = await _record(cluster, "Failed")
    after = (await cluster.service(SERVICE))["status"]
    if after["stableRevision"] != stable:
        raise StepError(f"{SERVICE} left {stable} for {after['stableRevision']}")
    await _show(cluster, refused)
    await _apply(cluster, suite, precision=_EIGHT_BITS)
    passed = await _record(cluster, "Passed", "Inconclusive")
    await _show(cluster, passed)
    before, now = (passed["usdPerMillionTokens"][name] for name in ("before", "after"))
    return (
        f"8-bit weights that lost a stratum were refused ({refused['message']}) and "
        f"{stable} went on serving; those that lost nothing were rolled out, and a million tokens "
        f"cost {now} instead of {before} USD."
    )


async def _apply_gate(cluster: InstalledCluster, rows: Sequence[str], suite: Path) -> None:
    strata = {json.loads(row)["stratum"] for row in rows}
    cluster.say(f"tessera gate init: {len(rows)} prompts in {len(strata)} strata")
    await cluster.run(
        *("kubectl", "-n", SERVICE.namespace, "create", "configmap", _CONFIG_MAP),
        f"--from-file=suite.jsonl={suite}",
    )
    spec = {"suite": {"configMap": {"name": _CONFIG_MAP}}}
    ref = Ref(SERVICE.namespace, GATE)
    await apply_spec(cluster, "QualityGate", "qualitygates", ref, spec)


async def _apply(
    cluster: InstalledCluster, suite: Path, answers: Mapping[str, Any] | None = None, **spec: Any
) -> None:
    """Apply the service, whose simulated engines answer the suite rightly but for `answers`."""
    given = json.dumps({"file": str(suite), **(answers or {})})
    body: Json = {
        "model": {"uri": MODEL},
        "replicas": 1,
        # Machines that play demos are busy, and this one is about answers.
        "slo": {"ttftP95": "10s", "itlP95": "500ms"},
        "rollout": {"strategy": "Gated", "gateRef": GATE},
        "podTemplate": {"env": [{"name": "TESSERA_SIM_ANSWERS", "value": given}]},
        **spec,
    }
    await apply_spec(cluster, "InferenceService", "inferenceservices", SERVICE, body)


async def _record(cluster: InstalledCluster, *reasons: str) -> Json:
    """Wait until the last change ended for one of these reasons; return its record."""
    begun = time.monotonic()

    async def last_record() -> Json:
        status: Json = (await cluster.service(SERVICE))["status"]
        records = status.get("rollouts", [])
        last: Json = records[0] if records else {}
        return last or condition({"status": status}, "Progressing")

    record: Json = await until(
        last_record,
        lambda last: last.get("reason") in reasons,
        f"the gate says {' or '.join(reasons)}",
        _PATIENCE,
    )
    cluster.say(
        f"{record['reason']} after {time.monotonic() - begun:.0f} s: "
        f"{', '.join(record['changes'])}: {record['message']}"
    )
    return record


async def _show(cluster: InstalledCluster, record: Json) -> None:
    shown = await cluster.tessera("gate", "show", "-n", SERVICE.namespace, GATE)
    if record["reason"] not in shown:
        raise StepError(f"tessera gate show does not say {record['reason']}: {shown}")
    cluster.say(f"tessera gate show\n{shown.rstrip()}")
