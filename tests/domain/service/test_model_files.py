"""Models before their engines: shapes that are read, files that are fetched, and what is said."""

from dataclasses import replace
from typing import Any

from tessera.api.reasons import RevisionReason
from tessera.api.service_status import InferenceServiceStatus, ModelStatus
from tessera.domain.model.fetched import fetched_files
from tessera.domain.model.names import model_job_name
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.runner_reports import REFUSED_EXIT_CODE
from tessera.domain.observed.snapshot import (
    ObservedService,
    Ref,
    Resolution,
    RevisionQuery,
    Snapshot,
)
from tessera.domain.service.preparation.shape import with_known_shape
from tessera.domain.status.service import service_status
from tests.builders import (
    SMALL,
    a_model_job,
    a_pod,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    at,
    plan_of,
)

CHAT = Ref("team-a", "chat")
OWN = "hf://acme/own"
SHAPE = {
    "parameters": 100_000_000,
    "layers": 12,
    "attentionHeads": 12,
    "kvHeads": 4,
    "headDim": 64,
    "maxPositionEmbeddings": 8192,
}
SHAPE_REPORT = {"ok": True, "shape": SHAPE, "commit": "c0ffee"}
COMMIT = "1" * 40
MAIN = RevisionQuery(SMALL.removeprefix("hf://"), "main")
RESOLVED = {MAIN: Resolution(COMMIT, RevisionReason.REVISION_RESOLVED, "the hub's words")}


def an_own_model(**fields: Any) -> ObservedService:
    return a_service(spec=a_spec(OWN, replicas=1, **fields))


def a_cached_service(status: InferenceServiceStatus | None = None) -> ObservedService:
    spec = a_spec(SMALL, replicas=1, model={"cache": {"type": "PersistentVolumeClaim"}})
    return a_service(spec=spec, status=status or InferenceServiceStatus())


def bound_claim(uid: str = "uid-claim") -> dict[Ref, VolumeClaim]:
    """The claims of the model at each commit."""
    spec = a_cached_service().spec
    assert spec is not None
    revisions = (None, COMMIT, "2" * 40)
    models = [spec.model.model_copy(update={"revision": revision}) for revision in revisions]
    specs = [spec.model_copy(update={"model": model}) for model in models]
    names = [fetched_files(each)[0].claim_name for each in specs]
    volume = VolumeClaim(access_modes=("ReadWriteMany",), uid=uid)
    return {Ref("team-a", name): volume for name in names}


def status_of(snapshot: Snapshot) -> InferenceServiceStatus:
    return status_of_service(snapshot, CHAT)


def status_of_service(snapshot: Snapshot, service: Ref) -> InferenceServiceStatus:
    return service_status(snapshot, plan_of(snapshot).service_plans[service], None, None)


def reason_and_message(snapshot: Snapshot, kind: str) -> tuple[str, str]:
    (condition,) = [
        candidate for candidate in status_of(snapshot).conditions if candidate.type == kind
    ]
    return condition.reason, condition.cause


def preparation(snapshot: Snapshot) -> Any:
    return prepared(snapshot, CHAT)


def prepared(snapshot: Snapshot, service: Ref) -> Any:
    return plan_of(snapshot).service_plans[service].preparation


def test_an_unknown_model_is_read_by_a_job_and_nothing_is_placed_before() -> None:
    snapshot = a_snapshot(an_own_model())
    assert preparation(snapshot).job_to_create.task == "shape"
    assert plan_of(snapshot).service_plans[CHAT].choice is None
    assert reason_and_message(snapshot, "Accepted")[0] == "ReadingModel"


def test_while_the_job_runs_no_other_is_made() -> None:
    snapshot = a_snapshot(an_own_model(), **a_model_job("shape", an_own_model()))
    assert preparation(snapshot).job_to_create is None
    assert reason_and_message(snapshot, "Accepted")[0] == "ReadingModel"


def test_a_shape_that_was_read_places_the_model_in_the_same_cycle_and_is_recorded() -> None:
    snapshot = a_snapshot(
        an_own_model(), **a_model_job("shape", an_own_model(), report=SHAPE_REPORT, exit_code=0)
    )
    status = status_of(snapshot)
    assert plan_of(snapshot).service_plans[CHAT].choice is not None
    assert status.model is not None
    assert status.model.shape is not None
    assert status.model.shape.layers == 12
    assert status.model.source == "config.json of hf://acme/own at c0ffee"


def test_a_job_goes_only_when_the_status_has_what_it_found() -> None:
    parts = a_model_job("shape", an_own_model(), report=SHAPE_REPORT, exit_code=0)
    assert preparation(a_snapshot(an_own_model(), **parts)).obsolete_jobs == ()
    status = status_of(a_snapshot(an_own_model(), **parts))
    later = a_snapshot(replace(an_own_model(), status=status), **parts)
    assert preparation(later).obsolete_jobs == (parts["model_jobs"][0].ref,)
    assert (
        plan_of(a_snapshot(replace(an_own_model(), status=status))).service_plans[CHAT].choice
        is not None
    )


def test_another_model_is_read_again_and_the_previous_job_is_deleted() -> None:
    parts = a_model_job("shape", an_own_model(), report=SHAPE_REPORT, exit_code=0)
    status = status_of(a_snapshot(an_own_model(), **parts))
    other = a_service(spec=a_spec("hf://acme/other", replicas=1), status=status)
    model_files = preparation(a_snapshot(other, **parts))
    assert model_files.job_to_create.name != parts["model_jobs"][0].ref.name
    assert model_files.obsolete_jobs == (parts["model_jobs"][0].ref,)
    assert model_files.status.shape is None


def test_a_shape_in_the_spec_needs_no_job() -> None:
    snapshot = a_snapshot(an_own_model(model={"shape": SHAPE}))
    assert preparation(snapshot).job_to_create is None
    model_status = status_of(snapshot).model
    assert model_status is not None
    assert model_status.shape is None


def test_an_unsupported_config_asks_for_the_shape() -> None:
    report = {"ok": False, "message": "config.json of hf://acme/own: vocab_size is missing"}
    parts = a_model_job("shape", an_own_model(), report=report, exit_code=3)
    reason, message = reason_and_message(a_snapshot(an_own_model(), **parts), "Accepted")
    assert reason == "UnknownModel"
    for words in ("spec.model.shape", "vocab_size is missing", "kvHeads", "kubectl logs -n team-a"):
        assert words in message


def test_a_gated_model_is_reported_before_any_engine_starts() -> None:
    report = {"ok": False, "message": "401 Client Error: Unauthorized for https://hub/config.json"}
    parts = a_model_job("shape", an_own_model(), report=report, exit_code=3)
    assert (
        "name a Secret with a token"
        in reason_and_message(a_snapshot(an_own_model(), **parts), "Accepted")[1]
    )


def test_a_missing_secret_blocks_the_job_and_is_reported() -> None:
    service = an_own_model(model={"tokenSecretRef": {"name": "hub"}})
    words = {
        "waiting_reason": "CreateContainerConfigError",
        "container_message": 'secret "hub" not found',
    }
    message = reason_and_message(
        a_snapshot(service, **a_model_job("shape", service, **words)), "Accepted"
    )[1]
    assert "kubectl create secret generic hub -n team-a" in message


def test_what_may_pass_is_tried_again_after_a_while() -> None:
    parts = a_model_job(
        "shape", an_own_model(), report={"ok": False, "message": "502"}, exit_code=1
    )
    assert preparation(a_snapshot(an_own_model(), **parts, at=at(10))).obsolete_jobs == ()
    assert preparation(a_snapshot(an_own_model(), **parts, at=at(31))).obsolete_jobs == (
        parts["model_jobs"][0].ref,
    )
    assert "exit code 1" in reason_and_message(a_snapshot(an_own_model(), **parts), "Accepted")[1]


def test_a_job_whose_pod_was_lost_is_created_again() -> None:
    spec = an_own_model().spec
    assert spec is not None
    name = model_job_name("chat", "uid-chat", "shape", spec.model)
    lost_job = ObservedModelJob(
        ref=Ref("team-a", name), service=CHAT, task="shape", uid="u", failed=True
    )
    assert preparation(a_snapshot(an_own_model(), model_jobs=(lost_job,))).obsolete_jobs == (
        lost_job.ref,
    )


def test_a_wrong_spec_is_reported_before_a_job_is_created() -> None:
    snapshot = a_snapshot(an_own_model(engine={"extraArgs": ["--port=1"]}))
    assert plan_of(snapshot).service_plans[CHAT].preparation is None
    assert reason_and_message(snapshot, "Accepted")[0] == "ReservedFlag"


def test_files_are_fetched_once_there_is_a_claim_and_engines_wait() -> None:
    assert preparation(a_snapshot(a_cached_service())).job_to_create is None
    model_files = preparation(a_snapshot(a_cached_service(), claims=bound_claim()))
    assert model_files.job_to_create.task == "fetch"
    assert (
        reason_and_message(a_snapshot(a_cached_service(), claims=bound_claim()), "Progressing")[0]
        == "FetchingModel"
    )


def test_the_progress_is_reported_in_hundredths() -> None:
    parts = a_model_job("fetch", a_cached_service(), address="10.0.0.9")
    shown = {CHAT: FetchProgress(done=3_217_000_000, total=16_000_000_000)}
    snapshot = a_snapshot(a_cached_service(), claims=bound_claim(), fetch_progress=shown, **parts)
    status = status_of(snapshot)
    assert status.model is not None
    assert status.model.cache is not None
    assert status.model.cache.bytes_done == 3_200_000_000
    assert status.model.cache.bytes_total == 16_000_000_000
    assert "3.2 of 16.0 GB (20%)" in reason_and_message(snapshot, "Progressing")[1]
    assert preparation(snapshot).progress_address == "10.0.0.9"


def test_when_all_files_are_there_engines_start_and_the_job_goes() -> None:
    report = {"ok": True, "bytes": 2_500, "commit": "c0ffee"}
    parts = a_model_job("fetch", a_cached_service(), report=report, exit_code=0)
    snapshot = a_snapshot(a_cached_service(), claims=bound_claim(), **parts)
    status = status_of(snapshot)
    assert preparation(snapshot).missing_files is None
    assert status.model is not None
    assert status.model.cache is not None
    assert (status.model.cache.fetched, status.model.cache.commit) == (True, "c0ffee")
    later = a_snapshot(a_cached_service(status), claims=bound_claim(), **parts)
    assert preparation(later).obsolete_jobs == (parts["model_jobs"][0].ref,)
    assert status_of(later).model == status.model


def test_a_claim_that_was_made_again_is_filled_again() -> None:
    report = {"ok": True, "bytes": 2_500}
    parts = a_model_job("fetch", a_cached_service(), report=report, exit_code=0)
    status = status_of(a_snapshot(a_cached_service(), claims=bound_claim(), **parts))
    model_files = preparation(a_snapshot(a_cached_service(status), claims=bound_claim("uid-other")))
    assert model_files.job_to_create.task == "fetch"
    assert model_files.missing_files is not None


def test_a_fetch_that_is_refused_says_why() -> None:
    report = {"ok": False, "message": "cannot write /models/x: the volume is full"}
    parts = a_model_job("fetch", a_cached_service(), report=report, exit_code=3)
    reason, message = reason_and_message(
        a_snapshot(a_cached_service(), claims=bound_claim(), **parts), "Progressing"
    )
    assert reason == "ModelFetchFailed"
    assert "the volume is full" in message


def test_what_runs_goes_on_while_another_revision_is_fetched() -> None:
    pods, workloads = (a_pod("chat-0"),), (a_workload(1),)
    snapshot = a_snapshot(a_cached_service(), claims=bound_claim(), pods=pods, workloads=workloads)
    service_plan = plan_of(snapshot).service_plans[CHAT]
    assert service_plan.removable_deployments == ()
    assert service_plan.pods == pods


def test_a_fetch_waits_for_the_hub_and_then_takes_the_commit() -> None:
    waiting = a_snapshot(a_cached_service(), claims=bound_claim(), resolutions={})
    assert plan_of(waiting).service_plans[CHAT].pinned_revision.query == MAIN
    assert preparation(waiting).job_to_create is None
    preparation_after = preparation(replace(waiting, resolutions=RESOLVED))
    assert preparation_after.job_to_create.spec.model.revision == COMMIT
    model_status = status_of(replace(waiting, resolutions=RESOLVED)).model
    assert model_status is not None
    assert model_status.cache is not None
    assert (model_status.revision, model_status.cache.fetched) == (COMMIT, False)


def test_another_commit_is_fetched_into_another_folder_before_engines_change() -> None:
    service = a_cached_service()
    assert service.spec is not None
    at_commit = service.spec.model.model_copy(update={"revision": COMMIT})
    job_objects = a_model_job(
        "fetch",
        replace(service, spec=service.spec.model_copy(update={"model": at_commit})),
        report={"ok": True, "bytes": 5},
        exit_code=0,
    )
    first = a_snapshot(service, claims=bound_claim(), resolutions=RESOLVED, **job_objects)
    fetched = replace(service, status=status_of(first))
    assert preparation(first).missing_files is None
    update_snapshot = a_snapshot(
        replace(fetched, update="now"),
        claims=bound_claim(),
        resolutions={},
        workloads=(a_workload(1),),
    )
    query = replace(MAIN, update="now")
    newer = {query: Resolution("2" * 40, RevisionReason.REVISION_RESOLVED, "the hub's words")}
    later = replace(update_snapshot, resolutions=newer)
    assert preparation(update_snapshot).job_to_create is None
    assert preparation(later).job_to_create.spec.model.revision == "2" * 40
    assert preparation(later).missing_files is not None


def test_the_shape_of_a_pinned_model_is_read_at_its_commit() -> None:
    status = InferenceServiceStatus(
        model=ModelStatus(
            uri=OWN, revision=COMMIT, reason="RevisionResolved", message="the hub's words"
        )
    )
    assert (
        preparation(
            a_snapshot(replace(an_own_model(), status=status))
        ).job_to_create.spec.model.revision
        == COMMIT
    )


def test_what_was_read_and_what_was_pinned_stay_together() -> None:
    query = RevisionQuery("acme/own", "main")
    pinned = {query: Resolution(COMMIT, RevisionReason.REVISION_RESOLVED, "the hub's words")}
    parts = a_model_job("shape", an_own_model(), report=SHAPE_REPORT, exit_code=0)
    status = status_of(a_snapshot(an_own_model(), **parts, resolutions=pinned))
    later = status_of(a_snapshot(replace(an_own_model(), status=status), resolutions={}))
    assert later.model is not None
    assert later.model == status.model
    assert (later.model.revision, later.model.shape is not None) == (COMMIT, True)


def test_while_another_model_is_read_the_status_speaks_of_the_one_that_runs() -> None:
    """Else the other one would count as one that ran unpinned since before there were pins."""
    before = InferenceServiceStatus(
        model=ModelStatus(
            uri=SMALL, revision=COMMIT, reason="RevisionResolved", message="the hub's words"
        )
    )
    service = a_service(spec=a_spec(OWN, replicas=1), status=before)
    runs = {"workloads": (a_workload(1),), "resolutions": {}}
    assert status_of(a_snapshot(service, **runs)).model == before.model
    read = a_snapshot(
        service, **runs, **a_model_job("shape", service, report=SHAPE_REPORT, exit_code=0)
    )
    assert plan_of(read).service_plans[CHAT].pinned_revision.query == RevisionQuery(
        "acme/own", "main"
    )
    assert status_of(read).model == before.model


def test_a_shape_that_was_read_does_not_count_as_written() -> None:
    """Otherwise a Tessera that ships the model would replace the replicas."""
    status = status_of(
        a_snapshot(
            an_own_model(), **a_model_job("shape", an_own_model(), report=SHAPE_REPORT, exit_code=0)
        )
    )
    known = with_known_shape(replace(an_own_model(), status=status)).spec
    plain = an_own_model().spec
    assert known is not None
    assert plain is not None
    assert known.model.shape is not None
    assert known.model_dump(exclude_unset=True) == plain.model_dump(exclude_unset=True)


DRAFT_SHAPE_REPORT = {**SHAPE_REPORT, "shape": {**SHAPE, "parameters": 10_000_000}}


def a_drafted_service(uri: str = "hf://acme/draft", **fields: Any) -> ObservedService:
    speculation = {"method": "DraftModel", "model": {"uri": uri}}
    spec = a_spec(
        OWN, replicas=1, model={"shape": SHAPE}, engine={"speculation": speculation}, **fields
    )
    return a_service(spec=spec)


def test_an_unknown_draft_is_read_by_a_job_like_the_model() -> None:
    job = preparation(a_snapshot(a_drafted_service())).job_to_create
    assert (job.task, job.spec.model.uri) == ("draft", "hf://acme/draft")
    reason, message = reason_and_message(a_snapshot(a_drafted_service()), "Accepted")
    assert reason == "ReadingModel"
    assert message.startswith("spec.engine.speculation.model.shape: ")


def test_a_draft_that_was_read_is_recorded_and_planned_with() -> None:
    service = a_drafted_service()
    parts = a_model_job("draft", service, report=DRAFT_SHAPE_REPORT, exit_code=0)
    status = status_of(a_snapshot(service, **parts))
    assert status.model is not None
    assert status.model.draft is not None
    assert (status.model.draft.uri, status.model.draft.shape.parameters) == (
        *("hf://acme/draft",),
        10_000_000,
    )
    later = a_snapshot(replace(service, status=status), **parts)
    assert preparation(later).obsolete_jobs == (parts["model_jobs"][0].ref,)
    choice = plan_of(later).service_plans[CHAT].choice
    assert choice is not None
    assert choice.fit.step.drafting is not None
    assert choice.fit.step.drafting.step is not None


def test_another_draft_is_read_again() -> None:
    parts = a_model_job("draft", a_drafted_service(), report=DRAFT_SHAPE_REPORT, exit_code=0)
    status = status_of(a_snapshot(a_drafted_service(), **parts))
    other = replace(a_drafted_service("hf://acme/other"), status=status)
    job = preparation(a_snapshot(other, **parts)).job_to_create
    assert job.spec.model.uri == "hf://acme/other"


def test_a_draft_without_a_readable_config_asks_for_its_shape_or_another() -> None:
    service = a_drafted_service()
    report = {"ok": False, "message": "model_type mamba is none of the 40 supported architectures"}
    parts = a_model_job("draft", service, report=report, exit_code=REFUSED_EXIT_CODE)
    reason, message = reason_and_message(a_snapshot(service, **parts), "Accepted")
    assert reason == "UnknownModel"
    assert "mamba" in message
    assert "another draft model" in message


def test_without_a_draft_its_job_goes() -> None:
    parts = a_model_job("draft", a_drafted_service())
    service = an_own_model(model={"shape": SHAPE})
    assert preparation(a_snapshot(service, **parts)).obsolete_jobs == (parts["model_jobs"][0].ref,)


def two_services(**first: Any) -> tuple[ObservedService, ObservedService]:
    """Two services of the same cached model, of which the first may have a status."""
    other = replace(a_cached_service(), ref=Ref("team-a", "code"), uid="uid-code")
    return a_cached_service(**first), other


def test_services_of_the_same_files_share_one_claim_and_one_job() -> None:
    chat, code = two_services()
    snapshot = a_snapshot(chat, code, claims=bound_claim())
    plans = plan_of(snapshot).service_plans
    (chat_claim,), (code_claim,) = plans[chat.ref].claims, plans[code.ref].claims
    assert chat_claim.ref == code_claim.ref
    known = [replace(each, status=status_of_service(snapshot, each.ref)) for each in (chat, code)]
    (later,) = plan_of(a_snapshot(*known, claims=bound_claim())).service_plans[chat.ref].claims
    assert [user.ref for user in later.users] == [chat.ref, code.ref]
    jobs = {prepared(snapshot, ref).job_to_create.name for ref in (chat.ref, code.ref)}
    assert len(jobs) == 1
    parts = a_model_job("fetch", chat, report={"ok": True, "bytes": 5}, exit_code=0)
    after = a_snapshot(chat, code, claims=bound_claim(), **parts)
    for ref in (chat.ref, code.ref):
        assert prepared(after, ref).missing_files is None


def test_a_service_that_changes_its_model_stays_an_owner_of_its_claim() -> None:
    chat, _ = two_services()
    status = status_of(a_snapshot(chat, claims=bound_claim()))
    other = replace(a_service(spec=a_spec(OWN)), ref=Ref("team-a", "code"), uid="uid-code")
    owners = ("uid-chat", "uid-code", "uid-of-no-service")
    owned = {ref: replace(volume, owners=owners) for ref, volume in bound_claim().items()}
    snapshot = a_snapshot(replace(chat, status=status), other, claims=owned)
    (claim,) = plan_of(snapshot).service_plans[chat.ref].claims
    assert [user.ref for user in claim.users] == [chat.ref, other.ref]


def test_the_progress_of_other_files_is_no_progress_of_these() -> None:
    chat, code = two_services()
    shown = {code.ref: FetchProgress(done=3_200_000_000, total=16_000_000_000)}
    status = status_of(a_snapshot(chat, claims=bound_claim()))
    assert status.model is not None
    assert status.model.cache is not None
    of_before = status.model.cache.model_copy(update={"fetched": True, "claim_uid": "of-before"})
    elsewhere = status.model.cache.model_copy(update={"claim_name": "model-of-others"})
    others = status.model.model_copy(update={"cache": of_before, "other_caches": (elsewhere,)})
    for caches, done in ((status.model, 3_200_000_000), (others, 0)):
        fetching = replace(code, status=InferenceServiceStatus(model=caches))
        snapshot = a_snapshot(chat, fetching, claims=bound_claim(), fetch_progress=shown)
        seen = status_of(snapshot).model
        assert seen is not None
        assert seen.cache is not None
        assert seen.cache.bytes_done == done


def test_a_service_that_comes_later_fetches_nothing() -> None:
    parts = a_model_job("fetch", a_cached_service(), report={"ok": True, "bytes": 5}, exit_code=0)
    status = status_of(a_snapshot(a_cached_service(), claims=bound_claim(), **parts))
    chat, code = two_services(status=status)
    snapshot = a_snapshot(chat, code, claims=bound_claim())
    for ref in (chat.ref, code.ref):
        assert prepared(snapshot, ref).job_to_create is None
        assert prepared(snapshot, ref).missing_files is None
    # A claim that was created again is empty for both.
    emptied = replace(snapshot, claims=bound_claim("uid-other"))
    assert prepared(emptied, code.ref).job_to_create is not None


def test_only_the_service_that_began_a_fetch_deletes_its_job() -> None:
    parts = a_model_job("fetch", a_cached_service(), report={"ok": True, "bytes": 5}, exit_code=0)
    status = status_of(a_snapshot(a_cached_service(), claims=bound_claim(), **parts))
    chat, code = two_services(status=status)
    snapshot = a_snapshot(chat, code, claims=bound_claim(), **parts)
    obsolete = [prepared(snapshot, ref).obsolete_jobs for ref in (chat.ref, code.ref)]
    assert obsolete == [(parts["model_jobs"][0].ref,), ()]


def test_the_claim_is_never_smaller_than_it_is_since_another_user_may_have_asked_for_more() -> None:
    (claim,) = plan_of(a_snapshot(a_cached_service())).service_plans[CHAT].claims
    assert claim.gib == 3
    grown = {ref: replace(volume, gib=60) for ref, volume in bound_claim().items()}
    snapshot = a_snapshot(a_cached_service(), claims=grown)
    (claim,) = plan_of(snapshot).service_plans[CHAT].claims
    assert claim.gib == 60


def test_an_access_that_the_store_denies_is_no_matter_of_the_hub() -> None:
    spec = a_spec("s3://models/llama", replicas=1, model={"shape": SHAPE})
    service = a_service(spec=spec)
    (files,) = fetched_files(spec)
    volume = VolumeClaim(access_modes=("ReadWriteMany",), uid="uid")
    report = {"ok": False, "message": "s3://models/llama: denied (403 Forbidden)"}
    parts = a_model_job("fetch", service, report=report, exit_code=3)
    snapshot = a_snapshot(service, claims={Ref("team-a", files.claim_name): volume}, **parts)
    reason, message = reason_and_message(snapshot, "Progressing")
    assert reason == "ModelFetchFailed"
    assert "denied (403 Forbidden)" in message
    assert "tokenSecretRef" not in message
    assert message.endswith(f"kubectl delete job -n team-a {files.job_name}")


def test_an_adapter_that_a_web_server_denies_is_no_matter_of_the_hub() -> None:
    """The model itself comes from the hub."""
    uri = f"https://models.acme/sql#sha256={'0' * 64}"
    spec = a_spec(SMALL, replicas=1, model={"adapters": [{"name": "sql", "uri": uri}]})
    service = a_service(spec=spec)
    (files,) = fetched_files(spec)
    volume = VolumeClaim(access_modes=("ReadWriteMany",), uid="uid")
    report = {"ok": False, "message": f"{uri}: the server answered 403 Forbidden"}
    parts = a_model_job("fetch", service, report=report, exit_code=3)
    snapshot = a_snapshot(service, claims={Ref("team-a", files.claim_name): volume}, **parts)
    message = reason_and_message(snapshot, "Progressing")[1]
    assert "the server answered 403 Forbidden" in message
    assert "huggingface" not in message
    assert "accept the terms" not in message


def test_a_missing_key_of_the_secret_of_a_store_is_reported() -> None:
    store = {"secretName": "bucket"}
    spec = a_spec("s3://models/llama", replicas=1, model={"shape": SHAPE, "store": store})
    (files,) = fetched_files(spec)
    volume = VolumeClaim(access_modes=("ReadWriteMany",), uid="uid")
    words = {
        "waiting_reason": "CreateContainerConfigError",
        "container_message": "couldn't find key AWS_ACCESS_KEY_ID in Secret team-a/bucket",
    }
    service = a_service(spec=spec)
    parts = a_model_job("fetch", service, **words)
    snapshot = a_snapshot(service, claims={Ref("team-a", files.claim_name): volume}, **parts)
    message = reason_and_message(snapshot, "Progressing")[1]
    assert "spec.model.store.secretName: Secret/bucket or one of its keys not found" in message
    assert "kubectl create secret generic bucket -n team-a" in message


def test_the_refusal_of_one_services_token_is_that_of_no_other() -> None:
    chat, _ = two_services()
    cache = {"type": "PersistentVolumeClaim"}
    spec = a_spec(SMALL, replicas=1, model={"cache": cache, "tokenSecretRef": {"name": "valid"}})
    code = replace(a_service(spec=spec), ref=Ref("team-a", "code"), uid="uid-code")
    report = {"ok": False, "message": "401 Client Error: Unauthorized"}
    parts = a_model_job("fetch", chat, report=report, exit_code=REFUSED_EXIT_CODE)
    plans = plan_of(a_snapshot(chat, code, claims=bound_claim(), **parts)).service_plans
    assert plans[chat.ref].claims[0].ref == plans[code.ref].claims[0].ref
    refused, job = plans[chat.ref].preparation, plans[code.ref].preparation
    assert refused is not None
    assert refused.missing_files is not None
    assert refused.missing_files.reason == "ModelFetchFailed"
    assert refused.job_to_create is None
    assert job is not None
    assert job.job_to_create is not None
    assert job.job_to_create.name != parts["model_jobs"][0].ref.name


def test_files_of_two_azure_accounts_have_two_claims() -> None:
    """The account is in the Secret; of the same bucket elsewhere the credentials do not matter."""
    claims = {
        uri: {
            fetched_files(a_spec(uri, model={"store": {"secretName": name}}))[0].claim_name
            for name in ("one", "two")
        }
        for uri in ("az://models/llama", "s3://models/llama")
    }
    assert [len(names) for names in claims.values()] == [2, 1]
